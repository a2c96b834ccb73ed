"""A gateway with something in it, and Debian's chromium to look at it: one of each for a module.

Every page a test opens is watched: a script error, a breach of the Content-Security-Policy or a static file that is missing
fails the test that saw it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
from lodge import SCRIPT, Lodge, album, html_mail, matryoshka, message
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@dataclass
class Seeded:
    """A gateway and the ids of what lies in it."""

    lodge: Lodge
    ids: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def lodge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lodge]:
    with Lodge(tmp_path_factory.mktemp("lodge")).running() as running:
        yield running


@pytest.fixture(scope="module")
def seeded(lodge: Lodge) -> Seeded:
    """One of everything the pages show."""
    support = message("The door does not open", "It is locked.\n").as_bytes(policy=SMTP)
    album_mail = lodge.deliver(album(), "photos@localhost")
    html = lodge.deliver(html_mail(), "posts@localhost")
    held = lodge.deliver(matryoshka(), "posts@localhost", "held")
    request = lodge.deliver(support, "support@localhost")
    ids = {
        "album": album_mail["post_id"],
        "album_mail": album_mail["id"],
        "html_mail": html["id"],
        "html_post": html["post_id"],
        "held_mail": held["id"],
        "support": request["post_id"],
        "email": lodge.send("welcome", to="Ann <ann@example.org>", params={"name": "Ann"}),
        "held_email": lodge.send("broken", "held", to="ann@example.org", params={"name": SCRIPT}),
        "dead": lodge.dead_letter(),
    }
    ids["captured"] = max(path.stem for path in (lodge.folder / "var" / "captured").glob("*.eml"))

    def is_rendered() -> bool:
        post = lodge.with_store(lambda store: store.mails.post(ids["album"]))
        return all(item["renditions"] for item in post["attachments"])

    lodge.until(is_rendered, "the photos are rendered")
    return Seeded(lodge=lodge, ids=ids)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("no chromium: `make services` installs what the tests of the pages need")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, lodge: Lodge) -> Iterator[Callable[..., Page]]:
    """Opens a page of its own: `size` of SIZES, `scheme` light or dark, `js` whether JavaScript runs."""
    contexts, complaints = [], []

    def complain(told: ConsoleMessage) -> None:
        where = told.location.get("url", "")
        is_a_page_that_says_no = "the server responded with a status of 40" in told.text and "/static/" not in where
        if told.type in ("error", "warning") and not is_a_page_that_says_no:
            complaints.append(f"{told.text} [{where}]")

    def opened(size: str = "desktop", scheme: str = "light", *, js: bool = True, **values: Any) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            base_url=lodge.url,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            java_script_enabled=js,
            **values,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
