"""What people are told by mail: senders of what became of their mail, an app's people of what became of its email."""
