"""Mail and email without end through the real doors, from people who mind what they are told; and the time it takes to recover.

A mail that was not answered with 250 comes again, the same octets, as an MTA would bring it; an app repeats an email under the
same id.  `Traffic` remembers what was promised and each no it heard; `prove` shows that every promise was kept once.
"""

from __future__ import annotations

import asyncio
import itertools
import smtplib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from flows.place import Place, a_mail

from gateway.errors import QueueUnavailable
from gateway.mail.ids import new_id

PACE_SECONDS = 0.5
NEW_WORK_SECONDS = 15.0
PARKED_WORK_SECONDS = 60.0


@dataclass
class Traffic:
    """One poster and one app at one house."""

    place: Place
    mails: dict[str, str] = field(default_factory=dict)  # subject → mail id
    emails: dict[str, str] = field(default_factory=dict)  # email id → recipient
    refusals: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    is_stopping: bool = False
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def post(self) -> None:
        while not self.is_stopping:
            await self.mail(f"post-{next(self._numbers)}")
            await asyncio.sleep(PACE_SECONDS)  # a person's pace, not synchronisation

    async def mail(self, subject: str) -> str:
        """Brings one mail as often as it takes; returns its id."""
        octets = a_mail(subject)
        while True:
            try:
                mail_id = self.mails[subject] = await self.place.mail(octets, "posts@localhost")
                return mail_id
            except smtplib.SMTPDataError as refusal:
                self.refusals[f"{refusal.smtp_code} {_words(refusal.smtp_error)}"] += 1
            await asyncio.sleep(PACE_SECONDS)  # an MTA's retry interval

    async def send(self) -> None:
        while not self.is_stopping:
            await self.email(f"person-{next(self._numbers)}@example.org")
            await asyncio.sleep(PACE_SECONDS)

    async def email(self, recipient: str) -> str:
        email_id = new_id()
        while True:
            try:
                await self.place.client.send("welcome", id=email_id, to=recipient, params={"name": "Ann"})
            except QueueUnavailable as error:
                self.errors[str(error)] += 1
                await asyncio.sleep(PACE_SECONDS)
            else:
                self.emails[email_id] = recipient
                return email_id

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Traffic flows inside; at the end what is under way is brought to its answer."""
        self.is_stopping = False
        async with asyncio.TaskGroup() as both:
            both.create_task(self.post())
            both.create_task(self.send())
            yield
            self.is_stopping = True

    async def more(self, count: int) -> None:
        """Waits until so many more mails and emails are promised."""
        mails, emails = len(self.mails) + count, len(self.emails) + count

        async def there() -> bool:
            return len(self.mails) >= mails and len(self.emails) >= emails

        await self.place.until(there)

    # what is asked when the fault is over

    async def recovery(self, name: str, began: float) -> str:
        """Measures from `began` until new mail is stored and until all that was promised before is done; says both."""
        parked = asyncio.create_task(self._done(dict(self.mails), dict(self.emails), began))
        new = await self._new_work(name, began)
        old = await parked
        said = f"{name}: new work after {new:.1f} s, parked work after {old:.1f} s"
        assert new < NEW_WORK_SECONDS, said
        assert old < PARKED_WORK_SECONDS, said
        return said

    async def _new_work(self, name: str, began: float) -> float:
        word = f"after-{name.replace(' ', '-')}"
        mail_id, email_id = await asyncio.gather(self.mail(word), self.email(f"{word}@example.org"))
        await asyncio.gather(
            self.place.delivered(mail_id, "delivered", "duplicate"), self.place.email(email_id, "relayed")
        )
        return time.monotonic() - began

    async def _done(self, mails: dict[str, str], emails: dict[str, str], began: float) -> float:
        for mail_id in mails.values():
            await self.place.delivered(mail_id, "delivered", "duplicate")
        for email_id in emails:
            await self.place.email(email_id, "relayed")
        return time.monotonic() - began

    async def prove(self) -> None:
        """Everything promised is there once, and the books say so."""
        await self._done(self.mails, self.emails, 0)
        posts = await self.place.rows("posts")
        assert sorted(str(row["title"]) for row in posts) == sorted(self.mails), "each mail is one post"
        emails = await self.place.rows("emails")
        assert {row["id"]: row["recipient"] for row in emails} == self.emails
        copies = {row["recipient"]: row["copies"] for row in emails}
        sent = Counter(item.recipient for item in self.place.relay.taken)
        assert set(sent) == set(copies), "what is relayed the relay has taken"
        assert all(count <= copies[recipient] for recipient, count in sent.items()), "nothing is sent twice unsaid"
        [balance] = await self.place.rows("reconcile")
        assert balance["missing"] == []
        assert balance["accepted"] == balance["accounted"] >= len(self.mails), "each 250 has its receipt"


def _words(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text
