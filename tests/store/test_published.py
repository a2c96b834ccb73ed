"""What an app's role may read and a worker's role may write of a PostgreSQL store, and what both are refused."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from gateway.contract.email_send import SendEmail
from gateway.errors import StoreUnavailable
from gateway.mail.ids import new_id
from gateway.store import schema
from gateway.store.database import Database, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Acceptance, Claim
from gateway.store.postgresql import PostgresDatabase
from gateway.store.postgresql_url import parse_postgresql_url
from gateway.store.published import VIEWS, grant_statements, prove

APP, WORKER = "shop-app", "mail_worker"
SECRETS = {"octets", "claim_token", "claim_until", "content_hash", "content_key", "ticket_id", "return_path", "body"}


@pytest.fixture
async def granted_url(bare_postgres_url: str, postgres_server) -> Iterator[str]:
    """A store of its owner's, and two roles that were granted what `gateway db grants` prints; twice, as after an upgrade."""
    await (await open_database(bare_postgres_url)).close()
    name = urlsplit(bare_postgres_url).path[1:]
    for role in (APP, WORKER):
        postgres_server.run(f'CREATE ROLE "{role}" LOGIN')
        postgres_server.run(
            f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"', name
        )  # what somebody did in a hurry
    for statement in grant_statements(app_role=APP, worker_role=WORKER) * 2:
        postgres_server.run(statement, name)
    yield bare_postgres_url
    for role in (APP, WORKER):
        postgres_server.run(f'DROP OWNED BY "{role}"', name)
        postgres_server.run(f'DROP ROLE "{role}"')


def as_role(url: str, role: str) -> str:
    return url.replace("//postgres@", f"//{role}@")


async def refused(database: PostgresDatabase, statement: str) -> bool:
    try:
        await database.write(lambda connection: connection.execute(sa.text(statement)).close())
    except StoreUnavailable as refusal:
        return "permission denied" in str(refusal) or "must be owner" in str(refusal)
    return False


async def test_an_app_reads_what_is_published_and_nothing_else(granted_url: str) -> None:
    app = PostgresDatabase(parse_postgresql_url(as_role(granted_url, APP)))
    await app.open()
    await app.read(prove)
    for view in VIEWS:
        count = sa.text(f"SELECT count(*) FROM {view}")
        assert await app.read(lambda connection, count=count: connection.execute(count).scalar_one()) == 0
    for table in [*schema.metadata.tables, "alembic_version"]:
        assert await refused(app, f"SELECT count(*) FROM {table}"), table
        assert await refused(app, f"DELETE FROM {table}"), table
    for statement in (
        "UPDATE published_posts SET title = ''",
        "INSERT INTO published_posts (id) VALUES ('1')",
        "DELETE FROM published_posts",
        "CREATE TABLE mine (x int)",
        "DROP VIEW published_posts",
        "SELECT nextval('outbox_id_seq')",
    ):
        assert await refused(app, statement), statement
    await app.close()


async def test_a_worker_does_all_the_gateways_work_and_makes_no_tables(granted_url: str, blobs, clock) -> None:
    database: Database = await open_database(as_role(granted_url, WORKER))
    ledger = DatabaseLedger(database, blobs, clock=clock, hostname="mx.test")
    email = SendEmail(id=new_id(), to=("ann@example.org",), subject="s", text="t")
    accepted = await ledger.record_accepted(
        email, app="", content_hash="h", ticket_id="t", stream="normal", message_id="<1@mx.test>"
    )
    assert accepted is Acceptance.ACCEPTED
    assert isinstance(await ledger.claim(email.id, "ann@example.org", ticket_id="t", lifetime_seconds=9), Claim)
    for table in schema.metadata.tables:
        counted = sa.text(f"SELECT count(*) FROM {table}")
        await database.read(lambda connection, counted=counted: connection.execute(counted).scalar_one())
        deleted = sa.text(f"DELETE FROM {table} WHERE false")
        await database.write(lambda connection, deleted=deleted: connection.execute(deleted).rowcount)
    for statement in (
        "CREATE TABLE mine (x int)",
        "DROP TABLE outbox",
        "ALTER TABLE mails ADD COLUMN x int",
        "TRUNCATE timeline",
    ):
        assert await refused(database, statement), statement
    assert await refused(database, "UPDATE alembic_version SET version_num = '1'")
    await database.close()


async def test_views_show_no_octets_claims_or_tickets(database: Database) -> None:
    for view in VIEWS:
        shown = await database.read(
            lambda connection, view=view: set(connection.execute(sa.text(f"SELECT * FROM {view}")).keys())
        )
        assert shown, view
        assert not shown & SECRETS, view


@pytest.mark.parametrize("name", ['x"; DROP TABLE mails; --', "", "a b", "1a"])
def test_what_is_no_name_for_a_role_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        grant_statements(app_role=name, worker_role="w")
