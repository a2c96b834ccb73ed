"""What the commands do: each opens what it needs, does one thing, closes.  `cli` words them, `app` builds their parts.

A look makes no files: where nothing was ever stored there is nothing to list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import app
from gateway.app import Store, open_queue, open_store, open_templates
from gateway.client import Client, sqlite_path
from gateway.errors import PermanentFailure, Problem, QueueUnavailable
from gateway.mail.disposition import Disposition
from gateway.mail.ids import new_id
from gateway.mail.people import person_key
from gateway.mail.secret_address import redacted
from gateway.runtime import utc_now
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.queue.broker import Broker, DeadTicket
    from gateway.store.mails import DeliveryRecord
    from gateway.watch.doctor import Finding


def is_new(settings: Settings) -> bool:
    """Whether this queue has never been used."""
    return not sqlite_path(settings.queue_url).exists()


async def send(
    settings: Settings, template: str, to: Sequence[str], attach: Sequence[Path], fields: Mapping[str, Any]
) -> str:
    """Queues one email; its params are checked here first."""
    async with open_queue(settings) as broker, Client(broker=broker, check=open_templates(settings).problems) as client:
        return await client.send(template, to=to, attachments=attach, **fields)


async def show(settings: Settings, item: str) -> dict[str, dict[str, Any]]:
    """The stories of every mail, email or post whose id begins with `item`."""
    async with _existing_store(settings) as store:
        if store is None:
            return {}
        found = {}
        for kind, subject in await store.mails.find(item):
            tell = {"email": store.ledger.story, "mail": store.mails.story, "post": store.mails.post_story}[kind]
            found[subject] = await tell(subject)
        _add_reply_addresses(settings, found)
        return {subject: story for subject, story in found.items() if story is not None}


def _add_reply_addresses(settings: Settings, found: dict[str, Any]) -> None:
    """Posts of a thread get the address whose mail joins it."""
    for post in found.values():
        if post and post.get("thread_id"):
            post["reply_to"] = app.open_support(settings).reply_address(post["address"], post["thread_id"])


async def rows(settings: Settings, kind: str, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of one of the lists."""
    if kind == "templates":
        return open_templates(settings).rows()
    if kind in {"queues", "dead"}:
        if not sqlite_path(settings.queue_url).exists():
            return []
        async with open_queue(settings) as broker:
            return await (_queue_rows(broker) if kind == "queues" else _dead_rows(broker, **filters))
    async with _existing_store(settings) as store:
        if store is None:
            return []
        if kind == "people":
            return [{"address": person.address, "name": person.name} for person in await store.people.all()]
        lists = {"emails": store.ledger.list_emails, "mails": store.mails.list_mails, "posts": store.mails.list_posts}
        return list(await lists[kind](**filters))


async def _queue_rows(broker: Broker) -> list[dict[str, Any]]:
    return [asdict(depth) for depth in await broker.depths()]


async def _dead_rows(broker: Broker, *, limit: int = 1000) -> list[dict[str, Any]]:
    return [_dead_row(item) for item in await broker.dead(limit=limit)]


def _dead_row(item: DeadTicket) -> dict[str, Any]:
    told = {"number": item.number, "id": item.ticket.id, "queue": item.queue, "box": item.box}
    return told | {"died_at": item.died_at, "reason": item.reason}


async def dead_one(settings: Settings, number: str) -> dict[str, Any] | None:
    """One dead letter with what its ticket carried."""
    if not sqlite_path(settings.queue_url).exists():
        return None
    async with open_queue(settings) as broker:
        item = await broker.dead_one(number)
    if item is None:
        return None
    ticket = item.ticket
    carried = {"attempt": ticket.attempt, "size": len(ticket.body), "content_type": ticket.content_type}
    next_step = f"gateway dead retry {number}, or gateway dead drop {number}"
    return _dead_row(item) | carried | {"headers": dict(ticket.headers), "next_step": next_step}


async def release(settings: Settings, item: str) -> int:
    """Held recipients of a mail or an email go on: a mail before its mailbox again, an email to its relay."""
    async with _existing_store(settings) as store:
        if store is None:
            return 0
        kind, subject = await _the_one(store, item)
        if kind == "email":
            return await store.ledger.release(subject)
        rows = await store.mails.deliveries(subject)
        held = [row for row in rows if row.disposition is Disposition.HELD]
        await _replay(settings, store, rows, [row.rcpt_to for row in held], is_release=True)
        return len(held)


async def explain(
    settings: Settings, octets: bytes, rcpt_to: Sequence[str], mail_from: str, *, client: str = "", helo: str = ""
) -> list[dict[str, Any]]:
    """What ingestion would decide about a mail, and why, for each recipient; writes nothing."""
    from gateway.inbound.decide import Decider
    from gateway.inbound.explain import explain
    from gateway.mail.envelope import Envelope

    app.check_values(settings)
    envelope = Envelope(
        mail_id=new_id(),
        mail_from=mail_from,
        rcpt_to=tuple(rcpt_to),
        received_at=utc_now(),
        door="explain",
        client=client,
        helo=helo,
    )
    support = app.open_support(settings, is_look=True)
    who = app.open_who(settings, is_look=True)
    router = app.router(settings, support, who)
    async with app.open_cage(settings) as cage, _existing_store(settings) as store:
        decider = Decider(
            cage=cage,
            router=router,
            mailboxes=app.mailboxes(settings, support),
            clock=utc_now,
            threads=store.mails if store else None,
            authenticate=app.open_authenticator(settings, cage).authenticate,
            who=who,
        )
        return await explain(octets, envelope, decider, router)


