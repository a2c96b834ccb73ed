"""What a postgresql:// URL may say, and what is refused in words before anything is sent to a server."""

from __future__ import annotations

import pytest

from gateway.errors import SettingsError
from gateway.store.postgresql_url import CONNECT_SECONDS, parse_postgresql_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgres:///store",
        "postgresql://u:p%40ss@h:5433/store?sslmode=verify-full&sslrootcert=/etc/passwd",
        "postgresql:///store?host=/run/postgresql",
        "postgresql://%2Frun%2Fpostgresql/store",
        "postgresql://u@[::1]:5432/store",
        "postgresql://h/store?service=mail&options=-c%20search_path%3Dgateway",
        "postgresql://h/store?channel_binding=prefer&gssencmode=disable",
    ],
)
def test_what_libpq_takes_is_taken(url: str) -> None:
    parse_postgresql_url(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://h/db?sslmod=require", "'sslmod' is not known"),
        ("postgresql://h/db?sslmode=verify_full", "sslmode is one of"),
        ("postgresql://h/db?sslrootcert=/nowhere.pem", "/nowhere.pem is not a file"),
        ("postgresql://h/db?keepalives=1", "'keepalives' is not known"),
        ("postgresql://h/db?channel_binding=require", "channel_binding is one of"),
        ("postgresql://h/db?target_session_attrs=rw", "target_session_attrs is one of"),
        ("postgresql://h/db?connect_timeout=soon", "whole number of seconds"),
        ("postgresql://h:port/db", "'port' is not a port"),
        ("postgresql://a,b:70000/db", "'70000' is not a port"),
        ("postgresql://h/db?port=x", "'x' is not a port"),
        ("postgresql://u:p#ss@h/db", "%23"),
        ("postgresql://h/db?x", "no postgresql:// URL"),
    ],
)
def test_what_it_does_not_know_is_refused_in_words(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=r"^database_url: ") as refused:
        parse_postgresql_url(url)
    assert why in str(refused.value)


def test_of_several_hosts_one_that_writes_is_wanted_unless_the_url_says_otherwise() -> None:
    assert "target_session_attrs=read-write" in parse_postgresql_url("postgresql://a,b/db").dsn
    assert "target_session_attrs=any" in parse_postgresql_url("postgresql://a,b/db?target_session_attrs=any").dsn
    assert "target_session_attrs" not in parse_postgresql_url("postgresql://a/db").dsn


def test_connect_timeout_is_ours_to_keep_and_never_without_end() -> None:
    address = parse_postgresql_url("postgresql://h/db?connect_timeout=9")
    assert (address.connect_seconds, "connect_timeout" in address.dsn) == (9.0, False)
    assert parse_postgresql_url("postgresql://h/db?connect_timeout=0").connect_seconds == CONNECT_SECONDS
    assert parse_postgresql_url("postgresql://h/db?connect_timeout=1").connect_seconds == 2.0


def test_the_password_is_not_shown() -> None:
    assert "s3cret" not in repr(parse_postgresql_url("postgresql://u:s3cret@h/db"))
