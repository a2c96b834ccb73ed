"""How many examples the property tests try, and what a skipped test means.

HYPOTHESIS_PROFILE=long for the large numbers, `default` otherwise.  A test that needs more than its profile's number says so
as a multiple of `settings().max_examples`.
TEST_SERVICES=required (`make test-services`) makes every skip a failure: there all services are installed.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["services.postgres", "services.redis", "services.rabbitmq", "services.s3"]

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}

settings.register_profile("default", max_examples=100, **_COMMON)
settings.register_profile("long", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TEST_SERVICES") == "required" and reporter is not None and exitstatus == 0:
        skipped = len(reporter.stats.get("skipped", ()))
        if skipped:
            reporter.write_line(f"{skipped} skipped, and TEST_SERVICES=required allows none", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
