"""Support mails: threads by signed address, references and subject; forged addresses; new words apart from quoted ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import House
from test_ingest import envelope, mail, octets_of

from gateway.contract.email_send import SendEmail
from gateway.errors import PermanentFailure
from gateway.inbound.mailboxes.posts import Posts
from gateway.inbound.mailboxes.support import Support
from gateway.inbound.router import MailboxRoute, Router
from gateway.mail.ids import new_id
from gateway.mail.reply_text import new_lines
from gateway.mail.threads import subject_key
from gateway.mail.tokens import Tokens
from gateway.queue.broker import Done
from gateway.queue.ticket import MAIL_INBOUND, Ticket
from gateway.runtime import utc_now
from gateway.store.emails import DatabaseLedger
from gateway.store.key_file import read_keys

KEYS = [bytes(range(32))]
ADDRESS = "support@localhost"
OTHER = "help@localhost"


@pytest.fixture
async def desk(house: House) -> House:
    support = Support(Tokens(KEYS))
    routes = [MailboxRoute(address=address, kind="support") for address in (ADDRESS, OTHER)]
    routes += [MailboxRoute(address="posts@localhost", kind="posts")]
    house.router = Router(routes, domains=["localhost"], refusals={"support": support.refusal})
    house.mailboxes = {"support": support, "posts": Posts()}
    await house.open_ingest()
    return house


async def received(
    house: House, subject: str, text: str = "Help!", *, to: str = ADDRESS, days: float = 0, **headers: str
) -> dict[str, Any]:
    """Mails to support and returns the post made of it; header names with _ for -."""
    message = mail(subject, text)
    message["X-Day"] = str(days)  # the same octets again within a week would be a duplicate
    for name, value in headers.items():
        name = name.replace("_", "-")
        del message[name]
        message[name] = value
    sent = envelope(to)
    ticket_headers = sent.to_headers() | {"received_at": (sent.received_at + timedelta(days=days)).isoformat()}
    ticket = Ticket(queue=MAIL_INBOUND, id=new_id(), body=octets_of(message), headers=ticket_headers)
    assert house.ingest is not None
    assert await house.ingest.handle(ticket) == Done()
    assert house.mails is not None
    (row,) = await house.lists.newest("mails", id=ticket.id)
    assert row["disposition"] == "delivered", row
    story = await house.mails.post_story(row["post_id"])
    assert story is not None
    return story


async def test_a_first_mail_starts_a_thread_of_its_own(desk: House) -> None:
    post = await received(desk, "Broken lamp", Message_ID="<1@client>")
    assert (post["kind"], post["thread_id"], post["message_id"]) == ("support", post["id"], "1@client")
    assert [item["id"] for item in post["thread"]] == [post["id"]]


async def test_a_mail_to_the_signed_reply_address_joins_its_thread_whatever_else_it_says(desk: House) -> None:
    first = await received(desk, "Broken lamp")
    reply_to = Support(Tokens(KEYS)).reply_address(ADDRESS, first["thread_id"])
    assert len(reply_to.partition("@")[0]) <= 64
    joined = await received(
        desk, "Entirely new", to=reply_to.upper().replace("LOCALHOST", "localhost"), From="bob@example.net"
    )
    assert joined["thread_id"] == first["id"]
    assert [item["title"] for item in joined["thread"]] == ["Broken lamp", "Entirely new"]


async def test_an_answer_joins_by_in_reply_to_or_by_its_references(desk: House) -> None:
    first = await received(desk, "Broken lamp", Message_ID="<1@client>")
    second = await received(desk, "x", In_Reply_To="<1@client>", Message_ID="<2@client>", From="bob@example.net")
    third = await received(desk, "y", References="<0@else> <2@client> <9@unknown>", From="eve@example.net")
    assert {first["thread_id"], second["thread_id"], third["thread_id"]} == {first["id"]}
    stranger = await received(desk, "z", In_Reply_To="<unknown@client>", From="eve@example.net")
    assert stranger["thread_id"] == stranger["id"]


async def test_an_answer_to_an_email_we_sent_joins_the_thread_that_email_belongs_to(desk: House) -> None:
    first = await received(desk, "Broken lamp")
    assert desk.database is not None
    ledger = DatabaseLedger(
        desk.database,
        blobs=desk.blobs,
        clock=utc_now,
        hostname="mx.localhost",
        unknown_wait_seconds=1,
        return_path="bounces@localhost",
    )
    reply_to = f"Our desk <{Support(Tokens(KEYS)).reply_address(ADDRESS, first['id'])}>"
    for message_id, asked in (("<ours@localhost>", [reply_to]), ("<news@localhost>", ["news@example.org"])):
        email = SendEmail(to=["ann@example.org"], subject="x", text="x", reply_to=asked)
        await ledger.record_accepted(
            email, app="", content_hash="x", ticket_id=email.id, stream="normal", message_id=message_id
        )
    answer = await received(desk, "Entirely new", In_Reply_To="<ours@localhost>", From="bob@example.net")
    assert answer["thread_id"] == first["id"]
    elsewhere = await received(desk, "Also new", to=OTHER, In_Reply_To="<ours@localhost>", From="bob@example.net")
    assert elsewhere["thread_id"] == elsewhere["id"], "a thread belongs to its address"
    news = await received(desk, "About your news", References="<news@localhost>", From="bob@example.net")
    assert news["thread_id"] == news["id"]


async def test_the_same_subject_by_the_same_author_joins_within_30_days(desk: House) -> None:
    first = await received(desk, "Broken lamp")
    again = await received(desk, "Re: AW: [Fwd] broken  LAMP".replace("[Fwd]", "Fwd:"), days=29)
    assert again["thread_id"] == first["id"]
    assert (await received(desk, "Broken lamp", From="bob@example.net"))["thread_id"] != first["id"]
    assert (await received(desk, "Broken lamp", days=60))["thread_id"] != first["id"]
    assert (await received(desk, "Broken lamp", to=OTHER))["thread_id"] != first["id"]


async def test_mails_without_a_subject_are_not_one_thread(desk: House) -> None:
    first = await received(desk, "", "one")
    assert (await received(desk, "Re:", "two"))["thread_id"] != first["id"]


def forged(house: House) -> list[str]:
    thread = new_id()
    good = Support(Tokens(KEYS)).reply_address(ADDRESS, thread)
    local, _, domain = good.partition("@")
    changed = ("a" if local[20] != "a" else "b").join((local[:20], local[21:]))
    elsewhere = good.replace("support+", "help+")
    other_key = Support(Tokens([bytes(32)])).reply_address(ADDRESS, thread)
    return [f"{changed}@{domain}", elsewhere, other_key]


async def test_forged_reply_addresses_are_refused_at_rcpt(desk: House) -> None:
    for address in forged(desk):
        with pytest.raises(PermanentFailure) as refused:
            desk.router.accepts(address)
        assert str(refused.value.reply).startswith("550 5.1.1")
    desk.router.accepts("support+garden@localhost")
    desk.router.accepts(Support(Tokens(KEYS)).reply_address(OTHER, new_id()))


async def test_a_forged_address_that_no_door_asked_about_is_held(desk: House) -> None:
    assert desk.ingest is not None
    assert desk.mails is not None
    for address in forged(desk):
        ticket = Ticket(queue=MAIL_INBOUND, id=new_id(), body=octets_of(mail()), headers=envelope(address).to_headers())
        await desk.ingest.handle(ticket)
        (row,) = await desk.lists.newest("mails", id=ticket.id)
        assert row["disposition"] == "held"
        assert "reply address is not valid" in row["reason"]


def test_every_single_change_of_a_token_is_noticed() -> None:
    tokens, thread = Tokens(KEYS), new_id()
    token = tokens.sign("thread", thread)
    assert tokens.read("thread", token.upper()) == thread
    assert tokens.read("other", token) is None
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    for place in range(len(token) - 1):
        for letter in letters:
            if letter != token[place]:
                assert tokens.read("thread", token[:place] + letter + token[place + 1 :]) is None
    for text in ("", token[:-1], token + "a", "1" * 42, "é" * 42):
        assert tokens.read("thread", text) is None


def test_keys_are_made_once_for_their_owner_and_can_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "var" / "tokens.key"
    old = read_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == old
    assert [item.name for item in path.parent.iterdir()] == ["tokens.key"]
    thread = new_id()
    token = Tokens(old).sign("thread", thread)
    path.write_text("ab" * 32 + "\n" + path.read_text())
    rotated = Tokens(read_keys(path))
    assert rotated.read("thread", token) == thread
    assert rotated.sign("thread", thread) != token
    assert Tokens(read_keys(path)[:1]).read("thread", token) is None
    assert "ab" * 32 not in repr(rotated)


@pytest.mark.parametrize("content", ["", "short", "zz" * 32, "ab" * 8])
def test_a_key_file_that_cannot_be_trusted_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="key"):
        read_keys(path)
    path.write_text("ab" * 32)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        read_keys(path)


@pytest.mark.parametrize(
    ("subject", "key"),
    [
        ("Re: Lamp", "lamp"),
        ("AW: Re[2]: WG: Fwd: RE(3): Lamp", "lamp"),
        ("SV: Antwort: Lamp  is\tbroken", "lamp is broken"),
        ("Re：回复: Straße", "strasse"),
        ("Reply wanted: Lamp", "reply wanted: lamp"),
        ("Re:" * 40 + "x", "x"),
        ("Re:", ""),
    ],
)
def test_subjects_are_compared_without_their_prefixes(subject: str, key: str) -> None:
    assert subject_key(subject) == key


REPLIES = {
    "gmail": ("It works now.\n\nThanks", "On Mon, 2 Mar 2026 at 10:00, Support <s@x.org> wrote:\n> Did it help?\n> S"),
    "german": ("Danke!", "Am 02.03.2026 um 10:00 schrieb Support:\n> Hilft das?"),
    "outlook": (
        "Thanks a lot.",
        "From: Support <s@x.org>\nSent: Monday, March 2, 2026 10:00\nTo: Ann\nSubject: Lamp\n\nDid it help?",
    ),
    "quoted only by >": ("Yes.", "> Did it help?\n>\n> S"),
    "nothing quoted": ("Hello\n\nI need help.\n-- \nAnn", ""),
    "only a quote": ("> nothing of my own", ""),
    "only a forward": ("On Mon, 2 Mar 2026 at 10:00, Support <s@x.org> wrote:\n> Did it help?", ""),
    "answered below": ("On Mon, 2 Mar 2026 at 10:00, Support <s@x.org> wrote:\n> Did it help?\n\nYes!", ""),
    "answered between": ("Hi\n> Did it help?\nYes\n> And the other?\nNo", ""),
}


@pytest.mark.parametrize("kind", REPLIES)
async def test_new_words_are_kept_apart_from_quoted_ones_and_nothing_is_lost(desk: House, kind: str) -> None:
    own, quoted = REPLIES[kind]
    post = await received(desk, "Lamp", f"{own}\n\n{quoted}".strip())
    assert (post["text"], post["quoted"]) == (own, quoted)


async def test_a_text_made_to_run_for_ever_stays_whole_and_is_stored(desk: House) -> None:
    for text in (
        "On " * 20_000,
        "\n".join(["On x, y"] * 5_000),
        "From: a\n" * 7_000,
        "x" * 200_000,
        "Am " + "\xa0" * 30_000,
    ):
        post = await received(desk, "Bomb", text[:150_000])
        assert len(post["text"]) + len(post["quoted"]) > len(text[:150_000].strip()) * 0.9


def test_no_text_is_ever_stripped_to_nothing() -> None:
    for text in ("> a\n> b", "On Mon Ann wrote:\n> a", "\n\n> a", "-----Original Message-----\nx", "a"):
        lines = text.split("\n")
        assert "\n".join(lines[: new_lines(text)]).strip()


async def test_pictures_in_html_are_named_by_their_attachments_position(desk: House) -> None:
    message = mail("Pictures", "plain")
    message.add_alternative(
        '<p>one <img alt="src=&quot;cid:b@x" src="cid:b@x"> two <img src="cid:a%40x"> <img src="cid:none"> src="cid:a@x"</p>',
        subtype="html",
    )
    message.make_mixed()
    for name in ("a", "b"):
        message.add_attachment(
            b"\x89PNG\r\n\x1a\n", maintype="image", subtype="png", filename=f"{name}.png", cid=f"<{name}@x>"
        )
    assert desk.ingest is not None
    assert desk.mails is not None
    ticket = Ticket(queue=MAIL_INBOUND, id=new_id(), body=octets_of(message), headers=envelope().to_headers())
    await desk.ingest.handle(ticket)
    (row,) = await desk.lists.newest("mails", id=ticket.id)
    post = await desk.mails.post(row["post_id"])
    assert post is not None
    assert [item["content_id"] for item in post["attachments"]] == ["a@x", "b@x"]
    assert post["html"].count("cid:") == 3
    assert 'src="attachment:1"> two <img src="attachment:0"> <img src="cid:none"> src="cid:a@x"</p>' in post["html"]
