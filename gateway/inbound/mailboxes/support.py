"""The mailbox `support`: a mail becomes a message of a thread, its new words apart from what it quotes.

Threads by, in this order: the signed reply address (`support+TOKEN@…`, which only we can have made), the one that an email
of ours asked answers to when it is that which the mail answers, the Message-IDs of mails it answers, the same subject by the
same author within 30 days; else a thread of its own.
Promises: a forged or outdated token is refused at RCPT already; by a door that does not ask, the mail is held.  What a plus
address carries otherwise is of no meaning here.  Limit: all but the token is hearsay, good enough to sort by.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.inbound.mailbox import Context, Hold, Outcome, ReceivedMail
from gateway.inbound.mailboxes.posts import post_of
from gateway.inbound.router import plus_of
from gateway.mail.threads import ThreadClues, references_of, subject_key
from gateway.mail.tokens import Tokens, looks_signed


class Support:
    """Takes every mail but one to an address that claims to be signed and is not."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def refusal(self, address: str, rcpt_to: str) -> str:
        """Why a door refuses a recipient of the mailbox `address`, '' to take it; needs no database."""
        plus = plus_of(rcpt_to)
        is_forged = looks_signed(plus) and self._thread_id(address, plus) is None
        return "this reply address is not valid, or not any more; write to the address without +" if is_forged else ""

    def reply_address(self, address: str, thread_id: str) -> str:
        """The address whose mail joins the thread."""
        local, _, domain = address.rpartition("@")
        return f"{local}+{self._tokens.sign(_purpose(address), thread_id)}@{domain}"

    async def receive(self, mail: ReceivedMail, context: Context) -> Outcome:
        if refusal := self.refusal(context.address, mail.rcpt_to):
            return Hold(reason=refusal)
        clues = await self._clues(mail, context)
        clues = replace(clues, thread_id=await context.find_thread(clues))
        text, quoted = await context.strip_reply(mail.parsed.text)
        return replace(post_of(mail, kind="support"), text=text, quoted=quoted, thread=clues)

    async def _clues(self, mail: ReceivedMail, context: Context) -> ThreadClues:
        parsed = mail.parsed
        references = references_of(parsed.in_reply_to, parsed.references)
        signed = self._thread_id(context.address, mail.plus)
        if signed is None and references:  # many answer to From:, whatever Reply-To: our email had
            signed = self._thread_id(context.address, plus_of(await context.reply_address_of(references)))
        return ThreadClues(
            thread_id=signed or "",
            message_id=parsed.message_id,
            references=references,
            subject_key=subject_key(parsed.subject),
            author_key=(parsed.from_.address or mail.envelope.mail_from).casefold(),
        )

    def _thread_id(self, address: str, plus: str) -> str | None:
        return self._tokens.read(_purpose(address), plus)


def _purpose(address: str) -> str:
    return f"thread {address.casefold()}"
