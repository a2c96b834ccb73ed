"""The queue: tickets, leases and the broker contract with its engines.  Knows nothing of mail."""
