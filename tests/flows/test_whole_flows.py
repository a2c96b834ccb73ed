"""The flows of mail and email through a whole gateway, on every kind of house: the same, whatever the three URLs name.

All flows run side by side in one house, as they do at work; whichever fails is named.  At the end everything is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.scripted_relay import CLOSE, ScriptedRelay
from flows.place import MOODY, SENDER, Place, a_mail, house_on, opened

sys.path.append(str(Path(__file__).parents[1] / "inbound"))
from pictures import encoded, upright

import gateway
from gateway.client import open_broker
from gateway.mail.envelope import Envelope
from gateway.mail.ids import new_id
from gateway.queue.ticket import MAIL_INBOUND, Ticket

LATER, NEVER, SILENT, BOSS = "later@example.org", "never@example.org", "silent@example.org", "boss@example.org"
SCRIPT = {
    f"rcpt {LATER}": ["451 4.2.1 not now", "451 4.2.1 not now"],
    f"rcpt {NEVER}": "550 5.1.1 no such user",
    f"dot {SILENT}": [CLOSE],
}
LARGE = random.Random(5).randbytes(300 * 1024)
KINDS = {
    "files": {},
    "services": {"queue_url": "amqp_url", "database_url": "postgres_url", "blobs_url": "bucket_url"},
    "rabbitmq over files": {"queue_url": "amqp_url"},
    "postgresql alone": {"database_url": "postgres_url", "blobs_url": "database:"},
}


async def a_post_with_its_attachment_and_its_event(place: Place) -> None:
    file = ("list.csv", "text/csv", b"apples;3\r\npears;4\r\n")
    mail_id = await place.mail(a_mail("fruit", files=[file]), "posts@localhost")
    [row] = (await place.delivered(mail_id))["recipients"]
    post = await place.get(f"/v1/posts/{row['post_id']}")
    assert (post["title"], [item["filename"] for item in post["attachments"]]) == ("fruit", ["list.csv"])
    assert await place.get(f"/v1/attachments/{post['attachments'][0]['id']}") == file[2]
    await place.heard("mail.delivered", mail_id)
    assert (await place.heard("post.created", row["post_id"]))["data"]["mailbox"] == "posts"


async def a_mail_beyond_the_tickets_size_goes_by_the_blob_store(place: Place) -> None:
    mail_id = await place.mail(
        a_mail("large", files=[("large.bin", "application/octet-stream", LARGE)]), "posts@localhost"
    )
    [row] = (await place.delivered(mail_id))["recipients"]
    post = await place.get(f"/v1/posts/{row['post_id']}")
    assert await place.get(f"/v1/attachments/{post['attachments'][0]['id']}") == LARGE


async def an_album_has_its_smaller_pictures(place: Place) -> None:
    photo = encoded(upright(), "JPEG")
    octets = a_mail("harbour", to="photos@localhost", files=[("harbour.jpg", "image/jpeg", photo)])
    mail_id = await place.mail(octets, "photos@localhost")
    [row] = (await place.delivered(mail_id))["recipients"]

    async def rendered() -> dict[str, object] | None:
        [item] = (await place.get(f"/v1/posts/{row['post_id']}"))["attachments"]
        return item if item["photo"] == "rendered" else None

    item = await place.until(rendered)
    assert {made["kind"] for made in item["renditions"]} == {"thumb", "web"}
    thumb = await place.get(f"/v1/attachments/{item['id']}?rendition=thumb")
    assert 0 < len(thumb) < len(photo)


async def one_recipient_of_three_waits_alone_while_his_mailbox_fails(place: Place) -> None:
    to = ("posts@localhost", MOODY, "photos@localhost")
    mail_id = await place.mail(a_mail("three"), *to)

    async def others_have_it() -> bool:
        rows = (await place.get(f"/v1/mails/{mail_id}") or {}).get("recipients", ())
        return {row["rcpt_to"]: row["disposition"] for row in rows} == dict.fromkeys(to, "delivered") | {
            MOODY: "pending"
        }

    await place.until(others_have_it)
    await asyncio.to_thread((place.house.folder.parent / "mended").touch)
    story = await place.delivered(mail_id)
    posts = [row["post_id"] for row in story["recipients"]]
    assert len(set(posts)) == 3
    found = await place.get(f"/v1/posts?mail_id={mail_id}")
    assert sorted(row["id"] for row in found["rows"]) == sorted(posts), "nothing is stored twice"


async def a_relay_that_defers_twice_gets_it_the_third_time(place: Place) -> None:
    began = time.monotonic()
    email_id = await place.client.send("welcome", to=LATER, params={"name": "Ann"})
    [row] = (await place.email(email_id, "relayed"))["recipients"]
    assert (row["attempts"], row["copies"]) == (3, 1)
    assert time.monotonic() - began > 0.8 * (1 + 2), "the ladder was climbed"
    assert [item.recipient for item in place.relay.taken].count(LATER) == 1
    await place.heard("email.delayed", email_id)
    await place.heard("email.relayed", email_id)


async def a_refused_recipient_has_failed_and_who_asked_is_told(place: Place) -> None:
    email_id = await place.client.send("welcome", to=NEVER, params={"name": "Ann"}, notify=[BOSS])
    [row] = (await place.email(email_id, "failed"))["recipients"]
    assert row["reply"].startswith("550 5.1.1")
    await place.heard("email.failed", email_id)

    async def told() -> list[bytes]:
        return [item.octets for item in place.relay.taken if item.recipient == BOSS and item.mail_from == ""]

    [notice] = await place.until(told)
    assert NEVER.encode() in notice


async def no_reply_after_the_dot_is_unknown_and_sent_once_more(place: Place) -> None:
    email_id = await place.client.send("welcome", to=SILENT, params={"name": "Ann"})
    story = await place.email(email_id, "relayed")
    assert [row["copies"] for row in story["recipients"]] == [2]
    assert "unknown" in [line["step"] for line in story["timeline"]]
    await place.heard("email.unknown", email_id)
    assert [item.recipient for item in place.relay.taken].count(SILENT) == 1


async def who_asks_is_answered(place: Place) -> None:
    answer = await place.client.ask("welcome", to="kim@example.org", params={"name": "Kim"}, timeout_seconds=60)
    assert answer.status == "accepted"
    await place.email(answer.id, "relayed")
    refused = await place.client.ask("welcome", to="kim@example.org", params={"nome": "Kim"}, timeout_seconds=60)
    assert refused.status == "rejected"
    assert any("name" in error for error in refused.errors)


async def every_stream_goes_out_and_a_key_in_its_order(place: Place) -> None:
    urgent, bulk = [
        await place.client.send("welcome", to=f"{stream}@example.org", params={"name": "Lee"}, stream=stream)
        for stream in ("urgent", "bulk")
    ]
    first, second = [
        await place.client.send("welcome", to=f"{name}@key.test", params={"name": name}, serial_key="key")
        for name in ("first", "second")
    ]
    for email_id in (urgent, bulk, first, second):
        await place.email(email_id, "relayed")
    at_key = [item.recipient for item in place.relay.taken if item.recipient.endswith("@key.test")]
    assert at_key == ["first@key.test", "second@key.test"]


async def an_apps_own_post_is_stored(place: Place) -> None:
    file = gateway.Attachment.of("map.txt", b"here", "text/plain")
    post_id = await place.client.create_post(author="App", title="From an app", text="words", attachments=[file])

    async def stored() -> dict[str, object] | None:
        found = await place.get(f"/v1/posts/{post_id}")
        return found if found and found.get("status", "stored") == "stored" and "attachments" in found else None

    post = await place.until(stored)
    await place.heard("post.created", post_id)
    assert post["title"] == "From an app"


async def a_dead_letter_is_put_back_and_delivered(place: Place) -> None:
    """Another program is the door, and its blob comes late: later than the whole ladder."""
    octets = a_mail("late", files=[("late.bin", "application/octet-stream", LARGE[:-1])])
    digest, mail_id = hashlib.sha256(octets).hexdigest(), new_id()
    envelope = Envelope(
        mail_id=mail_id,
        mail_from=SENDER,
        rcpt_to=("posts@localhost",),
        received_at=datetime.now(UTC),
        door="another",
    )
    headers = envelope.to_headers() | {"blob": f"sha256:{digest}", "sha256": digest, "size": len(octets)}
    ticket = Ticket(queue=MAIL_INBOUND, id=mail_id, body=b"", content_type="message/rfc822", headers=headers)
    async with open_broker(place.queue_url, receipts=place.house.folder / "receipts.db") as door:
        await door.publish([ticket])
    await place.delivered(mail_id, "dead")
    await place.heard("mail.dead", mail_id)

    async def buried() -> list[dict[str, object]]:
        return [row for row in await place.rows("dead", "list") if row["id"] == mail_id]

    [letter] = await place.until(buried)
    kept = await place.post("/v1/blobs", octets)
    assert kept == {"digest": f"sha256:{digest}", "size": len(octets)}
    assert (await place.command("dead", "retry", str(letter["number"]))).returncode == 0
    [row] = (await place.delivered(mail_id))["recipients"]
    assert (await place.get(f"/v1/posts/{row['post_id']}"))["title"] == "late"


FLOWS: tuple[Callable[[Place], Awaitable[None]], ...] = (
    a_post_with_its_attachment_and_its_event,
    a_mail_beyond_the_tickets_size_goes_by_the_blob_store,
    an_album_has_its_smaller_pictures,
    one_recipient_of_three_waits_alone_while_his_mailbox_fails,
    a_relay_that_defers_twice_gets_it_the_third_time,
    a_refused_recipient_has_failed_and_who_asked_is_told,
    no_reply_after_the_dot_is_unknown_and_sent_once_more,
    who_asks_is_answered,
    every_stream_goes_out_and_a_key_in_its_order,
    an_apps_own_post_is_stored,
    a_dead_letter_is_put_back_and_delivered,
)


async def everything_is_counted(place: Place) -> None:
    """Nothing waits any more, and every promise is accounted for."""

    async def quiet() -> bool:
        depths = await place.rows("queues")
        return not any(row["ready"] or row["leased"] or row["delayed"] or row["dead"] for row in depths)

    await place.until(quiet)
    [balance] = await place.rows("reconcile")
    assert balance["missing"] == []
    assert balance["accepted"] == balance["accounted"]
    # 5 mails, 9 requests for email, a post, and the notice; apps on RabbitMQ leave no receipts.
    assert balance["accepted"] + balance["extra"] == 16


@pytest.fixture(params=[*list(KINDS)[:3], pytest.param(list(KINDS)[3], marks=pytest.mark.long)])
def urls(request: pytest.FixtureRequest) -> dict[str, str]:
    """The URLs that make a house of this kind."""
    fixtures = {"amqp_url", "postgres_url", "bucket_url"}
    found = KINDS[request.param].items()
    return {key: request.getfixturevalue(value) if value in fixtures else value for key, value in found}


async def test_every_flow_comes_to_its_end_on_every_kind_of_house(urls: dict[str, str], tmp_path: Path) -> None:
    async with ScriptedRelay(SCRIPT) as relay:
        house = house_on(tmp_path / "house", relay.port, urls)
        queue_url = urls.get("queue_url", f"sqlite:///{house.folder}/queue.db")
        async with opened(house, relay, queue_url) as place:
            ended = await asyncio.gather(*(flow(place) for flow in FLOWS), return_exceptions=True)
            faults = [error for error in ended if isinstance(error, BaseException)]
            for flow, error in zip(FLOWS, ended, strict=True):
                if isinstance(error, BaseException):
                    error.add_note(f"in the flow: {flow.__name__.replace('_', ' ')}")
            if faults:
                raise BaseExceptionGroup("flows that did not come to their end", faults)
            await everything_is_counted(place)