async def replay(settings: Settings, items: Sequence[str]) -> list[dict[str, Any]]:
    """Has held, failed and dead mails processed anew; a line per recipient says what is done.

    Raises PermanentFailure for an id that is not one mail's, before anything is done.
    """
    async with _existing_store(settings) as store:
        if store is None:
            raise PermanentFailure(f"nothing is known of {items[0]}")
        subjects = []
        for item in items:
            kind, subject = await _the_one(store, item)
            if kind != "mail":
                raise PermanentFailure(f"{subject} is no mail ({kind}); only mails are replayed")
            subjects.append(subject)
        return [line for subject in dict.fromkeys(subjects) for line in await _replay_mail(settings, store, subject)]


async def _replay_mail(settings: Settings, store: Store, mail_id: str) -> list[dict[str, Any]]:
    from gateway.inbound.replay import is_replayable

    rows = await store.mails.deliveries(mail_id)
    await _replay(settings, store, rows, [row.rcpt_to for row in rows if is_replayable(row)])
    return [
        {
            "id": mail_id,
            "rcpt_to": redacted(row.rcpt_to),
            "disposition": str(row.disposition),
            "action": "replayed" if is_replayable(row) else "left alone",
        }
        for row in rows
    ]


async def _replay(
    settings: Settings,
    store: Store,
    rows: Sequence[DeliveryRecord],
    recipients: Sequence[str],
    *,
    is_release: bool = False,
) -> None:
    """Publishes tickets for some recipients of a mail; the dead letters that nobody else waits for go away."""
    from gateway.inbound.replay import replay_tickets

    if not recipients:
        return
    mail_id = rows[0].mail_id
    cared_for = {*recipients, *(row.rcpt_to for row in rows if row.disposition.is_final)}
    mail = await store.mails.stored(mail_id)
    assert mail is not None  # its deliveries refer to it
    async with open_queue(settings) as broker:
        await broker.publish(replay_tickets(mail, recipients, is_release=is_release))
        for letter in await broker.dead():
            named = letter.ticket.headers.get("rcpt_to")
            if letter.ticket.id == mail_id and isinstance(named, list) and cared_for.issuperset(named):
                await broker.drop_dead(letter.number)


async def _the_one(store: Store, item: str) -> tuple[str, str]:
    """The (kind, id) of the one subject whose id begins so; raises PermanentFailure."""
    found = await store.mails.find(item)
    if not found:
        raise PermanentFailure(f"nothing is known of {item}")
    if len(found) > 1:
        raise PermanentFailure(f"{item} is not unique: {', '.join(subject for _, subject in found)}")
    return found[0]


async def add_person(settings: Settings, address: str, name: str) -> None:
    async with open_store(settings) as store:
        await store.people.add(address, name)


async def remove_person(settings: Settings, address: str) -> bool:
    async with open_store(settings) as store:
        return await store.people.remove(address)


async def rotate_addresses(settings: Settings, address: str) -> bool:
    """A person's secret addresses made so far are void from now on."""
    async with open_store(settings) as store:
        return await store.people.rotate(address)


async def new_address(settings: Settings, person: str, mailbox: str, *, days: int | None) -> str:
    """A secret address for a registered person; raises PermanentFailure."""
    app.check_values(settings)
    async with _existing_store(settings) as store:
        found = (
            [item for item in await store.people.all() if person_key(item.address) == person_key(person)]
            if store
            else []
        )
    if not found:
        raise PermanentFailure(f"{person} is not registered: gateway people add {person}")
    try:
        return app.open_who(settings).new_address(app.router(settings).route(mailbox), mailbox, found[0], days=days)
    except ValueError as error:
        raise PermanentFailure(str(error)) from None


async def cancel(settings: Settings, item: str) -> int:
    """What is not yet sent of an email never will be."""
    async with _existing_store(settings) as store:
        if store is None:
            return 0
        kind, subject = await _the_one(store, item)
        return await store.ledger.cancel(subject) if kind == "email" else 0


async def retry_dead(settings: Settings, number: str) -> bool:
    async with open_queue(settings) as broker:
        done: bool = await broker.retry_dead(number)
        return done


async def drop_dead(settings: Settings, number: str) -> bool:
    async with open_queue(settings) as broker:
        done: bool = await broker.drop_dead(number)
        return done


async def check_templates(settings: Settings) -> list[Problem]:
    """Renders every template with its sample in the cage."""
    from gateway.outbound.render import check_samples

    async with app.open_cage(settings) as cage:
        return await check_samples(open_templates(settings), cage)


async def _look_at_queue(settings: Settings) -> list[Finding]:
    from gateway.watch import doctor as look

    try:
        async with open_queue(settings) as broker:
            return look.check_queues(await broker.depths())
    except QueueUnavailable as error:
        return [look.Finding(level="wrong", what="queue", finding=str(error), next_step=look.QUEUE_STEP)]


async def doctor(settings: Settings) -> list[Finding]:
    """Looks at everything the gateway stands on."""
    from gateway.watch import doctor as look

    app.check_values(settings)
    findings = look.check_data_dir(settings.data_dir, settings.min_free_bytes)
    findings += look.check_relays([app.relay_spec(item) for item in settings.relays])
    findings += look.check_templates(await check_templates(settings))
    if sqlite_path(settings.queue_url).exists():
        findings += await _look_at_queue(settings)
    findings.append(await look.check_store(sqlite_path(settings.database_url, "database_url")))
    return findings


@asynccontextmanager
async def _existing_store(settings: Settings) -> AsyncIterator[Store | None]:
    """The store, or None where nothing was ever stored: a look makes no files."""
    if not sqlite_path(settings.database_url).exists():
        yield None
        return
    async with open_store(settings) as store:
        yield store
