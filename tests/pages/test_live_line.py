"""The numbers that move: a page says when they stand still, and a session that is over leads to the login, once."""

from __future__ import annotations

from pathlib import Path

from lodge import Lodge
from playwright.sync_api import Browser, Route, expect

IS_CONNECTED = "document.querySelector('[data-htmx-powered]')?._htmx?.sse?.status === 200"


def test_numbers_move_also_when_a_script_comes_late(browser: Browser, tmp_path: Path) -> None:
    """htmx begins by itself: not before the part is there that it needs."""
    with Lodge(tmp_path / "lodge").running() as lodge:
        page = browser.new_page()

        def late(route: Route) -> None:
            page.wait_for_timeout(1_000)
            route.continue_()

        page.route("**/hx-sse.min.js*", late)
        page.goto(lodge.url)
        lodge.until(lambda: page.evaluate(IS_CONNECTED), "the numbers move")
        page.close()


def test_who_lost_the_right_to_look_is_led_to_the_login_and_does_not_hammer_it(
    browser: Browser, tmp_path: Path
) -> None:
    with Lodge(tmp_path / "lodge").running() as lodge:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.removeprefix(lodge.url)))
        page.goto(f"{lodge.url}/queues")
        lodge.until(lambda: page.evaluate(IS_CONNECTED), "the numbers move")
        lodge.with_store(lambda store: store.access.add_key("shop", ["send"]))
        page.wait_for_url("**/login?next=*", timeout=60_000)
        assert len([path for path in asked if path.startswith("/login")]) == 1
        page.close()


def test_a_broken_line_is_said_on_the_page(browser: Browser, tmp_path: Path) -> None:
    with Lodge(tmp_path / "lodge").running() as lodge:
        page = browser.new_page()
        page.goto(lodge.url)
        lodge.until(lambda: page.evaluate(IS_CONNECTED), "the numbers move")
        still = page.get_by_text("these numbers stand still")
        expect(still).to_be_hidden()
    expect(still).to_be_visible(timeout=60_000)
    page.close()
