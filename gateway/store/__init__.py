"""What is true: the database of mails, emails and posts, and the blobs.  One verb per fact; state changes only here."""
