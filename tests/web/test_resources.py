"""Blobs, attachments, posts, mails and metrics through the real server, and that OpenAPI names every field they tell."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import WebHouse, open_web_house
from pydantic import BaseModel

from gateway.contract.email_send import SendEmail
from gateway.errors import Problem
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.runtime import utc_now
from gateway.store.posts import NewAttachment, NewPost
from gateway.web.api import models
from gateway.web.files import safe_headers
from gateway.web.serve import PatientProtocol

PNG = b"\x89PNG\r\n\x1a\n"


async def take_in(house: WebHouse, *attachments: NewAttachment, rcpt_to: str = "posts@localhost") -> tuple[str, str]:
    """A mail delivered as a post; returns both ids."""
    mail_id = new_id()
    envelope = Envelope(
        mail_id=mail_id,
        mail_from="ann@example.org",
        rcpt_to=(rcpt_to, "held@localhost"),
        received_at=utc_now(),
        door="smtp",
    )
    await house.store.mails.record_received(envelope, b"x", 1, "0" * 64, subject="Hello")
    await house.store.mails.record_held(mail_id, "held@localhost", "posts", "why")
    post = NewPost(
        mailbox="posts",
        kind="post",
        author="Ann",
        author_address="ann@example.org",
        title="Hello",
        text="text",
        html=None,
        created_at=utc_now(),
        attachments=attachments,
    )
    done = await house.store.mails.record_delivered(mail_id, rcpt_to, "posts", post)
    assert done.post_id is not None
    return mail_id, done.post_id


async def attached(house: WebHouse, octets: bytes, filename: str, sniffed: str) -> str:
    """An attachment with these octets; returns its id."""
    await house.store.blobs.put(octets)
    item = NewAttachment(
        position=0,
        filename=filename,
        content_type="text/html",
        sniffed=sniffed,
        size=len(octets),
        sha256=hashlib.sha256(octets).hexdigest(),
    )
    _, post_id = await take_in(house, item)
    post = await house.store.mails.post(post_id)
    assert post is not None
    return str(post["attachments"][0]["id"])


async def test_a_blob_is_kept_as_it_comes_and_named_by_its_digest(house: WebHouse, http: httpx.AsyncClient) -> None:
    octets = bytes(range(256)) * 40_000
    answer = await http.post("/v1/blobs", content=octets)
    digest = "sha256:" + hashlib.sha256(octets).hexdigest()
    assert (answer.status_code, answer.json()) == (201, {"digest": digest, "size": len(octets)})
    assert await house.store.blobs.get(digest) == octets
    assert (await http.post("/v1/blobs", content=octets)).json()["digest"] == digest
    kept = [item.name for item in (house.settings.data_dir / "blobs").rglob("*") if item.is_file()]
    assert kept.count(digest.removeprefix("sha256:")) == 1


async def test_a_blob_cut_off_on_its_way_leaves_nothing(house: WebHouse) -> None:
    await house.raw_and_leave(b"POST /v1/blobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nabc")
    async with house.http() as http:
        await http.get("/healthz")
    assert list((house.settings.data_dir / "blobs").glob("*/*")) == []


async def test_an_answer_that_nobody_reads_ends_its_connection(
    house: WebHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up, look = asyncio.Event(), PatientProtocol._look_at_reader

    def noted(self: PatientProtocol, left_before: int) -> None:
        look(self, left_before)
        if self.transport.is_closing():
            given_up.set()

    monkeypatch.setattr(PatientProtocol, "reading_seconds", 0.2)
    monkeypatch.setattr(PatientProtocol, "_look_at_reader", noted)
    octets = bytes(32 * 1024 * 1024)
    attachment_id = await attached(house, octets, "large.bin", "application/octet-stream")
    reader, writer = await asyncio.open_connection(*house.address)
    writer.write(b"GET /v1/attachments/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % attachment_id.encode())
    async with asyncio.timeout(60):
        await given_up.wait()
        said = 0
        with suppress(ConnectionResetError):
            while piece := await reader.read(1024 * 1024):
                said += len(piece)
    writer.close()
    assert said < len(octets)


@pytest.mark.parametrize(
    ("asked", "status", "told", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99999999999", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=" + "9" * 500 + "-", 200, b"0123456789", None),
    ],
)
async def test_an_attachment_is_given_in_the_range_that_is_asked_for(
    house: WebHouse, http: httpx.AsyncClient, asked: str, status: int, told: bytes, content_range: str | None
) -> None:
    attachment_id = await attached(house, b"0123456789", "film.mp4", "video/mp4")
    answer = await http.get(f"/v1/attachments/{attachment_id}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, told)
    assert answer.headers.get("content-range") == content_range
    if status != 416:
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-disposition"].startswith("attachment")


async def test_head_is_answered_as_get_but_where_an_answer_never_ends(house: WebHouse, http: httpx.AsyncClient) -> None:
    await take_in(house)
    for path in ("/healthz", "/readyz", "/v1/mails", "/v1/openapi.json", "/login"):
        whole, head = await http.get(path), await http.head(path)
        assert (whole.status_code, head.status_code, head.content) == (200, 200, b""), path
        assert head.headers["content-length"] == str(len(whole.content))
    assert (await http.head("/v1/events")).status_code == 405


async def test_no_blob_is_taken_when_the_disk_is_short(tmp_path: Path) -> None:
    async with open_web_house(tmp_path, min_free_bytes=2**60) as house, house.http() as http:
        answer = await http.post("/v1/blobs", content=b"x")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "300")


@pytest.mark.parametrize(
    ("sniffed", "content_type", "kind"),
    [
        ("image/png", "image/png", "inline"),
        ("text/html", "text/plain; charset=utf-8", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("application/pdf", "application/pdf", "attachment"),
        ("text/html; charset=x\r\nX-Evil: 1", "application/octet-stream", "attachment"),
        ("", "application/octet-stream", "attachment"),
    ],
)
async def test_attachments_run_nowhere(
    house: WebHouse, http: httpx.AsyncClient, sniffed: str, content_type: str, kind: str
) -> None:
    answer = await http.get(f"/v1/attachments/{await attached(house, PNG, 'a.png', sniffed)}")
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == content_type
    assert answer.headers["content-disposition"] == f'{kind}; filename="a.png"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    ("filename", "told"),
    [
        ("Grüße 2026.pdf", "filename=\"Gr__e 2026.pdf\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe%202026.pdf"),
        ('a"; filename="evil.exe', 'filename="a_; filename=_evil.exe"'),
        ("../../etc/passwd", 'filename="_.._etc_passwd"'),
        ("a\r\nX-Evil: 1", 'filename="a__X-Evil: 1"'),
        ("photo\u202egnp.exe", 'filename="photo_gnp.exe"'),
        ("\ud800", "filename=\"_\"; filename*=UTF-8''%3F"),
        ("", 'filename="attachment"'),
        ("x" * 500, f'filename="{"x" * 200}"'),
    ],
)
def test_names_of_attachments_are_told_as_rfc_6266_and_8187_want(filename: str, told: str) -> None:
    assert safe_headers(filename, "application/pdf")["Content-Disposition"] == f"attachment; {told}"


async def test_an_apps_post_is_queued_under_its_own_id(house: WebHouse, http: httpx.AsyncClient) -> None:
    key = new_id()
    answer = await http.post("/v1/posts", json={"author": "Ann", "title": "Hi"}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/posts/{key}")
    [depth] = [depth for depth in await house.broker.depths() if depth.name == "post.create"]
    assert depth.ready == 1
    assert (await http.post("/v1/posts", json={"author": "Ann"})).json()["errors"][0]["path"] == "title"


async def test_a_held_mail_is_released_once(house: WebHouse, http: httpx.AsyncClient) -> None:
    mail_id, _ = await take_in(house)
    answer = await http.post(f"/v1/mails/{mail_id}/release")
    assert (answer.status_code, answer.json()) == (200, {"id": mail_id, "changed": 1})
    assert [depth.ready for depth in await house.broker.depths() if depth.name == "mail.inbound"] == [1]
    assert (await http.post(f"/v1/mails/{new_id()}/release")).status_code == 404


async def test_metrics_are_told_where_somebody_keeps_them(tmp_path: Path) -> None:
    def metrics() -> tuple[bytes, str]:
        return b"gateway_up 1\n", "text/plain; version=0.0.4; charset=utf-8"

    async with open_web_house(tmp_path, changes={"metrics": metrics}) as house, house.http() as http:
        answer = await http.get("/metrics")
        assert (answer.status_code, answer.text) == (200, "gateway_up 1\n")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def unnamed(answer: dict[str, Any], model: type[BaseModel]) -> set[str]:
    return set(answer) - set(model.model_fields)


async def test_openapi_names_every_field_that_is_told(house: WebHouse, http: httpx.AsyncClient) -> None:
    await attached(house, PNG, "a.png", "image/png")
    email = SendEmail.model_validate({"to": ["ann@example.org"], "subject": "s", "text": "t"})
    await house.store.ledger.record_accepted(
        email, app="", content_hash="h", ticket_id=email.id, stream="normal", message_id="<x@x>"
    )
    rejected = new_id()
    await house.store.ledger.record_rejected(rejected, app="", problems=[Problem("to", "is needed")])
    lines = {kind: (await http.get(f"/v1/{kind}")).json()["rows"] for kind in ("mails", "emails", "posts")}
    stories = {
        models.MailStory: f"/v1/mails/{lines['mails'][0]['id']}",
        models.EmailStory: f"/v1/emails/{email.id}",
        models.RejectedStory: f"/v1/emails/{rejected}",
        models.PostStory: f"/v1/posts/{lines['posts'][0]['id']}",
    }
    for kind, model in (("mails", models.MailLine), ("emails", models.EmailLine), ("posts", models.PostLine)):
        for line in lines[kind]:
            assert unnamed(line, model) == set()
            model.model_validate(line)
    for story, path in stories.items():
        answer = (await http.get(path)).json()
        assert unnamed(answer, story) == set(), path
        story.model_validate(answer)
    post = (await http.get(stories[models.PostStory])).json()
    assert unnamed(post["attachments"][0], models.AttachmentStory) == set()
    mail = (await http.get(stories[models.MailStory])).json()
    assert [unnamed(item, models.MailRecipient) for item in mail["recipients"]] == [set(), set()]
