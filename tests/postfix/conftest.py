"""Sites for the tests of this folder, where there is a Postfix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from mta import missing
from premises import Site, open_sites


@pytest.fixture
def make_site() -> Iterator[Callable[[str], Site]]:
    """Builds a site for a transport: lmtp or pipe."""
    if why := missing():
        pytest.skip(f"POSTFIX IS NOT TESTED: {why}")
    with open_sites() as make:
        yield make
