"""What the commands do: each opens what it needs, does one thing, closes.  `cli` words them, `app` builds their parts.

A look makes no files: where nothing was ever stored there is nothing to list.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import app
from gateway.app import Store, open_queue, open_store, open_templates
from gateway.client import Client, queue_file
from gateway.errors import PermanentFailure, Problem, QueueUnavailable, SettingsError, StoreUnavailable
from gateway.mail.ids import new_id
from gateway.mail.people import person_key
from gateway.mail.tokens import INVITATION
from gateway.runtime import utc_now
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.queue.broker import Broker, DeadTicket
    from gateway.watch.doctor import Finding
    from gateway.watch.operator import Operator
    from gateway.watch.reconcile import Balance


def is_new(settings: Settings) -> bool:
    """Whether this queue has never been used; one on RabbitMQ counts as used."""
    path = queue_file(settings.queue_url)
    return path is not None and not path.exists()


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


async def rows(settings: Settings, kind: Any, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of one of the lists."""
    if kind == "templates":
        return open_templates(settings).rows()
    if kind in {"queues", "dead"}:
        if is_new(settings):
            return []
        async with open_queue(settings) as broker:
            return await (_queue_rows(broker) if kind == "queues" else _dead_rows(broker, **filters))
    async with _existing_store(settings) as store:
        if store is None:
            return []
        if kind == "people":
            return [{"address": person.address, "name": person.name} for person in await store.people.all()]
        if kind in {"users", "keys"}:
            return await (store.access.users() if kind == "users" else store.access.keys())
        return await store.lists.newest(kind, **filters)


async def _queue_rows(broker: Broker) -> list[dict[str, Any]]:
    return [asdict(depth) for depth in await broker.depths()]


async def _dead_rows(broker: Broker, *, limit: int = 1000) -> list[dict[str, Any]]:
    return [_dead_row(item) for item in await broker.dead(limit=limit)]


def _dead_row(item: DeadTicket) -> dict[str, Any]:
    told = {"number": item.number, "id": item.ticket.id, "queue": item.queue, "box": item.box}
    return told | {"died_at": item.died_at, "reason": item.reason}


async def dead_one(settings: Settings, number: str) -> dict[str, Any] | None:
    """One dead letter with what its ticket carried."""
    if is_new(settings):
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
    async with _operator(settings) as operator:
        return await operator.release(item) if operator else 0


async def discard(settings: Settings, item: str) -> int:
    """Nothing is made of what is held of a mail, nothing held of an email is sent."""
    async with _operator(settings) as operator:
        return await operator.discard(item) if operator else 0


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
        by_trusted_host=True,
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


def export_recipients(settings: Settings, path: Path | None) -> tuple[str, bool]:
    """The recipients as a Postfix table, written to the file if one is named; (the text, whether the file is new)."""
    from gateway.inbound.recipient_map import recipient_map, write_map

    app.check_values(settings)
    text = recipient_map(app.router(settings))
    return text, path is not None and write_map(path, text)


async def replay(settings: Settings, items: Sequence[str]) -> list[dict[str, Any]]:
    """Has held, failed and dead mails processed anew; a line per recipient says what is done.

    Raises PermanentFailure for an id that is not one mail's, before anything is done.
    """
    async with _operator(settings) as operator:
        if operator is None:
            raise PermanentFailure(f"nothing is known of {items[0]}")
        return await operator.replay(items)


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
    async with _operator(settings) as operator:
        return await operator.cancel(item) if operator else 0


async def hold(settings: Settings, items: Sequence[str]) -> dict[str, int]:
    """What is not yet sent of these emails waits for a person; how many recipients of each.

    Raises PermanentFailure for an id that is not one email's.
    """
    async with _operator(settings) as operator:
        if operator is None:
            raise PermanentFailure(f"nothing is known of {items[0]}")
        return {item: await operator.hold(item) for item in items}


async def retry_dead(settings: Settings, number: str) -> bool:
    async with _operator(settings) as operator:
        return operator is not None and await operator.retry_dead(number)


async def drop_dead(settings: Settings, number: str) -> bool:
    async with _operator(settings) as operator:
        return operator is not None and await operator.drop_dead(number)


