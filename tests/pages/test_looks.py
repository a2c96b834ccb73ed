"""Every page, at both widths and in both schemes: nothing sticks out, axe finds nothing serious, the keyboard gets everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Seeded
from playwright.sync_api import Page, expect

from gateway.mail.tokens import Tokens
from gateway.store.key_file import read_keys

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
RUN_AXE = """async () => (await axe.run(document, {iframes: false})).violations
  .filter(item => ['serious', 'critical'].includes(item.impact))
  .map(item => `${item.id}: ${item.nodes.map(node => node.target).join(', ')}`)"""


def paths(seeded: Seeded) -> list[str]:
    """Where every page is."""
    ids = seeded.ids
    token = Tokens(read_keys(seeded.lodge.folder / "var" / "tokens.key")).sign("status", ids["held_mail"])
    fixed = ["/", "/mails", "/emails", "/posts", "/support", "/captured", "/held", "/dead", "/queues", "/relays"]
    fixed += ["/find", "/find?q=lake", "/find?q=nothing+at+all", "/mails?text=nothing+at+all&mail_from=x", "/login"]
    items = [f"/mails/{ids[name]}{more}" for name in ("album_mail", "held_mail") for more in ("", "/contents")]
    items += [f"/emails/{ids[name]}{more}" for name in ("email", "held_email") for more in ("", "/contents")]
    items += [f"/posts/{ids[name]}" for name in ("album", "html_post", "support")]
    items += [f"/posts/{ids['album']}/photos/1", f"/mails/{ids['html_mail']}/contents", f"/dead/{ids['dead']}"]
    return [*fixed, *items, f"/captured/{ids['captured']}", f"/status/{token}"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_no_page_has_serious_findings_or_sticks_out(
    open_page: Callable[..., Page], seeded: Seeded, size: str, scheme: str
) -> None:
    page = open_page(size, scheme)
    findings = []
    for path in paths(seeded):
        page.goto(path, wait_until="load")
        for folded in page.locator("details").all():
            folded.evaluate("item => item.open = true")
        assert page.evaluate("window.scrollY") == 0, f"{path} begins scrolled"
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        findings += [f"{path}: {width} px too wide"] if width > 0 else []
        page.evaluate(AXE)
        findings += [f"{path}: {item}" for item in page.evaluate(RUN_AXE)]
        assert page.locator("h1").count() == 1, path
    assert findings == []


def test_the_keyboard_alone_finds_and_opens_a_mail(open_page: Callable[..., Page], seeded: Seeded) -> None:
    page = open_page()
    page.goto("/mails")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "A day at the lake":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is seen"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="A day at the lake")).to_be_visible()
    page.keyboard.press("Tab")


def test_a_question_is_opened_and_answered_by_keyboard(open_page: Callable[..., Page], seeded: Seeded) -> None:
    page = open_page()
    page.goto(f"/mails/{seeded.ids['held_mail']}")
    page.locator("summary", has_text="Discard…").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Discard it")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Discard it")).to_be_focused()


def test_the_status_page_speaks_the_senders_language_and_says_no_more_than_he_may_know(
    open_page: Callable[..., Page], seeded: Seeded
) -> None:
    status = paths(seeded)[-1]
    for locale, words in (
        ("de-AT", "Was aus Ihrer Mail wurde"),
        ("uk", "Що сталося з вашим листом"),
        ("ja", "What became"),
    ):
        page = open_page(locale=locale)
        page.goto(status)
        expect(page.get_by_role("heading", level=1)).to_contain_text(words)
    text = page.content()
    assert "cannot be parsed" not in text
    assert "127.0.0.1" not in text
    assert page.get_by_role("link").count() == 0
