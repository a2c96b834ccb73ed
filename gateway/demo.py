"""The gateway shows itself at work: real email out and real mail in, through the same doors everybody uses.

`gateway demo` (and the first `make run`) queues an invoice through the client, mails a post with two photos, a mail to an
unknown address and a hopeless one through the SMTP door with a real client, waits for what becomes of each, and prints it
as a table with the whole story of one.  Promise: nothing here reaches inside; what it shows is what an app would see.
"""

from __future__ import annotations

import asyncio
import smtplib
import socket
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid
from typing import Any

from gateway import app, tables
from gateway.client import Client
from gateway.contract.email_send import Attachment
from gateway.errors import Problem, SettingsError, TransientFailure
from gateway.settings import Settings

WAIT_SECONDS = 30
Rows = Callable[[str], Awaitable[list[dict[str, Any]]]]
_HOPELESS_DEPTH = 400
_INVOICE: dict[str, Any] = {
    "number": "2026-0042",
    "customer": "Ann Example",
    "due_date": "2026-12-31",
    "items": [{"description": "Photo prints 10 × 15", "quantity": 24, "amount": 8.4}],
    "total": 8.4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table: what was tried, the id to look at, what became of it."""

    what: str
    id: str
    outcome: str


async def show_at_work(
    client: Client, *, door: tuple[str, int], posts_address: str, emails: Rows, mails: Rows
) -> list[Line]:
    """Does the four things and waits for their dispositions; `emails` and `mails` list the rows of one id."""
    email_id = await client.send("invoice", to="Ann Example <ann@example.org>", params=_INVOICE, attachments=[_pdf()])
    post_id = await asyncio.to_thread(_mail, door, posts_address, _photo_mail(posts_address).as_bytes(policy=SMTP))
    domain = posts_address.rpartition("@")[2]
    unknown = await asyncio.to_thread(_mail, door, f"nobody-here@{domain}", b"Subject: hello\r\n\r\nAnyone?\r\n")
    hopeless = await asyncio.to_thread(_mail, door, posts_address, _hopeless_mail())
    return [
        Line(what="an invoice, queued by an app", id=email_id, outcome=await _settled(emails, email_id)),
        Line(
            what=f"a mail with two photos to {posts_address}", id=_kept(post_id), outcome=await _settled(mails, post_id)
        ),
        Line(what=f"a mail to nobody-here@{domain}", id="", outcome=f"refused at the door: {unknown}"),
        Line(what="a mail nobody can take apart", id=_kept(hopeless), outcome=await _settled(mails, hopeless)),
    ]


def _mail(door: tuple[str, int], rcpt_to: str, octets: bytes) -> str:
    """Mails through the door; returns the door's last word: the text of its 250, or its refusal."""
    host, port = door
    with smtplib.SMTP(host, port, local_hostname="demo.localhost", timeout=WAIT_SECONDS) as session:
        session.ehlo()
        session.mail("visitor@localhost")
        code, text = session.rcpt(rcpt_to)
        if code == 250:
            code, text = session.data(octets)
        return f"{code} {text.decode('ascii', 'replace')}"


def _knock(door: tuple[str, int]) -> None:
    """Makes sure that somebody is at home before anything is queued."""
    try:
        socket.create_connection(door, timeout=WAIT_SECONDS).close()
    except OSError as error:
        text = f"nobody listens at the SMTP door {door[0]}:{door[1]} ({error.strerror}); is `gateway run` running?"
        raise TransientFailure(text) from None


def _kept(word: str) -> str:
    """The mail id a door's 250 tells; '' when it refused."""
    return word.rsplit(" ", 1)[-1] if word.startswith("250") else ""


async def _settled(rows: Rows, word: str) -> str:
    """Waits until every row of an id has left `pending` and `sending`."""
    item = _kept(word) or word
    if " " in item:
        return f"refused: {word}"
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        found = await rows(item)
        if found and all(row["disposition"] not in {"pending", "sending"} for row in found):
            return "; ".join(_told(row) for row in found)
        await asyncio.sleep(0.05)
    return f"still under way after {WAIT_SECONDS} s"


def _told(row: dict[str, Any]) -> str:
    reason = f" ({row['reason']})" if row.get("reason") else ""
    place = row.get("mailbox") or (f"by {row['relay']}" if row.get("relay") else "")
    return f"{row['disposition']}{reason} {place}".strip()


def _photo_mail(address: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = "Jürgen Visitor <visitor@localhost>"
    mail["To"] = address
    mail["Subject"] = "Grüße vom Müggelsee"
    mail["Message-ID"] = make_msgid(domain="demo.localhost")
    mail.set_content("Hello,\n\nhere are two photos of the lake, in the morning and in the evening.\n\nJürgen\n")
    for name, top, bottom in (
        ("morgen.png", (255, 214, 170), (60, 120, 170)),
        ("abend.png", (70, 50, 110), (20, 30, 60)),
    ):
        mail.add_attachment(_png(320, 200, top, bottom), maintype="image", subtype="png", filename=name)
    return mail


def _hopeless_mail() -> bytes:
    """Parts within parts, deeper than any budget allows."""
    head = "From: visitor@localhost\r\nSubject: A matryoshka\r\nMIME-Version: 1.0\r\n"
    parts = "".join(
        f'Content-Type: multipart/mixed; boundary="b{depth}"\r\n\r\n--b{depth}\r\n' for depth in range(_HOPELESS_DEPTH)
    )
    return (head + parts + "Content-Type: text/plain\r\n\r\nthe smallest one\r\n").encode()


def _png(width: int, height: int, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> bytes:
    """A small picture: a colour running from top to bottom (PNG, RFC 2083)."""
    rows = b"".join(
        b"\0" + bytes(a + (b - a) * y // height for a, b in zip(top, bottom, strict=True)) * width
        for y in range(height)
    )
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _pdf() -> Attachment:
    """A one-page PDF with a line of text."""
    text = b"BT /F1 24 Tf 72 760 Td (Invoice 2026-0042) Tj ET"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(text), text),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj%s endobj\n" % (number, item)
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % len(body)
    return Attachment.of("invoice-2026-0042.pdf", body + table + end, "application/pdf")


def say(text: str = "") -> None:
    """Tells the person at the terminal."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


async def demonstrate(settings: Settings) -> None:
    """Shows the gateway that these settings describe at work, and prints what became of each thing."""
    if not settings.mailboxes:
        raise SettingsError([Problem("mailboxes", "the demo mails a post: name a mailbox first")])
    if not all(relay.url.startswith("capture:") for relay in settings.relays):
        raise SettingsError([Problem("relay_urls", "the demo sends an invoice: it runs only where email is captured")])
    host, _, port = settings.smtp_place.rpartition(":")
    door = (host.strip("[]"), int(port))
    await asyncio.to_thread(_knock, door)
    say("The gateway at work: an invoice out; a post with photos, a stray and a hopeless mail in.\n")
    async with app.open_queue(settings) as broker, app.open_store(settings) as store, Client(broker=broker) as client:
        lines = await show_at_work(
            client,
            door=door,
            posts_address=settings.mailboxes[0].address,
            emails=lambda item: store.lists.newest("emails", id=item),
            mails=lambda item: store.lists.newest("mails", id=item),
        )
        story = await store.mails.story(lines[1].id)
    tables.print_rows([asdict(line) for line in lines], ["what", "id", "outcome"], as_json=False)
    say("\nThe story of the post:")
    if story is not None:
        tables.print_object(tables.in_words(story), as_json=False)


def introduce(settings: Settings) -> None:
    """Says where everything is to be seen, where it listens, and three commands to try."""
    captured = settings.data_dir / "captured"
    say(
        f"""
Look at it: http://{settings.web_listen}/
The SMTP door listens on {settings.smtp_place}, the API on http://{settings.web_listen}/v1/emails.
Email goes to {", ".join(relay.url for relay in settings.relays)} (capture: means {captured}/*.eml, never sent).

Try:
  gateway send welcome --to ann@example.org --param name=Ann
  gateway emails
  gateway show ID

Serving until Ctrl-C."""
    )
