"""Alarms: what admins are told.  `conditions` judges, the `book` remembers, `sending` tells, `watch` runs the three."""
