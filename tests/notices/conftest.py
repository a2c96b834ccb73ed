"""The fixtures of the desk for telling; what they are made of stands in `telling_desk`."""

from telling_desk import cage, clock, desk

__all__ = ["cage", "clock", "desk"]
