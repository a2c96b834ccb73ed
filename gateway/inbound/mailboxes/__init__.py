"""The mailboxes that come with the gateway, one kind a file."""
