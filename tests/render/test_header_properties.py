"""Whatever goes in: parse(what was composed) has exactly the intended headers and recipients, or it was refused before.

The reading here is independent of the gateway's: the standard library's compat32 parser, and a line-by-line check.
"""

from __future__ import annotations

import copy
import email
import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses
from inspect import signature
from pathlib import Path
from typing import Any

from hostile import addresses, mailboxes, snippets, texts
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.contract.email_send import SendEmail, parse_send_email
from gateway.errors import InvalidRequest
from gateway.mail.addresses import parse_address, parse_mailbox, wire_mailbox
from gateway.outbound.compose import Rendered, compose
from gateway.outbound.templates import TemplateSet
from gateway.outbound.typeset import render_job

MANY = settings(max_examples=20 * settings().max_examples)
TEMPLATES = TemplateSet([Path(__file__).parents[2] / "templates"])
DATE = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
HEADER = re.compile(rb"([!-9;-~]+): ?(.*)")

header_names = st.one_of(st.sampled_from(["X-Order", "In-Reply-To", "X-" + "y" * 74]), snippets, st.just("Bcc"))
requests = st.fixed_dictionaries(
    {"to": st.lists(addresses(), max_size=3), "subject": texts(), "text": texts()},
    optional={
        "cc": st.lists(addresses(), max_size=2),
        "bcc": st.lists(mailboxes, max_size=2),
        "from": addresses(),
        "reply_to": st.lists(addresses(), max_size=2),
        "html": texts(),
        "headers": st.dictionaries(header_names, texts(longest=2500), max_size=3),
    },
)


def attempt(read: Callable[[Any], Any], given: Any) -> Any:
    """What `read` returns, or the refusal it raises."""
    try:
        return read(given)
    except (ValueError, InvalidRequest) as refused:
        return refused


def mended(given_request: dict[str, Any]) -> SendEmail:
    """The request without what the gateway named as wrong: paths must be enough to find each mistake."""
    request = copy.deepcopy(given_request)
    for _ in range(3):
        try:
            return parse_send_email(request)
        except InvalidRequest as refused:
            for problem in sorted(refused.problems, key=lambda problem: problem.path, reverse=True):
                assert not CONTROLS.search(str(problem)), problem
                remove(request, problem.path)
    raise AssertionError("problems remain after removing what was named")


def remove(request: dict[str, Any], path: str) -> None:
    field, _, rest = path.partition(".")
    field, _, index = field.partition("[")
    if field == "headers":
        # a lone surrogate has no exact path, and a long one is shown shortened
        unspeakable = [name for name in request["headers"] if not name.isprintable() or len(name) > 50]
        for name in [rest] if rest in request["headers"] else unspeakable:
            del request["headers"][name]
    elif index:
        request[field][int(index.removesuffix("]"))] = "spare@example.org"
    else:
        request[field] = {"to": ["spare@example.org"], "subject": "spare", "text": "spare"}.get(field)
        request |= {} if request[field] is not None else {field: None}


def composed(request: SendEmail, rendered: Rendered) -> bytes:
    return compose(request, rendered, message_id="<1@x.example>", date=DATE, default_from="gw@x.example", blobs={})


def one_line(text: str) -> str:
    return CONTROLS.sub(" ", text.encode("utf-8", "replace").decode()).strip()


def intended_names(request: SendEmail) -> list[str]:
    names = ["From", "To" if request.to or not request.cc else "", "Cc" if request.cc else ""]
    names += ["Reply-To" if request.reply_to else "", "Subject", "Date", "Message-ID", "MIME-Version"]
    return [name for name in [*names, *request.headers] if name]


def read_lines(octets: bytes) -> list[str]:
    """The header names, read line by line; asserts what must hold for every line of the whole."""
    assert b"\0" not in octets
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", octets)
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    names = []
    for line in octets.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.startswith((b" ", b"\t")):
            assert line.strip(), "a folded line of nothing"
        else:
            match = HEADER.fullmatch(line)
            assert match, line
            names.append(match[1].decode())
    return names


def unfolded(message: Message, name: str) -> str:
    [raw] = [str(value) for key, value in message.raw_items() if key == name]
    return re.sub(r"\r\n(?=[ \t])", "", raw).encode("ascii", "surrogateescape").decode()


def decoded(value: str) -> str:
    return str(make_header(decode_header(value)))


def addresses_in(value: str) -> list[tuple[str, str]]:
    """The stdlib's reading; its strict form, where a Python has it, refuses address literals."""
    if "strict" in signature(getaddresses).parameters:
        return getaddresses([value], strict=False)  # type: ignore[call-arg]
    return getaddresses([value])


def read_addresses(message: Message, name: str) -> list[tuple[str, str]]:
    return [(decoded(display), mailbox) for display, mailbox in addresses_in(unfolded(message, name))]


def intended_addresses(values: tuple[str, ...]) -> list[tuple[str, str]]:
    parsed = [parse_address(value) for value in values]
    return [(one_line(address.name), wire_mailbox(address.mailbox)) for address in parsed]


