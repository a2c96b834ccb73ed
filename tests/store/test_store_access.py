"""Users, sessions, invitations and keys: what is kept of secrets, and what ends what."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from gateway.errors import InvalidRequest
from gateway.store import schema
from gateway.store.access import Access
from gateway.store.database import Database, open_database


@pytest.fixture
def access(database: Database, clock) -> Access:
    return Access(database, clock=clock)


async def everything(database: Database) -> str:
    def work(connection: sa.Connection) -> str:
        tables = (schema.users, schema.sessions, schema.api_keys, schema.invitations)
        return repr([list(connection.execute(sa.select(table))) for table in tables])

    return await database.read(work)


async def test_no_secret_is_stored(access: Access, database: Database) -> None:
    key = await access.add_key("shop", ["send"])
    await access.add_user("ann", "kept")
    session = await access.start_session("ann", "kept")
    stored = await everything(database)
    assert key[:11] in stored
    assert key[12:] not in stored
    assert session not in stored
    assert "secret_hash" not in (await access.keys())[0]


async def test_the_house_is_open_until_somebody_has_a_name_and_again_when_nobody_has(access: Access) -> None:
    assert (await access.look()).is_open
    await access.invite("carla")
    assert (await access.look()).is_open, "an invitation is nobody yet"
    key = await access.add_key("shop", ["send"])
    assert not (await access.look()).is_open
    await access.add_user("ann", "kept")
    await access.revoke_key(key)
    assert not (await access.look()).is_open
    await access.remove_user("ann")
    assert (await access.look()).is_open


async def test_another_process_sees_it_closed_at_once(access: Access, database_url: str, clock) -> None:
    other = await open_database(database_url)
    try:
        assert (await Access(other, clock=clock).look()).is_open
        await access.add_user("ann", "kept")
        assert not (await Access(other, clock=clock).look()).is_open
    finally:
        await other.close()


@pytest.mark.parametrize(
    "text", ["", "gw_", "gw_aaaaaaaa_", "x" * 5000, "gw_aaaaaaaa_" + "A" * 43, "gw_aaaaaaaa_" + "\u0000" * 43]
)
async def test_what_is_no_key_opens_nothing(access: Access, text: str) -> None:
    key = await access.add_key("shop", ["send", "read"])
    found = (await access.look(key=key)).key
    assert found is not None
    assert (found.app, found.scopes) == ("shop", frozenset({"send", "read"}))
    for wrong in (text, key[:-1], key + "x", key.upper(), key[:12] + "A" * 43):
        assert (await access.look(key=wrong)).key is None


@pytest.mark.parametrize(
    ("app", "scopes", "path"),
    [("", ["send"], "app"), ("a b", ["send"], "app"), ("shop", [], "scope"), ("shop", ["all"], "scope")],
)
async def test_a_key_without_an_app_or_a_scope_is_refused(
    access: Access, app: str, scopes: list[str], path: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await access.add_key(app, scopes)
    assert refused.value.problems[0].path == path


@pytest.mark.parametrize("name", ["", " ", "a b", "-x", "a" * 65, "ann\x00", "änn", "../ann"])
async def test_a_name_that_cannot_be_typed_everywhere_is_refused(access: Access, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await access.add_user(name, "kept")
    assert await access.password_hash(name) is None


async def test_a_user_is_made_once_whatever_the_case(access: Access) -> None:
    assert await access.add_user("Ann", "kept")
    assert not await access.add_user(" ann ", "other")
    assert await access.password_hash("ANN") == "kept"
    assert [user["name"] for user in await access.users()] == ["ann"]
    assert not await access.set_password("ben", "kept")


async def test_no_session_starts_on_an_old_password(access: Access) -> None:
    await access.add_user("ann", "kept")
    assert await access.start_session("ann", "kept")
    await access.set_password("ann", "new")
    assert await access.start_session("ann", "kept") == ""
    assert await access.start_session("nobody", "kept") == ""
    assert (await access.users())[0]["sessions"] == 0


async def test_an_invitation_is_good_once_however_many_come(access: Access) -> None:
    invitation = await access.invite("Carla")
    assert await access.invited(invitation) == "carla"
    made = await asyncio.gather(*(access.accept_invitation(invitation, f"kept {n}") for n in range(5)))
    assert sorted(filter(None, made)) == ["carla"]
    assert await access.invited(invitation) is None


async def test_an_invitation_never_takes_over_a_user(access: Access) -> None:
    invitation = await access.invite("ann")
    await access.add_user("ann", "kept")
    assert await access.accept_invitation(invitation, "other") is None
    assert await access.password_hash("ann") == "kept"
    assert await access.invited(invitation) is None


async def test_an_invitation_is_over_after_its_time(access: Access, clock) -> None:
    invitation = await access.invite("ann", lifetime_seconds=60)
    clock.advance(61)
    assert await access.invited(invitation) is None
    assert await access.accept_invitation(invitation, "kept") is None
    assert not await access.is_entered()
