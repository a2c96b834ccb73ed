"""The words of the pages: every step is worded, times and sizes read well, every language says everything."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.requests import Request

import gateway.store
from gateway.mail.disposition import Disposition
from gateway.web.pages.status import standing
from gateway.web.pages.status_words import WORDS, language
from gateway.web.pages.story import WORDS as STEPS
from gateway.web.pages.story import steps
from gateway.web.pages.view import View, duration, file_response, ident, query, size

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_NAMED_BY_DISPOSITION = {"mail": {"held", "failed", "discarded", "dead"}, "email": {"failed", "unknown", "expired"}}


def written_steps() -> set[str]:
    """Every step that the store and the operator's desk name in their source."""
    root = Path(gateway.store.__file__).parent
    found: set[str] = set()
    for path in (*root.glob("*.py"), root.parent / "watch" / "operator.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.keyword(arg="step", value=ast.Constant(value=str(name))) if name:
                    found.add(name)
                case ast.Call(
                    func=ast.Attribute(attr="_note" | "note"), args=[*_, ast.Constant(value=str(name)), ast.Dict()]
                ):
                    found.add(name)
                case ast.Constant(value=str(name)) if name.endswith("_asked"):
                    found.add(name)
    return found


def test_every_step_the_store_writes_has_its_words() -> None:
    written = written_steps()
    assert {"received", "claimed", "dot_sent", "rendered", "release_asked", "discarded", "photo_refused"} <= written
    worded = {name for words in STEPS.values() for name in words}
    assert written - worded == set()
    for kind, names in _NAMED_BY_DISPOSITION.items():
        assert names <= set(STEPS[kind])


def test_a_step_of_a_newer_version_is_shown_by_its_name() -> None:
    line = {"at": NOW.isoformat(), "step": "sent_by_pigeon", "recipient": "", "data": {"pigeon": "Ada"}}
    (step,) = steps("mail", [line])
    assert (step.sentence, step.facts) == ("Sent by pigeon.", {"pigeon": "Ada"})


def test_a_sentence_never_breaks_on_what_is_missing_and_never_formats_what_a_stranger_wrote() -> None:
    lines = [
        {"at": NOW.isoformat(), "step": "received", "recipient": "", "data": {"mail_from": "{x}{0.__class__}"}},
        {"at": NOW.isoformat(), "step": "replay_asked", "recipient": "", "data": {"by": "command"}},
    ]
    assert [step.sentence for step in steps("mail", lines)] == [
        "Came in by ? from {x}{0.__class__} and was kept.",
        "Somebody at the terminal asked for it to be processed anew.",
    ]


def test_who_did_it_stands_beside_what_was_done() -> None:
    data = {"by": "olga", "reason": "released"}
    (step,) = steps("email", [{"at": NOW.isoformat(), "step": "released", "recipient": "a@b.org", "data": data}])
    assert step.note == "released · by olga"


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (0, "now"),
        (-5, "5 s ago"),
        (-90, "1 min ago"),
        (-3 * 86400, "3 days ago"),
        (86400 + 5, "in 1 day"),
        (7300, "in 2 h"),
    ],
)
def test_times_are_said_as_people_say_them(distance: int, words: str) -> None:
    view = View(clock=lambda: NOW)
    told = view.when(NOW + timedelta(seconds=distance))
    assert words in told
    assert 'title="2026-' in told


def test_sizes_ids_and_queries_are_short_and_exact() -> None:
    assert [size(octets) for octets in (0, 1, 999, 1000, 23_456, 999_600, 35_000_000, 5 * 10**12)] == [
        "0 bytes", "1 byte", "999 bytes", "1.0 kB", "23 kB", "1.0 MB", "35 MB", "5.0 TB",
    ]  # fmt: skip
    assert duration(None) == "–"
    assert ident('<b>"') == '<code class="id" title="&lt;b&gt;&#34;">&lt;b&gt;&#34;</code>'
    assert query({"text": "a&b", "after": "x"}, after=None) == "?text=a%26b"


def test_a_strangers_file_is_saved_whatever_it_says_it_is() -> None:
    for content_type in ("text/html", "image/svg+xml", "application/pdf", "text/javascript"):
        request = Request({"type": "http", "headers": []})
        answer = file_response(request, b"x", filename='a"\r\nX: y.html', content_type=content_type, inline=True)
        assert answer.headers["content-disposition"] == 'attachment; filename="a___X: y.html"'
        assert answer.headers["content-type"] == "application/octet-stream"


def test_every_language_says_everything() -> None:
    assert set(WORDS) == {"en", "de", "fr", "es", "uk"}
    for words in WORDS.values():
        assert set(words) == set(WORDS["en"])
        assert all(words.values())


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", "en"),
        ("de-CH, fr;q=0.9", "de"),
        ("ja, uk;q=0.3", "uk"),
        ("fr;q=0.2,es;q=0.8", "es"),
        ("de;q=0", "en"),
        ("*;,;=", "en"),
    ],
)
def test_the_language_is_the_one_the_browser_wants_most(header: str, wanted: str) -> None:
    assert language(header) == wanted
    assert language(header * 1000) in WORDS


def test_a_sender_hears_of_every_disposition_and_only_what_was_told_to_him() -> None:
    for disposition in ("pending", "held", "delivered", "duplicate", "discarded", "failed", "dead"):
        row = {"rcpt_to": "posts@localhost", "disposition": disposition, "reason": "mailbox posts failed: KeyError"}
        told = standing(row, WORDS["en"])
        assert told.what
        assert "KeyError" not in f"{told.what}{told.answer}{told.next}"
    failed = {"rcpt_to": "a@b.org", "disposition": Disposition.FAILED, "reply_text": "we take photos only"}
    assert standing(failed, WORDS["en"]).answer == "we take photos only"
