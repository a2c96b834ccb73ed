"""Measurements, side by side with the plain way: ratios and percentiles (`make bench`)."""
