"""In: doors take mail, the intake keeps it on the queue, ingest decides and records what becomes of each recipient."""