async def reconcile(settings: Settings) -> Balance:
    """Counts what was accepted; raises QueueUnavailable or StoreUnavailable when something cannot be asked."""
    from gateway.store.accounting import Accounting
    from gateway.watch import reconcile as counting

    if is_new(settings):
        return counting.Balance(accepted=0, missing=(), extra=0)
    async with open_queue(settings) as broker, _existing_store(settings) as store:
        books = Accounting(store.database) if store else counting.NoBooks()
        balance: Balance = await counting.reconcile(app.receipted(broker), books)
    if store is None and balance.missing:
        text = f"there is no store, and {len(balance.missing)} of the {balance.accepted} accepted must be in it"
        raise StoreUnavailable(f"{text}: mind database_url")
    return balance


async def alarm_test(settings: Settings) -> list[dict[str, str]]:
    """Sends a test to each admin, all at once; a line for each."""
    from gateway.watch.alarms.sending import deliver, trial

    app.check_values(settings)
    admins = app.admins(settings)
    failures = await asyncio.gather(*(deliver(admin, trial(settings.hostname)) for admin in admins))
    return [
        {"admin": admin.place, "service": admin.service, "outcome": "failed" if why else "sent", "why": why}
        for admin, why in zip(admins, failures, strict=True)
    ]


async def check_templates(settings: Settings) -> list[Problem]:
    """Renders every template with its sample in the cage."""
    from gateway.outbound.render import check_samples

    async with app.open_cage(settings) as cage:
        return await check_samples(open_templates(settings), cage)


async def _look_at_queue(settings: Settings) -> list[Finding]:
    from gateway.watch import doctor as look

    if queue_file(settings.queue_url) is None:
        from gateway.queue.amqp_survey import survey
        from gateway.queue.amqp_url import amqp_urls

        surveyed = await survey(amqp_urls(settings.queue_url))
        findings = [look.Finding(what="queue", **asdict(item)) for item in surveyed.found]
        return findings + (await _look_into_queue(settings) if surveyed.is_whole else [])
    return await _look_into_queue(settings)


async def _look_into_queue(settings: Settings) -> list[Finding]:
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
    findings += look.check_certificate(
        app.tls_pair(settings),
        hostname=settings.hostname,
        now=utc_now(),
        is_public=not app.is_loopback(settings.smtp_listen),
    )
    findings += look.check_own_mail_server(
        settings.trusted_authserv_id,
        has_trusted_host=bool(settings.trusted_hosts) or settings.lmtp_listen.startswith("unix:"),
    )
    findings += look.check_templates(await check_templates(settings))
    if not is_new(settings):
        findings += await _look_at_queue(settings)
    findings += look.check_alarms(settings.data_dir, admins=len(settings.admins))
    findings += [look.check_left(str(problem)) for problem in await app.stranded(settings)]
    findings.append(await look.check_store(settings.database_url, known=app.ledger_mark(settings).known))
    is_begun = app.blob_mark(settings).knows(settings.blobs_url)
    findings += await look.check_blobs(settings.blobs_url, settings.database_url, is_known=is_begun)
    return findings


def schema(name: str) -> dict[str, Any]:
    """A contract as JSON Schema, `asyncapi` or `openapi`; raises PermanentFailure for a name that is none."""
    from gateway.contract.documents import MODELS, asyncapi, json_schema

    if name == "openapi":
        from gateway.web.api import described_api, openapi_document

        return openapi_document(described_api())
    if name == "asyncapi":
        return asyncapi()
    if name not in MODELS:
        raise PermanentFailure(f"no schema {name!r}; there are {', '.join((*MODELS, 'asyncapi', 'openapi'))}")
    return json_schema(name)


async def add_user(settings: Settings, name: str, password: str) -> bool:
    """Makes a user; False where the name is taken."""
    from gateway.web.passwords import Passwords

    kept = await Passwords().keep(password)
    async with open_store(settings) as store:
        return await store.access.add_user(name, kept)


async def set_password(settings: Settings, name: str, password: str) -> bool:
    """Gives a user another password and ends his sessions; False where there is no such user."""
    from gateway.web.passwords import Passwords

    kept = await Passwords().keep(password)
    async with open_store(settings) as store:
        return await store.access.set_password(name, kept)


async def remove_user(settings: Settings, name: str) -> bool:
    async with open_store(settings) as store:
        return await store.access.remove_user(name)


async def invite(settings: Settings, name: str) -> str:
    """A link with which somebody chooses the password of a new user: good once, for a day."""
    tokens = app.open_tokens(settings)
    async with open_store(settings) as store:
        invitation_id = await store.access.invite(name)
    base = settings.public_url
    return f"{base}/invitation/{tokens.sign(INVITATION, invitation_id)}"


