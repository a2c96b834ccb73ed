"""RabbitMQ goes away, takes nothing, lets us in no more, forgets everything: what doors, apps, admins and the books say.

Each fault hits one house under traffic.  The door answers 451 and the client says what is wrong; nothing promised is lost or
done twice; new work is done within 15 s of the return and parked work within a minute; an alarm goes out and is withdrawn.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.scripted_relay import ScriptedRelay
from fakes.sms_receiver import Receiver
from flows.place import Place, a_mail, house_on, opened
from flows.traffic import Traffic
from services.rabbitmq import Epmd, Node, require

from gateway.app import open_queue, open_store
from gateway.runtime import Stop
from gateway.settings import load
from gateway.watch.sweeper import OVERDUE_SECONDS, sweep

USER, VHOST = "house", "house"
# What a connection was allowed it goes on doing, so that it is cut, too.
_CUT = '[rabbit_networking:close_connection(P, "revoked") || P <- rabbit_networking:connections()]'
_GRANT = (
    f'rabbit_auth_backend_internal:set_permissions(<<"{USER}">>, <<"{VHOST}">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>)'
)
_REVOKE = f'rabbit_auth_backend_internal:clear_permissions(<<"{USER}">>, <<"{VHOST}">>, <<"t">>)'
_WIPE = f'catch rabbit_vhost:delete(<<"{VHOST}">>, <<"t">>), rabbit_vhost:add(<<"{VHOST}">>, <<"t">>), {_GRANT}.'


@dataclass(frozen=True)
class Fault:
    """How it comes and how it goes."""

    name: str
    come: Callable[[Node], object]
    go: Callable[[Node], object]
    is_long: bool = False


def _password(word: str) -> str:
    return f'rabbit_auth_backend_internal:change_password(<<"{USER}">>, <<"{word}">>, <<"t">>)'


FAULTS = [
    Fault("restart", Node.kill, Node.start),
    Fault(
        "disk alarm",
        lambda node: node.ctl("set_disk_free_limit", "900000GB"),
        lambda node: node.ctl("set_disk_free_limit", "50MB"),
    ),
    Fault(
        "password changed",
        lambda node: node.ctl("eval", f"{_password('other')}, {_CUT}."),
        lambda node: node.ctl("eval", f"{_password('secret')}."),
    ),
    Fault(
        "memory alarm",
        lambda node: node.ctl("set_vm_memory_high_watermark", "0.00001"),
        lambda node: node.ctl("set_vm_memory_high_watermark", "0.4"),
        is_long=True,
    ),
    Fault(
        "rights taken away",
        lambda node: node.ctl("eval", f"{_REVOKE}, {_CUT}."),
        lambda node: node.ctl("eval", f"{_GRANT}."),
        is_long=True,
    ),
]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node of these tests' own: it is killed, filled and emptied."""
    require()
    folder = Path(tempfile.mkdtemp(prefix="gateway-faults-"))
    epmd = Epmd()
    found = Node(folder / "node", epmd)
    try:
        found.start()
        found.ctl("eval", f'rabbit_auth_backend_internal:add_user(<<"{USER}">>, <<"secret">>, <<"t">>).')
        yield found
    finally:
        found.end()
        epmd.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(node: Node) -> str:
    """The house's vhost, new and empty, with the house's own user."""
    node.ctl("eval", _WIPE)
    return node.url(VHOST, user=USER, password="secret")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