@MANY
@given(request=requests, subject=texts(longest=6000), html=texts())
@example(request={"to": ["a@b"], "subject": "x", "text": "x"}, subject="a\r\nBcc: eve@evil.example", html="")
@example(
    request={"to": ["a@b@c", "a@b,c@d", "", "Ann <a@b>\r\nBcc: x@y"], "subject": "x", "text": "x"}, subject="", html=""
)
@example(request={"to": ["a@b"], "subject": "x", "text": "x", "headers": {"[key]": "\n"}}, subject="", html="")
@example(request={"to": ["=?utf-8?q?a=0ab?= <a@b>"], "subject": "x", "text": "x"}, subject="=?utf-8?q?=0a?=", html="")
def test_what_was_composed_reads_as_exactly_what_was_meant(request: dict[str, Any], subject: str, html: str) -> None:
    meant = mended(request)
    octets = composed(meant, Rendered(subject=subject, text=meant.text or "", html=html))

    names = read_lines(octets)
    assert [name for name in names if not name.startswith("Content-")] == intended_names(meant)
    message = email.message_from_bytes(octets)
    assert list(message.keys()) == names
    assert not message.defects

    assert read_addresses(message, "From") == intended_addresses((meant.from_ or "gw@x.example",))
    for name, values in (("To", meant.to), ("Cc", meant.cc), ("Reply-To", meant.reply_to)):
        if values:
            assert read_addresses(message, name) == intended_addresses(values)
    assert decoded(unfolded(message, "Subject").strip(" ")) == one_line(subject)
    for name, value in meant.headers.items():
        assert decoded(unfolded(message, name).strip(" ")) == one_line(value)

    shown = {mailbox for values in (meant.to, meant.cc) for _, mailbox in intended_addresses(values)}
    hidden = {mailbox for _, mailbox in intended_addresses(meant.bcc)} - shown
    assert {wire_mailbox(mailbox) for mailbox in meant.recipients()} <= shown | hidden
    to_and_cc = {mailbox for name in ("To", "Cc") if name in names for _, mailbox in read_addresses(message, name)}
    assert not hidden & to_and_cc
    assert_bodies(message, meant.text or "", html)


def assert_bodies(message: Message, text: str, html: str) -> None:
    parts = [part for part in message.walk() if not part.is_multipart()]
    assert [part.get_content_type() for part in parts] == ["text/plain"] + ["text/html"] * bool(html)
    for part, meant in zip(parts, (text, html), strict=False):
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        lines = (
            meant.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        )
        assert payload.decode().replace("\r\n", "\n").rstrip("\n") == lines.rstrip("\n")


@MANY
@given(name=texts(longest=300), template=st.sampled_from(["welcome", "invoice"]))
def test_hostile_params_stay_data(name: str, template: str) -> None:
    params = TEMPLATES.sample(template) | {"name" if template == "welcome" else "customer": name}
    if template == "invoice":
        params |= {"number": name[:100] or "1"}
    try:
        meant = parse_send_email({"to": ["ann@example.org"], "template": template, "params": params})
    except InvalidRequest:
        return
    if TEMPLATES.problems(template, params):
        return
    parts, _ = render_job(asdict(TEMPLATES.sources(template)) | {"params": params}, b"")
    octets = composed(meant, Rendered(**parts))
    message = email.message_from_bytes(octets)
    assert [name for name in read_lines(octets) if not name.startswith("Content-")] == intended_names(meant)
    subject = decoded(unfolded(message, "Subject").strip(" "))
    assert not CONTROLS.search(subject)
    assert subject.replace(" ", "").startswith(("Welcome,", "Invoice"))
    assert "<script" not in parts["html"]


@MANY
@given(text=st.one_of(addresses(), mailboxes, texts(longest=1200)))
def test_an_address_is_refused_or_is_exactly_one_mailbox_for_every_reader(text: str) -> None:
    address = attempt(parse_address, text)
    if isinstance(address, ValueError):
        assert str(address)
        assert not CONTROLS.search(str(address))
        return
    assert parse_mailbox(address.mailbox) == address.mailbox == unicodedata.normalize("NFC", address.mailbox)
    wire = wire_mailbox(address.mailbox)
    assert wire.count("@") == 1
    assert not re.search(r"[\s<>,\x00-\x20\x7f]", wire)
    assert addresses_in(wire) == [("", wire)]
    assert wire.rpartition("@")[2].isascii()
    assert parse_address(f"<{address.mailbox}>").key == address.key == parse_address(wire).key


@given(filenames=st.lists(texts(longest=260), min_size=1, max_size=3))
def test_file_names_come_back_as_they_were_or_are_refused(filenames: list[str]) -> None:
    request: dict[str, Any] = {"to": ["a@b.example"], "subject": "s", "text": "t"}
    accepted = []
    for filename in filenames:
        attachment = {"filename": filename, "data": "eA==", "content_type": "message/rfc822"}
        outcome = attempt(parse_send_email, request | {"attachments": [attachment]})
        if isinstance(outcome, InvalidRequest):
            assert [problem.path for problem in outcome.problems] == ["attachments[0].filename"]
        else:
            accepted.append(attachment)
    octets = composed(parse_send_email(request | {"attachments": accepted}), Rendered(subject="s", text="t"))
    read_lines(octets)
    parts = [part for part in email.message_from_bytes(octets).walk() if part.get_content_disposition() == "attachment"]
    assert [part.get_filename() for part in parts] == [item["filename"] for item in accepted]
    assert all(part.get_payload(decode=True) == b"x" and part.get_param("name") for part in parts)