async def add_key(settings: Settings, app_name: str, scopes: Sequence[str]) -> str:
    """Makes a key for an app and returns it: the only time it is told."""
    async with open_store(settings) as store:
        return await store.access.add_key(app_name, scopes)


async def revoke_key(settings: Settings, prefix: str) -> bool:
    async with open_store(settings) as store:
        return await store.access.revoke_key(prefix)


@asynccontextmanager
async def _existing_store(settings: Settings) -> AsyncIterator[Store | None]:
    """The store, or None where nothing was ever stored: a look makes no files. Raises StoreUnavailable for one that is gone."""
    file = app.database_file(settings)
    if file is not None and not file.exists() and not app.ledger_mark(settings).known:
        yield None
        return
    async with open_store(settings) as store:
        yield store


@asynccontextmanager
async def _operator(settings: Settings) -> AsyncIterator[Operator | None]:
    """The operator's desk for whoever is at the terminal, None where nothing was ever queued or stored."""
    from gateway.watch.operator import BY_COMMAND

    file = app.database_file(settings)
    if file is not None and not file.exists() and is_new(settings):
        yield None
        return
    async with open_queue(settings) as broker, open_store(settings) as store:
        yield app.operator(store, broker, by=BY_COMMAND)


async def held_back(settings: Settings) -> list[dict[str, Any]]:
    """The emails that are held because the ledger went back."""
    from gateway.store.ledger_mark import WENT_BACK, held_back

    async with _existing_store(settings) as store:
        if store is None:
            return []
        lines = [
            line for item in await held_back(store.database) for line in await store.lists.newest("emails", id=item)
        ]
    return [line for line in lines if line["reason"] == WENT_BACK]


async def recover(settings: Settings, *, is_resend: bool) -> int:
    """Lets what the ledger's going back held go on, or cancels it; returns how many recipients."""
    from gateway.store.ledger_mark import held_back

    async with _existing_store(settings) as store:
        if store is None:
            return 0
        decide = store.ledger.release if is_resend else store.ledger.cancel
        return sum([await decide(email_id) for email_id in await held_back(store.database)])


async def hold_restored(settings: Settings) -> int:
    """Holds what the ledger calls open, since it came out of a backup together with its mark; returns how many recipients."""
    from gateway.app.in_use import emptied
    from gateway.store.ledger_mark import begin_anew, hold_what_is_open, position_of

    with emptied(settings.data_dir):
        async with _existing_store(settings) as store:
            if store is None:
                return 0
            held = await hold_what_is_open(store.database, store.ledger, now=store.database.clock())
            await begin_anew(store.database, store.mark, (await position_of(store.database)).epoch)
            return held


async def upgrade_store(settings: Settings) -> tuple[str | None, str]:
    """Leads the schema up, however long it takes; returns the version it had and the one it has."""
    from gateway.store.database import open_as_it_is
    from gateway.store.migrations import HEAD, current_version, upgrade

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    known = app.ledger_mark(settings).known
    database = await open_as_it_is(settings.database_url, patiently=True, known=known)
    try:
        had = await current_version(database)
        await upgrade(database)
    finally:
        await database.close()
    return had, HEAD


def store_grants(settings: Settings, *, app_role: str, worker_role: str, schema: str) -> list[str]:
    """The SQL that gives an app's role what is published and the worker's role the tables."""
    from gateway.store.published import grant_statements

    if app.database_file(settings) is not None:
        raise SettingsError([Problem("database_url", "a file has no roles; grants are for postgresql://")])
    return grant_statements(app_role=app_role, worker_role=worker_role, schema=schema)


async def what_moves(settings: Settings, source: str, target: str) -> list[app.Move]:
    """What `gateway move` carries: the one named, or all that the settings left behind in `data_dir`."""
    app.check_values(settings)
    return [await app.what_moves(source, target)] if source else await app.what_is_left(settings)


async def migrate_queues(settings: Settings) -> list[str]:
    """Brings RabbitMQ's declarations to this version's; a line for each change. Raises SettingsError for another engine."""
    from gateway.queue.amqp_migrate import migrate
    from gateway.queue.amqp_url import amqp_urls

    if queue_file(settings.queue_url) is not None:
        raise SettingsError([Problem("queue_url", "a file needs no migration; this is for amqp(s)://")])
    return await migrate(amqp_urls(settings.queue_url))


def queue_grants(app_name: str, vhost: str) -> list[str]:
    """The words for rabbitmqctl that give an app's user its rights."""
    from gateway.queue.topology import grants

    verb, *rest = grants(app_name)
    return [verb, "-p", vhost, *rest]
