"""The schema's versions: which one a database has, and the way to ours.

A new database is made in one step from `store.schema` and stamped; an older one is led up by alembic, which is imported
only then.  Everything happens in one transaction, so that of several processes that start together one does it.  A test
proves that both ways end at the same tables.

Versions N and N+1 run side by side: a schema says in `meta` since which version a gateway may work on it (COMPATIBLE_FROM).
A newer schema whose word names a version known here is worked on as it is; any other, or a foreign one, is refused in words.
A migration that only adds (tables, indexes, columns with a server default) leaves COMPATIBLE_FROM alone; one that takes
something away or changes what it means sets it to its own number, and comes a release after the code stopped using it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from gateway.errors import Problem, SettingsError
from gateway.mail.ids import new_id
from gateway.store import published, schema
from gateway.store.locks import hold_name

if TYPE_CHECKING:
    from gateway.store.database import Database

KNOWN_VERSIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
HEAD = KNOWN_VERSIONS[-1]
COMPATIBLE_FROM = "0008"  # whoever knows this schema may work on ours
_COMPATIBLE = "compatible_from"

_stamp = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


async def upgrade(database: Database) -> None:
    """Brings the schema to this gateway's version; raises SettingsError where that cannot be."""
    await database.write(_bring_up_to_date)


async def is_compatible(database: Database) -> bool:
    """Whether a schema that is not ours may be worked on as it is: a newer gateway says so."""
    return await database.read(_is_compatible)


async def current_version(database: Database) -> str | None:
    """The schema's version, None for an empty database."""
    return await database.read(_version)


def _bring_up_to_date(connection: sa.Connection) -> None:
    hold_name(connection, "schema")
    version = _version(connection)
    if version == HEAD:
        return
    if version is None:
        _create(connection)
    elif version in KNOWN_VERSIONS:
        run_alembic(connection)
    elif _is_compatible(connection):
        return
    else:
        raise _refusal(
            f"the store has schema {version}, newer than {HEAD}, which this gateway knows: run the newer gateway"
        )
    _say_compatible(connection)


def _is_compatible(connection: sa.Connection) -> bool:
    if not sa.inspect(connection).has_table(schema.meta.name):
        return False  # somebody else's, who uses alembic, too
    query = sa.select(schema.meta.c.value).where(schema.meta.c.key == _COMPATIBLE)
    return connection.execute(query).scalar() in KNOWN_VERSIONS


def _say_compatible(connection: sa.Connection) -> None:
    connection.execute(sa.delete(schema.meta).where(schema.meta.c.key == _COMPATIBLE))
    connection.execute(sa.insert(schema.meta), {"key": _COMPATIBLE, "value": COMPATIBLE_FROM})


def _version(connection: sa.Connection) -> str | None:
    tables = sa.inspect(connection).get_table_names()
    if _stamp.name in tables:
        found = connection.execute(sa.select(_stamp.c.version_num)).scalars().all()
        if len(found) == 1:
            return str(found[0])
    if tables:
        raise _refusal("the database holds tables that are not the gateway's: give it one of its own")
    return None


def _create(connection: sa.Connection) -> None:
    schema.metadata.create_all(connection, checkfirst=False)
    published.make_views(connection)
    connection.execute(sa.insert(schema.meta), {"key": "epoch", "value": new_id()})
    _stamp.create(connection)
    connection.execute(sa.insert(_stamp), {"version_num": HEAD})


def run_alembic(connection: sa.Connection, version: str = "head") -> None:
    """Leads the schema up on an open connection, inside its transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def _refusal(text: str) -> SettingsError:
    return SettingsError([Problem("database_url", text)])
