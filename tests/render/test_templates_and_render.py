"""Templates from the folder to the octets, through the cage."""

from __future__ import annotations

import email
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from gateway.cage import Cage
from gateway.contract.email_send import Attachment, SendEmail
from gateway.errors import FaultOwner, PermanentFailure, Problem, TransientFailure
from gateway.outbound.compose import Rendered
from gateway.outbound.render import PRELOAD, check_samples, fill, render
from gateway.outbound.templates import TemplateSet

SHIPPED = Path(__file__).parents[2] / "templates"
LOOPS = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.fixture
async def cage() -> AsyncIterator[Cage]:
    async with Cage(children=1, memory_bytes=128 * 1024 * 1024, cpu_seconds=0.5, preload=PRELOAD) as cage:
        yield cage


def write(folder: Path, name: str, files: Mapping[str, str | dict[str, Any]]) -> TemplateSet:
    """Makes a template that wants no params unless told otherwise."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    plain: dict[str, str | dict[str, Any]] = {"subject.txt": "Hello", "body.txt": "Hello", "schema.json": {}}
    for file, content in (plain | dict(files)).items():
        (folder / name / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return TemplateSet([folder, SHIPPED])


async def filled(
    cage: Cage, templates: TemplateSet, name: str, params: dict[str, Any], locale: str | None = None
) -> Rendered:
    return await fill(name, params, locale, cage=cage, templates=templates)


# Checking


def test_a_missing_template_names_the_nearest() -> None:
    assert TemplateSet([SHIPPED]).problems("welcom", {}) == [
        Problem("template", "there is no template 'welcom', perhaps welcome?")
    ]


@pytest.mark.parametrize("name", ["../templates/welcome", "_layout", "", "welcome/"])
def test_a_name_is_never_a_path(name: str) -> None:
    assert [problem.path for problem in TemplateSet([SHIPPED]).problems(name, {"name": "x"})] == ["template"]


def test_params_are_checked_all_at_once_without_quoting_them() -> None:
    items = [{"description": "a", "amount": 1}, {"description": "secret", "amount": None}, {"amount": 2}]
    problems = TemplateSet([SHIPPED]).problems(
        "invoice", {"customer": "", "due_date": "tomorrow", "total": 1, "items": items, "colour": "red"}
    )
    assert {problem.path: problem.message for problem in problems} == {
        "params.number": "is missing",
        "params.customer": "is shorter than 1 character",
        "params.due_date": 'is not a "date"',
        "params.items[1].amount": 'is not of types "number", "string"',
        "params.items[2].description": "is missing",
        "params.colour": "is unknown to this template",
    }


def test_broken_folders_are_named(tmp_path: Path) -> None:
    write(tmp_path, "no-body", {})
    (tmp_path / "no-body" / "body.txt").unlink()
    write(tmp_path, "no-schema", {})
    (tmp_path / "no-schema" / "schema.json").unlink()
    write(tmp_path, "bad-schema", {"schema.json": {"type": "objct"}})
    write(tmp_path, "far-schema", {"schema.json": {"$ref": "http://192.0.2.1/schema"}})
    write(tmp_path, "bad-sample", {"schema.json": {"required": ["name"]}, "sample.json": {"nam": 1}})
    write(tmp_path, "no-sample-object", {"sample.json": "[]"})
    templates = write(tmp_path, "not-text", {})
    (tmp_path / "not-text" / "body.txt").write_bytes(b"\xff\xfe")
    problems = {problem.path: problem.message for problem in templates.check()}
    assert sorted(problems) == [
        "bad-sample",
        "bad-schema",
        "far-schema",
        "no-body",
        "no-sample-object",
        "no-schema",
        "not-text",
    ]
    assert problems["bad-sample"] == "its sample: params.name: is missing"


async def test_the_shipped_templates_render_with_their_samples(cage: Cage) -> None:
    templates = TemplateSet([SHIPPED])
    assert templates.names == ["confirm_mails", "invoice", "notices", "welcome"]
    assert await check_samples(templates, cage) == []


async def test_a_template_that_does_not_compile_is_named(cage: Cage, tmp_path: Path) -> None:
    templates = write(tmp_path, "broken", {"body.txt": "{% if %}"})
    assert [problem.path for problem in await check_samples(templates, cage)] == ["broken"]


# Rendering


async def test_text_html_and_subject_come_out(cage: Cage) -> None:
    rendered = await filled(
        cage, TemplateSet([SHIPPED]), "welcome", {"name": "Jörg <b>", "link": "https://x.example/?a&b"}
    )
    assert rendered.subject == "Welcome, Jörg <b>"
    assert "Hello Jörg <b>,\n" in rendered.text
    assert "https://x.example/?a&b" in rendered.text
    assert "Jörg &lt;b&gt;" in rendered.html
    assert 'href="https://x.example/?a&amp;b"' in rendered.html
    assert 'class="text" style="padding: 28px 32px;' in rendered.html
    assert "@media" in rendered.html


async def test_a_template_without_html_is_text_only(cage: Cage, tmp_path: Path) -> None:
    assert (await filled(cage, write(tmp_path, "plain", {}), "plain", {})) == Rendered(subject="Hello", text="Hello\n")


async def test_params_are_never_template_source(cage: Cage) -> None:
    rendered = await filled(cage, TemplateSet([SHIPPED]), "welcome", {"name": "{{ 7 * 7 }}{% include 'x' %}"})
    assert rendered.subject == "Welcome, {{ 7 * 7 }}{% include 'x' %}"


async def test_a_subject_is_one_line_of_bounded_length(cage: Cage, tmp_path: Path) -> None:
    templates = write(tmp_path, "loud", {"subject.txt": "\n {{ what }}\n\n"})
    assert (await filled(cage, templates, "loud", {"what": "a\r\nBcc: x\0\u2028b"})).subject == "a Bcc: x b"
    assert len((await filled(cage, templates, "loud", {"what": "x" * 100_000})).subject) == 2000


async def test_a_param_named_like_a_method_is_the_param(cage: Cage, tmp_path: Path) -> None:
    templates = write(tmp_path, "order", {"body.txt": "{% for item in order.items %}{{ item.keys }} {% endfor %}"})
    assert (await filled(cage, templates, "order", {"order": {"items": [{"keys": 1}, {"keys": 2}]}})).text == "1 2\n"


async def test_the_locale_chooses_part_by_part(cage: Cage, tmp_path: Path) -> None:
    files = {
        "subject.de.txt": "Hallo",
        "subject.de-AT.txt": "Servus",
        "body.de.txt": "Hallo Text",
        "body.html": "<p>Hello</p>",
    }
    templates = write(tmp_path, "hello", files)
    seen = {
        locale: await filled(cage, templates, "hello", {}, locale)
        for locale in ("de_AT", "de-CH", "DE", "fr", "en", None)
    }
    assert [rendered.subject for rendered in seen.values()] == ["Servus", "Hallo", "Hallo", "Hello", "Hello", "Hello"]
    assert [rendered.text for rendered in seen.values()] == ["Hallo Text\n"] * 3 + ["Hello\n"] * 3
    assert all("Hello" in rendered.html for rendered in seen.values())


async def test_an_edited_template_holds_from_the_next_email_on(cage: Cage, tmp_path: Path) -> None:
    templates = write(tmp_path, "news", {"body.txt": "one"})
    assert (await filled(cage, templates, "news", {})).text == "one\n"
    body = tmp_path / "news" / "body.txt"
    body.write_text("two")
    os.utime(body, ns=(1, 1))
    assert (await filled(cage, templates, "news", {})).text == "two\n"
    write(tmp_path, "late", {"body.txt": "new"})
    assert (await filled(cage, templates, "late", {})).text == "new\n"


async def test_an_own_template_replaces_the_shipped_one_and_shares_its_layout(cage: Cage, tmp_path: Path) -> None:
    files = {"body.txt": '{% extends "_layout/base.txt" %}{% block content %}Mine{% endblock %}'}
    rendered = await filled(cage, write(tmp_path, "welcome", files), "welcome", {})
    assert rendered.text.startswith("Mine\n")
    assert "account or order" in rendered.text


async def test_html_fetches_nothing(cage: Cage, tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text("p { color: red }")
    html = f'<link rel="stylesheet" href="file://{tmp_path}/style.css"><link rel="stylesheet" href="http://127.0.0.1:1/"><p>x</p>'
    rendered = await filled(cage, write(tmp_path, "linked", {"body.html": html}), "linked", {})
    assert "red" not in rendered.html


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ 'a' * 10**9 }}", "ended at its limit of memory"),
        ("{{ 10 ** (10**8) }}", "ended at its limit of time"),
        (LOOPS, "ended at its limit of time"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% for a in range(2000) %}{{ 'x' * 1000 }}{% endfor %}", "makes more than 1048576 characters"),
        ("{{ missing }}", "UndefinedError: 'missing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TemplateNotFound"),
    ],
)
async def test_a_template_gone_wild_ends_at_its_limit_and_the_next_email_goes_on(
    cage: Cage, tmp_path: Path, body: str, reason: str
) -> None:
    templates = write(tmp_path, "wild", {"body.txt": body})
    with pytest.raises(PermanentFailure, match=reason) as failure:
        await filled(cage, templates, "wild", {})
    assert failure.value.owner is FaultOwner.CONTENT
    began = time.perf_counter()
    assert (await filled(cage, TemplateSet([SHIPPED]), "welcome", {"name": "Ann"})).subject == "Welcome, Ann"
    assert time.perf_counter() - began < 1


async def test_a_template_that_is_gone_waits_for_its_operator(cage: Cage) -> None:
    with pytest.raises(TransientFailure, match="template late is gone") as failure:
        await filled(cage, TemplateSet([SHIPPED]), "late", {})
    assert failure.value.owner is FaultOwner.OURS


# From the request to the octets


async def no_blob(digest: str) -> bytes:
    raise AssertionError("no blob was asked for")


async def rendered_message(cage: Cage, request: SendEmail, blobs: Mapping[str, bytes] | None = None) -> Message:
    async def read_blob(digest: str) -> bytes:
        return (blobs or {})[digest]

    async def blob_size(digest: str) -> int | None:
        return len(blobs[digest]) if blobs and digest in blobs else None

    octets = await render(
        request,
        message_id="<1@gw.example>",
        date=datetime(2026, 11, 21, tzinfo=UTC),
        default_from="Gateway <gw@gw.example>",
        cage=cage,
        templates=TemplateSet([SHIPPED]),
        read_blob=read_blob if blobs else no_blob,
        blob_size=blob_size,
    )
    return email.message_from_bytes(octets)


async def test_an_invoice_goes_out_with_its_pdf(cage: Cage) -> None:
    large = b"%PDF" + bytes(1024 * 1024)
    first = Attachment.of("invoice.pdf", b"%PDF-1.7", "application/pdf")
    second = Attachment(filename="plan.pdf", blob=Attachment.of("x", large).digest(), content_type="application/pdf")
    params = TemplateSet([SHIPPED]).sample("invoice")
    request = SendEmail(to=("ann@example.org",), template="invoice", params=params, attachments=(first, second))
    message = await rendered_message(cage, request, {second.digest(): large})
    assert message["Subject"] == "Invoice 2026-0042"
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "application/pdf",
        "application/pdf",
    ]
    files = {part.get_filename(): part.get_payload(decode=True) for part in message.walk() if part.get_filename()}
    assert files == {"invoice.pdf": b"%PDF-1.7", "plan.pdf": large}


async def test_an_app_may_bring_its_own_subject_and_text(cage: Cage) -> None:
    message = await rendered_message(cage, SendEmail(to=("ann@example.org",), subject="Grüße", text="Ça va?"))
    assert message.get_content_type() == "text/plain"
    payload = message.get_payload(decode=True)
    assert payload == "Ça va?\r\n".encode()


async def test_attachments_beyond_all_measure_are_refused_before_one_is_read(cage: Cage) -> None:
    attachments = tuple(Attachment(filename=f"{i}.bin", blob="sha256:" + "0" * 64) for i in range(20))
    request = SendEmail(to=("ann@example.org",), subject="x", text="x", attachments=attachments)

    async def blob_size(digest: str) -> int:
        return 8 * 1024 * 1024

    with pytest.raises(PermanentFailure, match="its attachments make an email of 229582940 bytes") as failure:
        await render(
            request,
            message_id="<1@gw.example>",
            date=datetime(2026, 11, 21, tzinfo=UTC),
            default_from="gw@gw.example",
            cage=cage,
            templates=TemplateSet([SHIPPED]),
            read_blob=no_blob,
            blob_size=blob_size,
        )
    assert failure.value.owner is FaultOwner.CONTENT


async def test_an_attachment_that_is_not_in_the_blob_store_is_told(cage: Cage) -> None:
    request = SendEmail(
        to=("ann@example.org",),
        subject="x",
        text="x",
        attachments=(Attachment(filename="a", blob="sha256:" + "0" * 64),),
    )
    with pytest.raises(PermanentFailure, match="is not in the blob store"):
        await rendered_message(cage, request)


async def test_a_template_that_crashes_its_child_is_the_contents_fault(tmp_path: Path) -> None:
    templates = write(tmp_path, "deep", {"body.html": "{% for i in items %}<div>{% endfor %}"})
    async with Cage(children=1, cpu_seconds=10, wall_seconds=30, preload=PRELOAD) as patient:
        with pytest.raises(PermanentFailure, match=r"template deep breaks its rendering \(SIG") as failure:
            await filled(patient, templates, "deep", {"items": [0] * 15_000})
    assert failure.value.owner is FaultOwner.CONTENT


async def test_what_editors_leave_behind_is_no_template(cage: Cage, tmp_path: Path) -> None:
    templates = write(tmp_path, "news", {"body.txt": "news"})
    (tmp_path / "news" / ".#body.html").symlink_to("ann@host.4711")
    (tmp_path / "news" / ".body.txt.swp.txt").write_bytes(b"\xff")
    assert (await filled(cage, templates, "news", {})).text == "news\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    templates = write(tmp_path, "news", {})
    (tmp_path / "news" / "body.de.txt").write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(TransientFailure, match=r"body\.de\.txt is not UTF-8: invalid start byte at octet 2"):
        templates.sources("news")
    (tmp_path / "news" / "body.de.txt").unlink()
    (tmp_path / "news" / "body.html").symlink_to("nowhere")
    with pytest.raises(TransientFailure, match=r"news/body\.html"):
        templates.sources("news")
