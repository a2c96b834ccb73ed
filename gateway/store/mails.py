"""Mails: what came in, and what became of it for each recipient.  One verb per fact, one transaction per recipient.

A mail's row and its pending deliveries are inserted if absent: the same mail id again is a redelivery and no record.  Each
delivery then ends alone: `record_delivered` writes delivery, post, attachments and both events together.
What its sender hears of an end that was not the hoped-for one is planned in the same transaction (`notice_plans`).
Promises: a delivery once final is never changed, so that every verb may be called again after a crash; the octets are
kept exactly as received (up to 256 KiB in a row, beyond that in the blob store).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.contract.events import EventType
from gateway.errors import Problem
from gateway.mail.disposition import Disposition
from gateway.mail.envelope import Envelope
from gateway.mail.loop_guard import Telling
from gateway.mail.secret_address import redacted
from gateway.mail.threads import ThreadClues
from gateway.reply import Reply
from gateway.runtime import Clock
from gateway.store import notice_plans, photos, posts, refused, timeline
from gateway.store.blobs import BlobStore
from gateway.store.database import Database
from gateway.store.journal import Fact, Journal
from gateway.store.ledger import Acceptance
from gateway.store.mail_rows import (
    ENVELOPE,
    STORED,
    DeliveryRecord,
    delivered_before,
    deliveries_of,
    delivery_to_change,
    insert_deliveries,
    insert_mail,
    story_of,
    telling_values,
    update_delivery,
)
from gateway.store.notice_plans import Stage, Tidings
from gateway.store.posts import NewPost
from gateway.store.schema import MAX_ROW_BYTES, as_json, emails, mail_octets, mails

_EVENTS: dict[Disposition, EventType] = {
    Disposition.HELD: "mail.held",
    Disposition.FAILED: "mail.failed",
    Disposition.DISCARDED: "mail.discarded",
    Disposition.DEAD: "mail.dead",
    Disposition.DUPLICATE: "mail.duplicate",
}
_STAGES = {Disposition.FAILED: Stage.FAILED, Disposition.HELD: Stage.HELD, Disposition.DEAD: Stage.HELD}
_REFUSED_TOLD = 50
_REOPENED = (Disposition.HELD, Disposition.FAILED, Disposition.DEAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What `record_delivered` found or wrote: delivered, a duplicate, or final already."""

    disposition: Disposition
    reason: str
    post_id: str | None
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMail:
    """A mail as it was received: its octets, or beyond the row's limit the blob they are in."""

    envelope: Envelope
    size: int
    sha256: str
    octets: bytes = b""
    blob: str | None = None