async def live_through(fault: Fault, node: Node, traffic: Traffic, receiver: Receiver) -> str:
    """One fault under traffic, from the first no to the last parked ticket; says how long it took to recover."""
    told, refused, failed = len(receiver.messages), traffic.refusals.total(), traffic.errors.total()

    async def both_said_no() -> bool:
        return traffic.refusals.total() > refused and traffic.errors.total() > failed

    async with traffic.flowing():
        await traffic.more(3)
        await asyncio.to_thread(fault.come, node)
        try:
            await traffic.place.until(both_said_no)
            raised = (await asyncio.to_thread(receiver.wait_for, told + 1))[told]
        finally:
            await asyncio.to_thread(fault.go, node)
        began = time.monotonic()
    said = await traffic.recovery(fault.name, began)
    over = (await asyncio.to_thread(receiver.wait_for, told + 2))[told + 1]
    assert "critical: the queue cannot be reached" in raised["title"], raised
    assert "doors answer 451" in raised["message"]
    assert "over again: the queue cannot be reached" in over["title"], over
    assert len(receiver.messages) == told + 2, "told once, withdrawn once"
    return said


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([fault for fault in FAULTS if not fault.is_long], id="short"),
        pytest.param(FAULTS, id="all", marks=pytest.mark.long),
    ],
)
async def test_whatever_ails_the_broker_doors_say_451_and_nothing_promised_is_lost(
    faults: list[Fault], node: Node, url: str, receiver: Receiver, tmp_path: Path
) -> None:
    async with ScriptedRelay() as relay:
        house = house_on(tmp_path / "house", relay.port, {"queue_url": url}, GATEWAY_ADMIN_URLS=receiver.url)
        async with opened(house, relay, url) as place:
            traffic = Traffic(place)
            said = [await live_through(fault, node, traffic, receiver) for fault in faults]
            await traffic.prove()
    print("\n".join([*said, *map(str, traffic.refusals.items()), *map(str, traffic.errors.items())]))
    assert all(text.startswith("451 4.3.0 ") for text in traffic.refusals), traffic.refusals
    assert "secret" not in str(traffic.errors)
    assert " object at 0x" not in str(traffic.errors), "a client is told in words"


WAITING = [f"waits-{number}@example.org" for number in range(3)]


@asynccontextmanager
async def swept(place: Place, overdue_seconds: float) -> AsyncIterator[None]:
    """A sweeper at work in the house, with less patience than the shipped one has."""
    settings, stop = load(environment=place.house.environment()), Stop()
    async with open_queue(settings) as broker, open_store(settings) as store, asyncio.TaskGroup() as work:
        work.create_task(
            sweep(store.ledger, broker, stop=stop, interval_seconds=1, overdue_seconds=overdue_seconds)  # type: ignore[arg-type]
        )
        yield
        stop.set()


async def promised(place: Place) -> tuple[list[str], list[str]]:
    """What is promised when the broker is wiped: ids of emails in the ledger, and ids whose ticket lies in the broker only."""
    emails = [await place.client.send("welcome", to=to, params={"name": "Ann"}) for to in WAITING]
    for email_id in emails:
        await place.email(email_id, "delayed")
    soon = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    emails.append(await place.client.send("welcome", to="timed@example.org", params={"name": "Ann"}, send_at=soon))
    await place.email(emails[-1], "pending")
    lost = [await place.mail(a_mail(f"lost-{number}"), "posts@localhost") for number in range(3)]
    lost.append((await place.post("/v1/posts", b'{"author": "Ann", "title": "lost", "text": "words"}'))["id"])
    return emails, lost


async def test_a_wiped_broker_loses_no_email_of_the_ledger_and_reconcile_names_the_rest(
    node: Node, url: str, tmp_path: Path
) -> None:
    await live_through_the_wipe(node, url, tmp_path, overdue_seconds=2)


@pytest.mark.long
async def test_a_wiped_broker_loses_no_email_with_the_patience_that_is_shipped(
    node: Node, url: str, tmp_path: Path
) -> None:
    await live_through_the_wipe(node, url, tmp_path, overdue_seconds=OVERDUE_SECONDS)


async def live_through_the_wipe(node: Node, url: str, folder: Path, *, overdue_seconds: float) -> None:
    """Nobody works the mails before the wipe, so that their tickets lie in the broker and nowhere else."""
    async with ScriptedRelay({f"rcpt {to}": ["451 4.2.1 not now"] for to in WAITING}) as relay:
        house = house_on(folder / "house", relay.port, {"queue_url": url}, GATEWAY_RETRY_LADDER="30s 30s 30s")
        async with opened(house, relay, url, "smtp", "send", "web", "events") as place:
            emails, lost = await promised(place)
            await asyncio.to_thread(node.ctl, "eval", _WIPE)
            assert relay.taken == [], "every email was still waiting"
            async with place.another("ingest"), swept(place, overdue_seconds):
                new = await Traffic(place).mail("after-the-wipe")
                await place.delivered(new)
                for email_id in emails:
                    await place.email(email_id, "relayed")
                await place.until(lambda: named(place, lost))
            assert Counter(item.recipient for item in relay.taken) == Counter([*WAITING, "timed@example.org"])


async def named(place: Place, lost: list[str]) -> bool:
    """Whether reconcile is out of balance by exactly these."""
    done = await place.command("reconcile", "--json")
    return done.returncode == 1 and sorted(json.loads(done.stdout)["missing"]) == sorted(lost)
