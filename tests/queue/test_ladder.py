"""The ladder as it is written and as it is climbed."""

from __future__ import annotations

import pytest

from gateway.queue.ladder import Ladder, duration_seconds

FIVE_DAYS = "1m 5m 15m 1h*2 4h*3 12h*9"


def test_the_default_ladder_is_five_days_long() -> None:
    ladder = Ladder.parse(FIVE_DAYS)
    assert ladder.steps[:4] == (60, 300, 900, 3600)
    assert len(ladder.steps) == 17
    assert ladder.total_seconds == (1 + 5 + 15 + 2 * 60 + 12 * 60 + 108 * 60) * 60
    assert ladder.total_seconds > 5 * 86400


def test_each_unsuccessful_attempt_waits_its_step_and_the_last_none() -> None:
    ladder = Ladder.parse("1s 2s 4s")
    assert [ladder.delay_seconds(attempt) for attempt in (1, 2, 3, 4, 99)] == [1, 2, 4, None, None]


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 85), (0.5, 100), (1.0, 115)])
def test_a_step_is_spread_by_fifteen_percent(jitter: float, seconds: float) -> None:
    assert Ladder.parse("100s").delay_seconds(1, jitter=jitter) == pytest.approx(seconds)


def test_attempts_count_from_one() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        Ladder.parse("1s").delay_seconds(0)


@pytest.mark.parametrize(
    "text", ["", "  ", "5", "m", "1x", "-1m", "1m,5m", "1m*0", "1m*", "*3", "0s", "1m*2*3", "1e3s", "٣m"]
)
def test_what_is_no_ladder_is_refused_naming_the_step(text: str) -> None:
    with pytest.raises(ValueError, match=r"ladder|step") as caught:
        Ladder.parse(f"1m {text}" if text.strip() else text)
    assert text.strip() in str(caught.value)


def test_a_ladder_has_an_end() -> None:
    with pytest.raises(ValueError, match="at most"):
        Ladder.parse("1s*999 1s*999")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1.5h", 5400), ("7d", 604800), ("0.2s", 0.2)])
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == pytest.approx(seconds)
