"""How many examples the property tests try: HYPOTHESIS_PROFILE=long for the large numbers, `default` otherwise.

A test that needs more than its profile's number says so as a multiple of `settings().max_examples`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}

settings.register_profile("default", max_examples=100, **_COMMON)
settings.register_profile("long", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
