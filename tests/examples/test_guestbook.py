"""The example mailbox, tested as its author would: with `gateway.testing`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway import testing
from gateway.testing import Discard, Hold, Post, Refuse

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from guestbook import MAX_CHARACTERS, Guestbook

JPEG = bytes.fromhex("ffd8ffe000104a46494600010101004800480000ffdb004300") + b"\xff" * 64


async def test_a_greeting_becomes_a_post() -> None:
    mail = await testing.mail("Schöne Grüße!", subject="Hello", from_="Änne <anne@example.org>")
    outcome = await testing.receive(Guestbook(), mail)
    assert outcome == Post(title="Hello", author="Änne", text="Schöne Grüße!", kind="greeting")


async def test_photos_are_kept_and_other_files_are_left_out() -> None:
    mail = await testing.mail("Look", attachments={"a.bin": JPEG, "list.txt": b"plain words"})
    outcome = await testing.receive(Guestbook(), mail)
    assert isinstance(outcome, Post)
    assert [item.filename for item in outcome.attachments] == ["a.bin"], "typed by what it is, not by its name"
    assert (outcome.title, outcome.reason) == ("Greetings from Ann", "partial")


async def test_a_long_greeting_is_cut_and_says_so() -> None:
    outcome = await testing.receive(Guestbook(), await testing.mail("long words " * 100))
    assert isinstance(outcome, Post)
    assert (len(outcome.text), outcome.reason) == (MAX_CHARACTERS, "partial")


async def test_a_link_waits_for_a_person() -> None:
    mail = await testing.mail("see https://example.com")
    assert await testing.receive(Guestbook(), mail) == Hold(reason="a link in a greeting")
    assert isinstance(await testing.receive(Guestbook(), mail, is_released=True), Post)


async def test_automatic_replies_and_empty_mails_are_not_kept(tmp_path: Path) -> None:
    assert isinstance(await testing.receive(Guestbook(), await testing.mail("away", mail_from="")), Discard)
    file = tmp_path / "empty.eml"
    file.write_bytes(b"Subject: nothing\r\n\r\n")
    assert isinstance(await testing.receive(Guestbook(), await testing.read(file)), Refuse)


async def test_html_comes_sanitised_and_addresses_with_their_plus() -> None:
    mail = await testing.mail("x", html="<p onclick=evil()>x</p><script>y</script>", to="guests+wedding@localhost")
    assert mail.parsed.html.strip() == "<p>x</p>"
    assert mail.plus == "wedding"


async def test_what_is_no_outcome_is_told() -> None:
    class Wrong:
        async def receive(self, mail: object, context: object) -> str:
            return "yes"

    with pytest.raises(TypeError, match="answered str, which is no outcome"):
        await testing.receive(Wrong(), await testing.mail())  # type: ignore[arg-type]
