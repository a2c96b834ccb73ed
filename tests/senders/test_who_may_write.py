"""The whole way in, as `app` builds it: who may write where, what is held, who is asked, and what an answer does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fake_dns import FakeDns
from sender_desk import MEMBER_HOST, STRANGER_HOST, envelope, mail, signed, zone

from gateway import app, settings
from gateway.app.making import people_file, router
from gateway.app.trades import ingest_trade
from gateway.app.web import open_web
from gateway.client import Client
from gateway.contract.email_send import parse_send_email
from gateway.errors import PermanentFailure
from gateway.inbound.confirm import Asker, ConfirmDesk, doubt_of_answer
from gateway.inbound.intake import Intake
from gateway.inbound.replay import replay_tickets
from gateway.maillog import MailLog
from gateway.queue.broker import Broker, Done
from gateway.queue.ticket import EMAIL_SEND, MAIL_INBOUND
from gateway.runtime import utc_now
from gateway.store.confirmations import PER_DAY, Confirmations

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOMAIN = "in.example.net"


@dataclass
class House:
    """The inbound half of a gateway, its parts as `app` makes them."""

    settings: settings.Settings
    store: app.Store
    broker: Broker
    intake: Intake
    handle: Any
    desk: ConfirmDesk
    asker: Asker
    log: StringIO
    dns: FakeDns
    web: Any

    async def bring(self, octets: bytes, to: str = f"photos@{DOMAIN}", **facts: Any) -> dict[str, Any]:
        """A mail by the front door, worked to its end; returns its line of the list."""
        self.intake.check_recipient(to)
        return await self.push(octets, to, **facts)

    async def push(self, octets: bytes, to: str = f"photos@{DOMAIN}", **facts: Any) -> dict[str, Any]:
        """The same past the door."""
        given = envelope(**facts)
        mail_id = await self.intake.accept(_to(given, to), octets)
        await self.work()
        return await self.line(mail_id)

    async def line(self, mail_id: str) -> dict[str, Any]:
        (row,) = await self.store.lists.newest("mails", id=mail_id)
        return row

    async def work(self) -> None:
        while sum(depth.ready for depth in await self.broker.depths() if depth.name == MAIL_INBOUND):
            async with self.broker.consume({MAIL_INBOUND: 1}, concurrency=1) as consumer:
                async for lease in consumer:
                    await self.handle(lease.ticket)
                    await lease.settle(Done())
                    break

    async def asked(self, person: str) -> list[Any]:
        """The questions that this person is sent in one round."""
        await self.asker.ask_once()
        return [email for email in await self._emails() if list(map(str, email.to)) == [f"{person}@example.org"]]

    async def _emails(self) -> list[Any]:
        found = []
        while sum(depth.ready for depth in await self.broker.depths() if depth.name == EMAIL_SEND):
            async with self.broker.consume({EMAIL_SEND: 1}, concurrency=1) as consumer:
                async for lease in consumer:
                    found.append(parse_send_email(lease.ticket.body))
                    await lease.settle(Done())
                    break
        return found


def _to(given: Any, to: str) -> Any:
    return replace(given, rcpt_to=(to,))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder: Path = tmp_path_factory.mktemp("house")
    async with AsyncExitStack() as stack:
        dns = await stack.enter_async_context(FakeDns(zone()))
        boxes = [
            f'{{"address": "photos@{DOMAIN}", "kind": "posts", "who": "members"}}',
            f'{{"address": "open@{DOMAIN}", "kind": "posts"}}',
            f'{{"address": "drop@{DOMAIN}", "kind": "posts", "who": "secret"}}',
            f'{{"address": "other@{DOMAIN}", "kind": "posts", "who": "secret"}}',
        ]
        values = [f"data_dir={folder}", f"domains={DOMAIN}", f"dns_servers={dns.server}", "limits.cage_children=1"]
        values += [f"mailboxes=[{', '.join(boxes)}]", "min_free_bytes=0", "hostname=mx.example.net"]
        values += ["trusted_authserv_id=mx.example.net"]
        found = settings.load(environment={}, overrides=values)
        app.check_values(found)
        log = StringIO()
        parts = app.Parts(found, MailLog(stream=log))
        trade = await ingest_trade(parts, stack)
        broker, store, desk = await parts.queue(stack), await parts.store(stack), await parts.confirm_desk(stack)
        client = await stack.enter_async_context(Client(broker=broker))
        asker = Asker(
            store.confirmations, desk, who=app.open_who(found), router=router(found), submit=client, log=parts.log
        )
        yield House(
            found,
            store,
            broker,
            await parts.intake(stack),
            trade.handlers[MAIL_INBOUND],
            desk,
            asker,
            log,
            dns,
            (await open_web(parts, stack)).app,
        )


def from_(person: str, body: str = "Hello", *, more: list[str] | None = None) -> bytes:
    return mail(f"{person}@example.org", body, more=more or [])


async def register(house: House, *names: str) -> None:
    for name in names:
        await house.store.people.add(f"{name}@example.org", name.title())


async def test_a_member_whose_domain_vouches_is_let_in(house: House) -> None:
    await register(house, "ann")
    row = await house.bring(signed(from_("ann")), mail_from="list@evil.example.com")
    assert (row["disposition"], row["reason"]) == ("delivered", "")
    row = await house.bring(from_("Ann", "again"), mail_from="ann@example.org", client=MEMBER_HOST)
    assert row["disposition"] == "delivered"
    story = await house.store.mails.story(row["id"])
    assert story is not None
    assert (story["authentication"]["verdict"], story["authentication"]["aligned_by"]) == ("pass", "spf")


async def test_who_is_not_registered_is_held_and_nobody_is_asked(house: House) -> None:
    row = await house.bring(signed(from_("stranger")))
    assert row["disposition"] == "held"
    assert "stranger@example.org is not registered" in row["reason"]
    assert await house.asked("stranger") == []


async def test_everybody_may_write_where_anyone_may(house: House) -> None:
    row = await house.bring(from_("whoever"), f"open@{DOMAIN}")
    assert row["disposition"] == "delivered"
    story = await house.store.mails.story(row["id"])
    assert story is not None
    assert story["authentication"]["verdict"] == "fail"


async def test_a_mail_that_cannot_be_judged_now_waits_and_is_held_in_the_end(house: House) -> None:
    house.dns.put("silent.example.com", "FAULT", "")
    await house.store.people.add("eve@silent.example.com")
    row = await house.bring(mail("eve@silent.example.com"), mail_from="eve@silent.example.com")
    assert (row["disposition"], row["attempts"]) == ("pending", 1)
    assert "cannot be looked up now" in row["reason"]
    stored = await house.store.mails.stored(row["id"])
    assert stored is not None
    (ticket,) = replay_tickets(stored, stored.envelope.rcpt_to)
    await house.handle(replace(ticket, attempt=4))
    row = await house.line(row["id"])
    assert row["disposition"] == "held"
    assert "cannot be looked up now" in row["reason"]


async def test_junk_is_held_and_goes_on_when_a_person_says_so(house: House) -> None:
    row = await house.bring(from_("any", more=["X-Spam-Flag: YES"]), f"open@{DOMAIN}")
    assert (row["disposition"], row["reason"]) == ("held", "junk")
    assert (await released(house, row))["disposition"] == "delivered"


async def released(house: House, row: dict[str, Any]) -> dict[str, Any]:
    stored = await house.store.mails.stored(row["id"])
    assert stored is not None
    await house.broker.publish(replay_tickets(stored, stored.envelope.rcpt_to, is_release=True))
    await house.work()
    return await house.line(row["id"])


async def test_an_unproven_mail_is_held_and_the_registered_person_is_asked_once(house: House) -> None:
    await register(house, "bob")
    rows = [await house.bring(from_("bob", f"number {number}")) for number in range(3)]
    assert {row["disposition"] for row in rows} == {"held"}
    assert "says it is from bob@example.org, unproven" in rows[0]["reason"]
    (email,) = await house.asked("bob")
    assert len(email.params["mails"]) == 3
    later = await house.bring(from_("bob", "later"))
    assert await house.asked("bob") == []
    answer = await house.bring(
        mail("bob@home.example.com", "Yes, that was me"), _only(email.reply_to), mail_from="bob@home.example.com"
    )
    assert (answer["disposition"], answer["reason"]) == ("discarded", "confirmed: 3 held mails go to their mailboxes")
    await house.work()
    assert [(await house.line(row["id"]))["disposition"] for row in rows] == ["delivered"] * 3
    assert (await house.line(later["id"]))["disposition"] == "held"
    (second,) = await house.asked("bob")
    assert len(second.params["mails"]) == 1
    again = await house.bring(mail("bob@home.example.com", "Yes"), _only(email.reply_to))
    assert again["reason"] == "this question was answered before, or has expired"
    assert (await house.line(later["id"]))["disposition"] == "held"


def _only(values: Any) -> str:
    (value,) = values
    return str(value)


@pytest.mark.parametrize(
    ("octets", "mail_from", "why"),
    [
        (mail("carl@example.org", "No!"), "carl@example.org", "its first line is no yes"),
        (mail("carl@example.org", "I am away. Yes, until Monday"), "carl@example.org", "its first line is no yes"),
        (
            mail("carl@example.org", "yes", more=["Auto-Submitted: auto-replied"]),
            "carl@example.org",
            "a machine wrote it",
        ),
        (mail("carl@example.org", "yes", more=["Precedence: bulk"]), "carl@example.org", "a machine wrote it"),
        (mail("carl@example.org", "yes"), "", "it has the null sender"),
        # Answers of machines that do not say they are one, in languages where a yes is another word, too.
        (
            mail("carl@example.org", "Tak for din mail. Jeg er på ferie."),
            "carl@example.org",
            "its first line is no yes",
        ),
        (mail("carl@example.org", "Si votre message est urgent, ..."), "carl@example.org", "its first line is no yes"),
        (
            mail("carl@example.org", "OK, your mail was received as ticket 17"),
            "carl@example.org",
            "its first line is no yes",
        ),
        (mail("carl@example.org", "yes", more=["X-Autoreply: yes"]), "carl@example.org", "a machine wrote it"),
        (mail("carl@example.org", "yes", more=["X-Vacation: 1"]), "carl@example.org", "a machine wrote it"),
    ],
)
async def test_what_is_no_persons_yes_lets_nothing_through(
    house: House, octets: bytes, mail_from: str, why: str, request: pytest.FixtureRequest
) -> None:
    person = f"carl{abs(hash(why + mail_from + str(octets)))}"
    await register(house, person)
    held = await house.bring(from_(person))
    (email,) = await house.asked(person)
    answer = await house.bring(octets, _only(email.reply_to), mail_from=mail_from)
    assert (answer["disposition"], answer["reason"]) == ("discarded", f"no answer to our question: {why}")
    assert (await house.line(held["id"]))["disposition"] == "held"


@pytest.mark.parametrize("text", ["Yes", "yes!\r\n\r\nBest, Carl", "Ja, das war ich", "OK.", "Tak\r\n> Czy", "\r\nsí"])
async def test_a_persons_yes_is_one(text: str) -> None:
    assert doubt_of_answer(envelope(), mail("carl@example.org", text), text) == ""


def altered(token: str) -> str:
    """The token with another letter well inside its proof: the last letter has bits that say nothing."""
    return token[:-5] + ("a" if token[-5] != "a" else "b") + token[-4:]


async def test_a_forged_answer_address_is_an_ordinary_plus_address(house: House) -> None:
    await register(house, "dora")
    held = await house.bring(from_("dora"))
    (email,) = await house.asked("dora")
    local, _, domain = _only(email.reply_to).rpartition("@")
    forged = f"{altered(local)}@{domain}"
    row = await house.bring(mail("dora@example.org", "yes"), forged)
    assert row["disposition"] == "held"
    assert (await house.line(held["id"]))["disposition"] == "held"


async def test_a_question_that_cannot_be_sent_keeps_nobody_elses(house: House) -> None:
    """Its mailbox was taken out of the settings while it waited, say."""
    await register(house, "dan", "deb")
    for person in ("dan", "deb"):
        await house.bring(from_(person))
    requests = house.store.confirmations
    await requests.open_requests()

    async def gone(request_id: str) -> Any:
        found = await requests.request(request_id)
        if found is None or found.address != "dan@example.org":
            return found
        return replace(found, mails=tuple(item | {"rcpt_to": f"gone@{DOMAIN}"} for item in found.mails))

    house.asker._confirmations = _Faked(requests, gone)
    try:
        assert len(await house.asked("deb")) == 1
    finally:
        house.asker._confirmations = requests
    assert "cannot-ask" in house.log.getvalue()


class _Faked:
    """The requests, one of them read differently."""

    def __init__(self, requests: Confirmations, request: Any) -> None:
        self._requests = requests
        self.request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._requests, name)


async def test_a_flood_of_later_forgeries_is_counted_and_not_read(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.confirmations.LATER_LISTED", 2)
    await register(house, "dirk")
    held = await house.bring(from_("dirk"))
    assert len(await house.asked("dirk")) == 1
    for number in range(4):
        await house.bring(from_("dirk", f"later {number}"))
    (request_id,) = {item async for item in _requests(house, held["id"])}
    request = await house.store.confirmations.request(request_id)
    assert request is not None
    assert (len(request.mails), len(request.later), request.more) == (1, 2, 4)


async def test_a_page_looks_without_changing_and_answers_by_name(house: House) -> None:
    await register(house, "emil")
    first, second = [await house.bring(from_("emil", f"number {number}")) for number in range(2)]
    assert len(await house.asked("emil")) == 1
    (request_id,) = {item async for item in _requests(house, first["id"])}
    token = house.desk.link_token(request_id)
    looked = await house.desk.look(token)
    assert looked is not None
    assert [item["id"] for item in looked.mails] == [first["id"], second["id"]]
    assert await house.desk.look(altered(token)) is None
    assert (await house.desk.confirm(request_id, [first["id"]])).startswith("confirmed: 1")
    await house.work()
    assert (await house.line(first["id"]))["disposition"] == "delivered"
    assert (await house.desk.disown(request_id)).startswith("disowned: 1")
    row = await house.line(second["id"])
    assert (row["disposition"], row["reason"]) == ("discarded", "the person it claims to be from did not write it")
    assert (await house.desk.confirm(request_id)).startswith("this question was answered")


async def _requests(house: House, mail_id: str) -> AsyncIterator[str]:
    import sqlalchemy as sa

    from gateway.store.schema import deliveries

    query = sa.select(deliveries.c.confirmation_id).where(deliveries.c.mail_id == mail_id)
    for item in await house.store.database.read(lambda connection: connection.execute(query).scalars().all()):
        yield item


async def test_the_page_shows_the_mails_and_takes_each_answer_by_post_only(house: House) -> None:
    await register(house, "olga")
    first, second = [await house.bring(from_("olga", f"number {number}")) for number in range(2)]
    assert len(await house.asked("olga")) == 1
    (request_id,) = {item async for item in _requests(house, first["id"])}
    token = house.desk.link_token(request_id)
    transport = httpx.ASGITransport(house.web, client=("127.0.0.1", 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8025") as browser:
        shown = await browser.get(f"/confirm/{token}")
        assert shown.status_code == 200
        assert shown.text.count("A day") == 2
        assert "default-src 'none'" in shown.headers["content-security-policy"]
        for verb in ("yes", "no"):
            assert (await browser.get(f"/confirm/{token}/{verb}")).status_code in (404, 405)
        assert (await house.line(first["id"]))["disposition"] == "held"
        answers = {"yes": first["id"], "no": second["id"]}
        for verb, mail_id in answers.items():
            answer = await browser.post(f"/confirm/{token}/{verb}", data={"mail": mail_id})
            assert answer.status_code == 303, answer.text
            await house.work()
        assert (await house.line(first["id"]))["disposition"] == "delivered"
        assert (await house.line(second["id"]))["disposition"] == "discarded"
        assert "nothing to decide" in (await browser.get(f"/confirm/{token}")).text
        assert (await browser.get(f"/confirm/{token[:-1]}")).status_code == 404
        assert (await browser.post(f"/confirm/{token[:-1]}/yes")).status_code == 404


async def test_the_mails_page_says_how_far_the_sender_is_proven(house: House) -> None:
    proven = await house.bring(signed(from_("whoever", "proven")), f"open@{DOMAIN}")
    unproven = await house.bring(from_("whoever", "unproven"), f"open@{DOMAIN}")
    transport = httpx.ASGITransport(house.web, client=("127.0.0.1", 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8025") as browser:
        page = (await browser.get(f"/mails/{proven['id']}")).text
        assert "whoever@example.org: example.org vouches for it (dkim)" in page
        for line in ("SPF fail for example.org", "DKIM pass d=example.org", "DMARC pass for example.org (p=reject)"):
            assert line in page
        page = (await browser.get(f"/mails/{unproven['id']}")).text
        assert "neither a signature nor the sending host vouches for example.org" in page


async def test_an_unanswered_question_expires_and_its_mail_stays_held_in_sight(house: House) -> None:
    await register(house, "fred")
    held = await house.bring(from_("fred"))
    (email,) = await house.asked("fred")
    late = Confirmations(
        house.store.database, clock=lambda: utc_now() + timedelta(days=8), hostname="mx.example.net", days=7
    )
    assert await late.expire() >= 1
    row = await house.line(held["id"])
    assert row["disposition"] == "held"
    assert row["reason"].startswith("nobody confirmed it in time; members only")
    answer = await house.bring(mail("fred@example.org", "yes"), _only(email.reply_to))
    assert answer["reason"] == "this question was answered before, or has expired"
    story = await house.store.mails.story(held["id"])
    assert story is not None
    assert "unconfirmed" in [item["step"] for item in story["timeline"]]


async def test_a_flood_of_forgeries_asks_a_person_only_so_often(house: House) -> None:
    await register(house, "gina")
    asked = 0
    for number in range(PER_DAY + 2):
        await house.bring(from_("gina", f"forgery {number}"))
        for email in await house.asked("gina"):
            asked += 1
            answer = await house.bring(mail("gina@example.org", "no"), _only(email.reply_to))
            assert answer["disposition"] == "discarded"
            (request_id,) = {item async for item in _requests(house, (await _last_held(house))["id"])}
            await house.desk.disown(request_id)
    assert asked == PER_DAY


async def _last_held(house: House) -> dict[str, Any]:
    return (await house.store.lists.newest("mails", disposition="held"))[-1]


async def secret(house: House, person: str, mailbox: str = f"drop@{DOMAIN}", *, days: int | None = None) -> str:
    (found,) = [item for item in await house.store.people.all() if item.address.startswith(f"{person}@")]
    route = router(house.settings).route(mailbox)
    return app.open_who(house.settings).new_address(route, mailbox, found, days=days)


async def test_a_secret_address_lets_in_who_has_it(house: House) -> None:
    await register(house, "hugo")
    address = await secret(house, "hugo", days=30)
    assert len(address.partition("+")[2].partition("@")[0]) == 24
    row = await house.bring(from_("nobody"), address.upper(), client=STRANGER_HOST)
    assert row["disposition"] == "delivered"


@pytest.mark.parametrize("plus", ["", "+", "+a", f"+{'a' * 24}", f"+{'a' * 42}"])
async def test_an_address_that_is_not_secret_is_refused_at_rcpt(house: House, plus: str) -> None:
    with pytest.raises(PermanentFailure, match="secret addresses only"):
        house.intake.check_recipient(f"drop{plus}@{DOMAIN}")
    row = await house.push(from_("nobody"), f"drop{plus}@{DOMAIN}")
    assert row["disposition"] == "held"


async def test_a_secret_address_is_for_one_mailbox_one_key_and_one_time(house: House) -> None:
    await register(house, "ida")
    address = await secret(house, "ida", days=1)
    house.intake.check_recipient(address)
    with pytest.raises(PermanentFailure):
        house.intake.check_recipient(address.replace("drop+", "other+"))
    late = app.open_who(house.settings)
    late._clock = lambda: utc_now() + timedelta(days=1)
    assert "has expired" in late.refusal(router(house.settings).route(address), address)
    for position in range(len("drop+"), len("drop+") + 24):
        letter = "a" if address[position] != "a" else "b"
        with pytest.raises(PermanentFailure):
            house.intake.check_recipient(address[:position] + letter + address[position + 1 :])


async def test_rotating_and_removing_make_secret_addresses_void_at_once(house: House) -> None:
    await register(house, "jack")
    old = await secret(house, "jack")
    house.intake.check_recipient(old)
    assert await house.store.people.rotate("jack@example.org")
    with pytest.raises(PermanentFailure):
        house.intake.check_recipient(old)
    new = await secret(house, "jack")
    house.intake.check_recipient(new)
    assert await house.store.people.remove("JACK@Example.org")
    with pytest.raises(PermanentFailure):
        house.intake.check_recipient(new)


async def test_tokens_stay_out_of_lists_stories_events_and_the_log(house: House) -> None:
    await register(house, "kate")
    address = await secret(house, "kate")
    token = address.partition("+")[2].partition("@")[0]
    row = await house.bring(from_("kate", "quiet"), address)
    assert row["rcpt_to"] == f"drop+…@{DOMAIN}"
    story = await house.store.mails.story(row["id"])
    assert token not in str(story)
    assert token not in house.log.getvalue()
    assert "mail-recorded" in house.log.getvalue()
    import sqlalchemy as sa

    from gateway.store.schema import outbox

    bodies = await house.store.database.read(
        lambda connection: connection.execute(sa.select(outbox.c.body)).scalars().all()
    )
    assert not any(token.encode() in body for body in bodies)


async def test_the_snapshot_is_enough_while_the_database_is_away(house: House) -> None:
    await register(house, "lena")
    address = await secret(house, "lena")
    file = people_file(house.settings)
    assert file.people().at("LENA@example.org") is not None
    path = house.settings.data_dir / "people.json"
    good = path.read_bytes()
    path.write_bytes(b"[{")
    assert file.people().at("lena@example.org") is not None
    path.write_bytes(good)
    app.open_who(house.settings)
    house.intake.check_recipient(address)
    assert path.stat().st_mode & 0o077 == 0


async def test_an_address_is_registered_once_whatever_its_case(house: House) -> None:
    await register(house, "mona")
    for address in ("mona@example.org", "Mona@EXAMPLE.org"):
        with pytest.raises(PermanentFailure, match="registered already"):
            await house.store.people.add(address)
    with pytest.raises(PermanentFailure):
        await house.store.people.add("no address")


@pytest.mark.parametrize(
    ("more", "is_loop"),
    [
        (["Received: by c", f"Delivered-To: open@{DOMAIN}", "Received: by a"], True),
        (["Received: by c", f"delivered-to: <Open+x@{DOMAIN.upper()}>", "Received: by a"], False),
        (["Received: by c", f"delivered-to: <OPEN@{DOMAIN.upper()}>", "Received: by a"], True),
        (["Received: by c", f"Delivered-To: open@{DOMAIN}"], False),
        ([f"Delivered-To: open@{DOMAIN}", "Received: by a"], False),
        (["Received: by c", "Delivered-To: else@example.org"], False),
        (["X-Gateway-Notice: confirm"], True),
    ],
)
async def test_a_mail_that_was_here_before_is_held(house: House, more: list[str], is_loop: bool) -> None:
    row = await house.bring(from_("loop", f"loop {more}", more=more), f"open@{DOMAIN}")
    assert (row["disposition"] == "held") is is_loop
    assert row["reason"].startswith("a mail loop") is is_loop


async def test_who_logged_in_at_our_mail_server_may_be_told_and_nobody_he_names(house: House) -> None:
    more = ["Authentication-Results: mx.example.net; auth=pass smtp.auth=otto@example.org", "Received: from a by b"]
    untold = {}
    for name, mail_from, trusted in (
        ("own", "otto@example.org", True),
        ("another's", "victim@example.com", True),
        ("forged", "otto@example.org", False),
    ):
        octets = from_("otto", name, more=more)
        row = await house.bring(octets, f"open@{DOMAIN}", mail_from=mail_from, door="lmtp", by_trusted_host=trusted)
        story = await house.store.mails.story(row["id"])
        assert story is not None
        untold[name] = story["untold"]
    assert untold["own"] == ""
    assert "does not say that it knows the sender" in untold["another's"]
    assert "where the sender is hearsay" in untold["forged"]


async def test_our_mail_servers_word_is_taken_from_itself_only(house: House) -> None:
    await register(house, "nina")
    more = ["Authentication-Results: mx.example.net; dmarc=pass header.from=example.org"]
    octets = from_("nina", "by lmtp", more=more)
    handed_over = await house.bring(octets, door="smtp", by_trusted_host=True)
    assert handed_over["disposition"] == "delivered"
    stored = await house.store.mails.stored(handed_over["id"])
    assert stored is not None
    assert [ticket.headers["by_trusted_host"] for ticket in replay_tickets(stored, ["a@b.example"])] == [True]
    for number, door in enumerate(("smtp", "lmtp")):  # by TCP anybody may speak LMTP
        row = await house.bring(octets + b"x\r\n" * (number + 1), door=door)
        assert row["disposition"] == "held", door
