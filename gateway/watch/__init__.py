"""Watch: what looks after the work without doing it: overdue rows, the doctor's findings."""