class Mails:
    """The verbs of inbound work, and the stories."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        *,
        clock: Clock,
        hostname: str,
        notice_delays: Sequence[float] = notice_plans.DEFAULT_DELAYS,
    ) -> None:
        """`notice_delays`: after so many seconds the sender of a mail that still waits is told."""
        self._database = database
        self._blobs = blobs
        self._notice_delays = tuple(notice_delays)
        self._journal = Journal(database, clock=clock, hostname=hostname)

    async def record_received(
        self,
        envelope: Envelope,
        octets_or_blob: bytes | str,
        size: int,
        sha256: str,
        *,
        subject: str = "",
        content_key: str = "",
        authentication: Mapping[str, Any] | None = None,
        telling: Telling | None = None,
    ) -> bool:
        """Keeps a mail and a pending delivery per recipient; True when the mail was new.

        `content_key` is what a copy of the mail shares (`mail.fingerprint`); '' = nothing is a copy of it.  `telling` says
        whether its sender may be told what becomes of it; without it nobody is.

        `octets_or_blob` is the octets, or the digest of the blob they are in.  A further ticket of the same mail adds its
        recipients; a subject learnt later fills an empty one, what was found out of the sender replaces what was.
        """
        content = octets_or_blob
        if isinstance(content, bytes) and len(content) > MAX_ROW_BYTES:
            content = await self._blobs.put(content)
        kept: dict[str, bytes | str] = {"blob": content} if isinstance(content, str) else {"octets": content}

        def work(connection: sa.Connection, now: datetime) -> bool:
            facts = {"size": size, "sha256": sha256, "subject": subject, "recorded_at": now, "content_key": content_key}
            facts |= {"authentication": dict(authentication)} if authentication else {}
            facts |= telling_values(telling)
            is_new = insert_mail(connection, envelope, facts, kept)
            added = insert_deliveries(connection, envelope, now)
            if added:
                data = {
                    "mail_from": envelope.mail_from,
                    "recipients": [redacted(item) for item in added],
                    "size": size,
                    "door": envelope.door,
                }
                fact = Fact(subject=envelope.mail_id, step="received", event="mail.received", data=data)
                self._journal.note(connection, now, fact)
            return is_new

        return await self._journal.record("received", work, size=len(content))

    async def record_delivered(
        self, mail_id: str, rcpt_to: str, mailbox: str, post: NewPost, reason: str = ""
    ) -> Delivered:
        """Writes the post and ends the delivery; where it is final already nothing. Returns what is true now.

        A copy of a mail delivered to the same recipient within `DUPLICATE_DAYS` is recorded as its duplicate instead.
        """

        def work(connection: sa.Connection, now: datetime) -> Delivered:
            row = delivery_to_change(connection, mail_id, rcpt_to)
            if row.disposition.is_final:
                return Delivered(disposition=row.disposition, reason=row.reason, post_id=row.post_id)
            original = delivered_before(connection, row, now)
            if original is not None:
                return self._record_duplicate(connection, now, row, original, mailbox=mailbox)
            post_id = posts.insert_post(connection, post, posts.Origin(mail_id=mail_id))
            update_delivery(
                connection, row, now, disposition=Disposition.DELIVERED, reason=reason, mailbox=mailbox, post_id=post_id
            )
            self._note_delivered(connection, now, row, post, post_id, mailbox=mailbox, reason=reason)
            return Delivered(disposition=Disposition.DELIVERED, reason=reason, post_id=post_id)

        size = len(post.text) + len(post.html or "")
        return await self._journal.record("delivered", work, size=size)

    async def record_posted(self, post: NewPost, *, post_id: str, app: str, content_hash: str) -> Acceptance:
        """Writes a post that an app made under its own id; the same again is no record."""
        origin = posts.Origin(post_id=post_id, app=app, content_hash=content_hash)

        def work(connection: sa.Connection, now: datetime) -> Acceptance:
            known = posts.known_or_conflict(connection, origin)
            if known is not None:
                return known
            posts.insert_post(connection, post, origin)
            self._note_created(connection, now, post, post_id)
            return Acceptance.ACCEPTED

        return await self._journal.record("posted", work, size=len(post.text) + len(post.html or ""))

    async def record_post_rejected(self, post_id: str, *, app: str, problems: Sequence[Problem]) -> None:
        """Notes a post that was never made; the same rejection again changes nothing."""

        def work(connection: sa.Connection, now: datetime) -> None:
            told = refused.insert_rejection(connection, now, request_id=post_id, app=app, problems=problems)
            if told is not None:
                fact = Fact(subject=post_id, step="rejected", data={"app": app, "errors": told})
                self._journal.note(connection, now, fact)

        await self._journal.record("post_rejected", work)

    async def record_held(self, mail_id: str, rcpt_to: str, mailbox: str, reason: str, *, person_id: str = "") -> bool:
        """The mail waits for a person; False where that (or something final) was recorded already.

        `person_id`: who it claims to be from and is to be asked (`store.confirmations`).
        """
        return await self._end(mail_id, rcpt_to, mailbox, Disposition.HELD, reason, person_id=person_id)

    async def record_failed(
        self, mail_id: str, rcpt_to: str, mailbox: str, reason: str, reply: Reply | None = None
    ) -> bool:
        """We gave up, and whom it concerns is told."""
        return await self._end(mail_id, rcpt_to, mailbox, Disposition.FAILED, reason, reply)

    async def record_discarded(self, mail_id: str, rcpt_to: str, mailbox: str, reason: str) -> bool:
        """The mailbox wants nothing made of it."""
        return await self._end(mail_id, rcpt_to, mailbox, Disposition.DISCARDED, reason)

    async def record_dead(self, mail_id: str, rcpt_to: str, mailbox: str, reason: str) -> bool:
        """An operator's turn."""
        return await self._end(mail_id, rcpt_to, mailbox, Disposition.DEAD, reason)

    async def record_reopened(self, mail_id: str, rcpt_to: str) -> bool:
        """A person wants it processed anew: what was held, failed or dead is pending again; all else is left alone."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            row = delivery_to_change(connection, mail_id, rcpt_to)
            if row.disposition not in _REOPENED:
                return False
            values = {"disposition": Disposition.PENDING, "attempts": 0, "reason": ""}
            values |= {"person_id": "", "confirmation_id": ""}
            update_delivery(connection, row, now, **values, reply_code=None, reply_enhanced="", reply_text="")
            data = {"from": row.disposition, "reason": row.reason}
            self._journal.note(
                connection, now, Fact(subject=mail_id, step="replayed", recipient=redacted(rcpt_to), data=data)
            )
            return True

        return await self._journal.record("mail_reopened", work)

    async def record_deferred(
        self,
        mail_id: str,
        rcpt_to: str,
        *,
        reason: str,
        attempts: int,
        next_attempt_at: datetime,
        mailbox: str = "",
        reply: Reply | None = None,
    ) -> bool:
        """The attempt, the `attempts`-th, did not succeed; False where something final was recorded already."""

        def work(connection: sa.Connection, now: datetime) -> bool:
            row = delivery_to_change(connection, mail_id, rcpt_to)
            if row.disposition.is_final:
                return False
            facts = {"reason": reason, "attempts": attempts, "next_attempt_at": next_attempt_at}
            kept = facts | {"mailbox": mailbox or row.mailbox} | _reply_values(reply)
            update_delivery(connection, row, now, disposition=Disposition.PENDING, **kept)
            fact = Fact(subject=mail_id, step="deferred", recipient=redacted(rcpt_to), data=as_json(facts))
            self._journal.note(connection, now, fact)
            told = Tidings(mail_id=mail_id, rcpt_to=rcpt_to, stage=Stage.DELAYED, facts={"again": attempts > 1})
            notice_plans.plan_delays(connection, self._journal, now, told, self._notice_delays)
            return True

        return await self._journal.record("mail_deferred", work)

    async def delivery_state(self, mail_id: str, rcpt_to: str) -> DeliveryRecord | None:
        def work(connection: sa.Connection) -> DeliveryRecord | None:
            return next(iter(deliveries_of(connection, mail_id, rcpt_to)), None)

        return await self._database.read(work)

    async def deliveries(self, mail_id: str) -> list[DeliveryRecord]:
        """Every recipient's delivery, in the envelope's order."""
        return await self._database.read(lambda connection: deliveries_of(connection, mail_id))

    async def digest(self, mail_id: str) -> str | None:
        """The SHA-256 of the mail as received, None for an unknown mail."""
        query = sa.select(mails.c.sha256).where(mails.c.id == mail_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    async def authentication(self, mail_id: str) -> dict[str, Any]:
        """What was found out of the mail's sender, {} where nothing is known."""
        query = sa.select(mails.c.authentication).where(mails.c.id == mail_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar()) or {}

    async def octets(self, mail_id: str) -> bytes | None:
        """The exact octets as received, None for an unknown mail."""
        query = sa.select(mail_octets.c.octets, mail_octets.c.blob).where(mail_octets.c.mail_id == mail_id)
        row = await self._database.read(lambda connection: connection.execute(query).first())
        if row is None:
            return None
        return row.octets if row.blob is None else await self._blobs.get(row.blob)

    async def stored(self, mail_id: str) -> StoredMail | None:
        """The mail as it was received, with all its recipients; None for an unknown one."""

        def work(connection: sa.Connection) -> StoredMail | None:
            row = connection.execute(STORED.where(mails.c.id == mail_id)).mappings().first()
            if row is None:
                return None
            rcpt_to = tuple(item.rcpt_to for item in deliveries_of(connection, mail_id))
            envelope = Envelope(mail_id=mail_id, rcpt_to=rcpt_to, **{name: row[name] for name in ENVELOPE})
            kept = {"octets": row["octets"] or b"", "blob": row["blob"]}
            return StoredMail(envelope=envelope, size=row["size"], sha256=row["sha256"], **kept)

        return await self._database.read(work)

    async def story(self, mail_id: str) -> dict[str, Any] | None:
        """Everything about one mail, ready for JSON."""
        return await self._database.read(lambda connection: story_of(connection, mail_id))

    async def post(self, post_id: str) -> dict[str, Any] | None:
        """One post with its attachments, ready for JSON."""
        return await self._database.read(lambda connection: posts.post(connection, post_id))

    async def attachment(self, attachment_id: str, *, rendition: str = "") -> posts.FoundAttachment | None:
        """Where the octets of an attachment are, or with `rendition` those of the picture of that kind made of it."""
        return await self._database.read(
            lambda connection: posts.find_attachment(connection, attachment_id, rendition=rendition)
        )

    async def post_refusal(self, post_id: str) -> dict[str, Any] | None:
        """Why the request for this post failed, None where none is known."""
        return await self._database.read(lambda connection: refused.post_refusal(connection, post_id))

    async def post_story(self, post_id: str) -> dict[str, Any] | None:
        """One post and its timeline, ready for JSON."""

        def work(connection: sa.Connection) -> dict[str, Any] | None:
            found = posts.post(connection, post_id)
            if found is None:
                return None
            thread = posts.thread(connection, found["thread_id"]) if found["thread_id"] else []
            return found | {"thread": thread, "timeline": timeline.story(connection, post_id)}

        return await self._database.read(work)

    async def find_thread(self, address: str, clues: ThreadClues, at: datetime) -> str:
        """The thread at this address that the clues lead to, '' for none."""
        return await self._database.read(lambda connection: posts.find_thread(connection, address, clues, at=at))

    async def reply_address_of(self, message_ids: Sequence[str]) -> str:
        """Where the first of these Message-IDs (without their brackets) that we sent asked answers to go, '' for none."""
        wanted = [f"<{item}>" for item in message_ids]
        query = sa.select(emails.c.message_id, emails.c.reply_to).where(emails.c.message_id.in_(wanted))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        asked = {row.message_id: row.reply_to for row in rows if row.reply_to}
        return next((asked[item] for item in wanted if item in asked), "")

    async def waiting_photos(self, mail_id: str) -> list[str]:
        """The attachment ids of the photos of this mail that wait for their renditions, in order."""
        return await self._database.read(lambda connection: photos.waiting_of_mail(connection, mail_id))

    async def find(self, prefix: str) -> list[tuple[str, str]]:
        """The (kind, id) of every mail, email or post whose id begins so."""
        return await self._database.read(lambda connection: timeline.find(connection, prefix))

    async def _end(
        self,
        mail_id: str,
        rcpt_to: str,
        mailbox: str,
        disposition: Disposition,
        reason: str,
        reply: Reply | None = None,
        person_id: str = "",
    ) -> bool:
        def work(connection: sa.Connection, now: datetime) -> bool:
            row = delivery_to_change(connection, mail_id, rcpt_to)
            if row.disposition.is_final or (row.disposition, row.reason) == (disposition, reason):
                return False
            ended = {"disposition": disposition, "reason": reason, "mailbox": mailbox, "person_id": person_id}
            update_delivery(connection, row, now, **ended, **_reply_values(reply))
            data = {"mailbox": mailbox, "reason": reason, "delivery_id": row.id} | (
                {"reply": str(reply)} if reply else {}
            )
            fact = Fact(
                subject=mail_id, step=disposition, recipient=redacted(rcpt_to), event=_EVENTS[disposition], data=data
            )
            self._journal.note(connection, now, fact)
            self._tell_sender(connection, now, row, disposition, reason)
            return True

        return await self._journal.record(f"mail_{disposition}", work)

    def _tell_sender(
        self, connection: sa.Connection, now: datetime, row: DeliveryRecord, disposition: Disposition, reason: str
    ) -> None:
        """Plans what the sender hears of an end that was not the hoped-for one; why it is held is our own affair."""
        stage = _STAGES.get(disposition)
        if stage is not None:
            facts = {"because": reason} if stage is Stage.FAILED else {}
            told = Tidings(mail_id=row.mail_id, rcpt_to=row.rcpt_to, stage=stage, facts=facts)
            notice_plans.plan(connection, self._journal, now, told)

    def _record_duplicate(
        self, connection: sa.Connection, now: datetime, row: DeliveryRecord, original: sa.RowMapping, *, mailbox: str
    ) -> Delivered:
        mail_id, post_id = original["mail_id"], original["post_id"]
        reason = f"the same mail as {mail_id}"
        values = {"mailbox": mailbox, "post_id": post_id, "duplicate_of": mail_id, "reason": reason}
        update_delivery(connection, row, now, disposition=Disposition.DUPLICATE, **values)
        data = {"mailbox": mailbox, "duplicate_of": mail_id, "post_id": post_id, "delivery_id": row.id}
        fact = Fact(
            subject=row.mail_id, step="duplicate", recipient=redacted(row.rcpt_to), event="mail.duplicate", data=data
        )
        self._journal.note(connection, now, fact)
        return Delivered(disposition=Disposition.DUPLICATE, reason=reason, post_id=post_id, duplicate_of=str(mail_id))

    def _note_delivered(
        self,
        connection: sa.Connection,
        now: datetime,
        row: DeliveryRecord,
        post: NewPost,
        post_id: str,
        *,
        mailbox: str,
        reason: str,
    ) -> None:
        told = {"mailbox": mailbox, "post_id": post_id, "reason": reason, "delivery_id": row.id}
        delivered = Fact(
            subject=row.mail_id, step="delivered", recipient=redacted(row.rcpt_to), event="mail.delivered", data=told
        )
        self._journal.note(connection, now, delivered)
        self._note_created(connection, now, post, post_id, mail_id=row.mail_id, rcpt_to=row.rcpt_to)
        refused = [{"filename": item.filename, "reason": item.refusal} for item in post.attachments if item.refusal]
        if refused:
            facts = {"refused": refused[:_REFUSED_TOLD], "refused_count": len(refused)}
            part = Tidings(mail_id=row.mail_id, rcpt_to=row.rcpt_to, stage=Stage.PARTIAL, facts=facts)
            notice_plans.plan(connection, self._journal, now, part)

    def _note_created(
        self,
        connection: sa.Connection,
        now: datetime,
        post: NewPost,
        post_id: str,
        *,
        mail_id: str | None = None,
        rcpt_to: str = "",
    ) -> None:
        made = {"mailbox": post.mailbox, "kind": post.kind, "mail_id": mail_id, "attachments": len(post.attachments)}
        created = Fact(subject=post_id, step="created", recipient=redacted(rcpt_to), event="post.created", data=made)
        self._journal.note(connection, now, created)


def _reply_values(reply: Reply | None) -> dict[str, Any]:
    if reply is None:
        return {}
    return {"reply_code": reply.code, "reply_enhanced": reply.enhanced_status, "reply_text": reply.text}
