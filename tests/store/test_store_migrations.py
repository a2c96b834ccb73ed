"""The schema's versions: made quickly, led up, refused when newer; migrations and tables say the same."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from gateway.contract.email_send import SendEmail
from gateway.errors import SettingsError, StoreUnavailable
from gateway.mail.ids import new_id
from gateway.reply import Reply
from gateway.store import migrations, published, schema
from gateway.store.blobs import FileBlobStore
from gateway.store.database import Database, open_as_it_is, open_database
from gateway.store.emails import DatabaseLedger
from gateway.store.ledger import Claim
from gateway.store.lists import Lists
from gateway.store.postgresql import PostgresDatabase
from gateway.store.postgresql_url import parse_postgresql_url
from gateway.watch.doctor import check_store


def database_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')")
        ]
        views = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY name").fetchall()
        found = {name: connection.execute(f"PRAGMA table_xinfo({name})").fetchall() for name in names}
        for name in names:
            found[f"{name} keys"] = connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()
            found[f"{name} index"] = connection.execute(f"PRAGMA index_xinfo({name})").fetchall()
    return found | {"views": views}


def _make_by_migrations(path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        migrations.run_alembic(connection)
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()


async def test_migrations_and_tables_say_the_same(tmp_path: Path) -> None:
    await asyncio.to_thread(_make_by_migrations, tmp_path / "led.db")
    database = await open_database(f"sqlite:///{tmp_path}/made.db")
    await database.close()
    led, made = _tables(tmp_path / "led.db"), _tables(tmp_path / "made.db")
    assert led == made
    assert "ix_outbox_unpublished" in led
    assert {name for name, _ in led["views"]} == set(published.VIEWS)


_SERVER_TABLES = (
    "SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default"
    " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2",
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1",
    "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
)


def _lead_up(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    migrations.run_alembic(connection)


async def test_migrations_and_tables_say_the_same_to_a_server(postgres_server) -> None:
    led, made = (postgres_server.new_database(is_bare=True) for _ in range(2))
    database = PostgresDatabase(parse_postgresql_url(postgres_server.url(led)))
    await database.open()
    await database.write(_lead_up)
    await database.close()
    await (await open_database(postgres_server.url(made))).close()
    for query in _SERVER_TABLES:
        assert postgres_server.run(query, led) == postgres_server.run(query, made)
    assert "published_emails" in postgres_server.run(_SERVER_TABLES[3], led)


async def test_an_older_store_is_led_up_and_what_its_emails_attach_is_noted(bare_database_url: str) -> None:
    blob = "sha256:" + "a" * 64
    request = json.dumps({"attachments": [{"filename": "f", "blob": blob}, {"filename": "g", "blob": blob}]}).encode()

    def older(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
        migrations.run_alembic(connection, "0001")
        now = datetime.now(UTC)
        facts = dict.fromkeys(("content_hash", "stream", "on_unknown", "message_id"), "x")
        connection.execute(sa.insert(schema.emails), facts | {"id": "1", "accepted_at": now, "expires_at": now})
        kept = {"email_id": "1", "kind": "request", "size": len(request), "octets": request}
        connection.execute(sa.insert(schema.email_octets), kept)

    database = await open_as_it_is(bare_database_url)
    await database.write(older)
    assert await migrations.current_version(database) == "0001"
    await database.close()
    led = await open_database(bare_database_url)
    assert await migrations.current_version(led) == migrations.HEAD
    noted = sa.select(schema.email_attachments.c.email_id, schema.email_attachments.c.blob)
    assert [tuple(row) for row in await led.read(lambda c: c.execute(noted).all())] == [("1", blob)]
    await led.close()


def test_the_last_known_version_is_the_last_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


async def test_a_new_store_has_an_epoch(bare_database_url: str) -> None:
    database = await open_database(bare_database_url)
    query = sa.select(schema.meta.c.value).where(schema.meta.c.key == "epoch")
    assert await database.read(lambda connection: connection.execute(query).scalar_one())
    assert await migrations.current_version(database) == migrations.HEAD
    await database.close()


async def test_processes_that_start_together_make_one_schema_without_alembic(bare_database_url: str, run_child) -> None:
    assert await asyncio.gather(*(run_child("open", bare_database_url) for _ in range(3))) == [0, 0, 0]


async def _refusal(url: str) -> str:
    with pytest.raises(SettingsError) as refused:
        await open_database(url)
    return str(refused.value)


def _newer(connection: sa.Connection, compatible_from: str) -> None:
    """What a later version does to a schema by adding: a column with a default to every table, a table, its number."""
    for table in schema.metadata.sorted_tables:
        connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN of_tomorrow TEXT NOT NULL DEFAULT 'x'"))
    connection.execute(sa.text("CREATE TABLE tomorrow (id TEXT PRIMARY KEY)"))
    connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    meta = schema.meta
    connection.execute(sa.update(meta).where(meta.c.key == "compatible_from").values(value=compatible_from))


async def test_a_newer_schema_that_only_adds_is_worked_on_beside_the_newer_gateway(
    bare_database_url: str, tmp_path: Path
) -> None:
    running = await open_database(bare_database_url)
    ledger = DatabaseLedger(running, FileBlobStore(tmp_path), clock=running.clock, hostname="mx.test")
    await _send_one(ledger)
    other = await open_as_it_is(bare_database_url)
    await other.write(lambda connection: _newer(connection, migrations.HEAD))
    await other.close()
    await _send_one(ledger)  # N was running when N+1 led the schema up
    await running.close()

    again = await open_database(bare_database_url)  # and N may be started again beside it
    await migrations.upgrade(again)
    assert await migrations.current_version(again) == "9999"
    ledger = DatabaseLedger(again, FileBlobStore(tmp_path), clock=again.clock, hostname="mx.test")
    await _send_one(ledger)
    assert [row["disposition"] for row in await Lists(again).newest("emails")] == ["relayed"] * 3
    await again.close()
    found = await check_store(bare_database_url)
    assert (found.level, "schema 9999 of a newer gateway" in found.finding) == ("ok", True)


async def _send_one(ledger: DatabaseLedger) -> None:
    email = SendEmail(id=new_id(), to=("ann@example.org",), subject="s", text="t")
    await ledger.record_accepted(
        email, app="", content_hash="h", ticket_id="t", stream="normal", message_id=f"<{email.id}@mx.test>"
    )
    claim = await ledger.claim(email.id, "ann@example.org", ticket_id="t", lifetime_seconds=60)
    assert isinstance(claim, Claim)
    await ledger.record_dot_sent(claim)
    await ledger.record_relayed(claim, relay="r", reply=Reply(code=250, enhanced_status="2.0.0", text="ok"))


async def test_a_newer_schema_that_takes_away_is_refused_in_words(bare_database_url: str) -> None:
    database = await open_database(bare_database_url)
    await database.write(lambda connection: _newer(connection, "9999"))
    await database.close()
    assert "schema 9999, newer than" in await _refusal(bare_database_url)
    found = await check_store(bare_database_url)
    assert (found.level, found.next_step) == ("wrong", "run the newer gateway")


async def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    assert "not the gateway's" in await _refusal(f"sqlite:///{tmp_path}/store.db")


async def test_somebody_elses_database_is_refused(bare_postgres_url: str, postgres_server) -> None:
    postgres_server.run("CREATE TABLE recipes (name text)", database_of(bare_postgres_url))
    assert "not the gateway's" in await _refusal(bare_postgres_url)


async def test_moments_are_compared_as_moments_whatever_their_offset(database: Database) -> None:
    base = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    east = timezone(timedelta(hours=5, minutes=30))
    moments = [base, base + timedelta(microseconds=1), (base + timedelta(seconds=1)).astimezone(east)]
    rows = [
        {"event_id": str(i), "type": "t", "subject": "s", "created_at": moment, "body": b""}
        for i, moment in enumerate(reversed(moments))
    ]

    def work(connection: sa.Connection) -> tuple[list[datetime], int]:
        connection.execute(sa.insert(schema.outbox), rows)
        ordered = connection.execute(sa.select(schema.outbox.c.created_at).order_by(schema.outbox.c.created_at))
        later = sa.select(sa.func.count()).where(schema.outbox.c.created_at > base.astimezone(east))
        return list(ordered.scalars()), connection.execute(later).scalar_one()

    ordered, later = await database.write(work)
    assert ordered == moments
    assert all(moment.tzinfo is not None for moment in ordered)
    assert later == 2


async def test_a_moment_without_offset_is_refused(database: Database) -> None:
    row = {"event_id": "1", "type": "t", "subject": "s", "created_at": datetime(2026, 3, 1), "body": b""}
    with pytest.raises(sa.exc.StatementError, match="no offset"):
        await database.write(lambda connection: connection.execute(sa.insert(schema.outbox), row))


def test_the_tables_can_be_said_in_postgresql() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    text = "\n".join(
        str(CreateTable(table).compile(dialect=postgresql.dialect())) for table in schema.metadata.sorted_tables
    )
    assert "TIMESTAMP WITH TIME ZONE" in text
    assert "JSONB" in text
    assert "BIGSERIAL" in text


async def test_a_large_store_that_cannot_be_led_up_at_the_start_says_how(
    bare_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT set_config('statement_timeout', '100', true)")).close()
        connection.execute(sa.text("SELECT pg_sleep(60)")).close()

    monkeypatch.setattr("gateway.store.migrations._bring_up_to_date", slow)
    with pytest.raises(StoreUnavailable, match=r"statement timeout: .*`gateway db upgrade`"):
        await open_database(bare_postgres_url)
