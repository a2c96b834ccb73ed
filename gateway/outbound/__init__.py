"""Out: what an app asked for is rendered once, handed to a relay once per recipient, and recorded before anything else."""
