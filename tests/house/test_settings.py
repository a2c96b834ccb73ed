"""Settings: order of places, every mistake at once with key and place, secrets masked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway import settings
from gateway.client import sqlite_path
from gateway.errors import SettingsError


def problems_of(**values: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings.load(**values)  # type: ignore[arg-type]
    return [str(problem) for problem in caught.value.problems]


def test_command_line_beats_environment_beats_secrets_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        'hostname = "file.example"\nmail_from = "file@example.org"\nunknown_wait = "1m"\nweb_listen = "[::1]:1"\n'
    )
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for key, value in (("hostname", "secret.example"), ("mail_from", "secret@example.org"), ("unknown_wait", "2m")):
        (secrets / f"gateway_{key}").write_text(value + "\n")
    environment = {
        "GATEWAY_SECRETS_DIR": str(secrets),
        "GATEWAY_HOSTNAME": "env.example",
        "GATEWAY_MAIL_FROM": "env@example.org",
    }
    found = settings.load(config=file, environment=environment, overrides=["hostname=line.example"])
    assert found.hostname == "line.example"
    assert found.mail_from == "env@example.org"
    assert found.unknown_wait == 120
    assert found.web_listen == "[::1]:1"
    assert found.retry_ladder == "1m 5m 15m 1h*2 4h*3 12h*9"


def test_tables_merge_and_lists_replace(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('domains = ["a.example", "b.example"]\n[limits]\nidle = "10s"\nrecipients = 7\n')
    found = settings.load(config=file, environment={"GATEWAY_LIMITS__IDLE": "20s", "GATEWAY_DOMAINS": "c.example"})
    assert (found.limits.idle, found.limits.recipients) == (20, 7)
    assert found.domains == ("c.example",)


def test_lists_from_the_environment_are_words_or_json() -> None:
    words = settings.load(environment={"GATEWAY_RELAY_URLS": "smtp://a smtps://b"})
    as_json = settings.load(environment={"GATEWAY_RELAY_URLS": '["smtp://a", "smtps://b"]'})
    assert words.relay_urls == as_json.relay_urls == ("smtp://a", "smtps://b")
    boxes = settings.load(environment={"GATEWAY_MAILBOXES": '[{"address": "x@y.example", "kind": "posts"}]'})
    assert boxes.mailboxes[0].address == "x@y.example"


def test_every_mistake_is_told_at_once_with_key_and_place(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('hostnam = "x"\n[limits]\nidle = "soon"\n')
    found = problems_of(
        config=file, environment={"GATEWAY_RELAY_URL": "x", "GATEWAY_SMTP_LISTEN": "25"}, overrides=["nonsense"]
    )
    assert [line for line in found if line.startswith(f"hostnam ({file}): unknown key; did you mean hostname?")]
    assert [line for line in found if line.startswith(f"limits.idle ({file}): 'soon' is not a duration")]
    assert "relay_url (environment GATEWAY_RELAY_URL): unknown key; did you mean GATEWAY_RELAY_URLS?" in found
    assert [line for line in found if "smtp_listen (environment GATEWAY_SMTP_LISTEN)" in line and "HOST:PORT" in line]
    assert "--set nonsense: is not KEY=VALUE" in found


def test_what_kubernetes_puts_into_the_environment_is_no_mistake() -> None:
    environment = {
        "GATEWAY_SERVICE_HOST": "10.0.0.1",
        "GATEWAY_SERVICE_PORT_SMTP": "25",
        "GATEWAY_PORT": "tcp://10.0.0.1:25",
        "GATEWAY_PORT_25_TCP_ADDR": "10.0.0.1",
        "GATEWAY_WEB_SERVICE_HOST": "10.0.0.1",
    }
    assert settings.load(environment=environment).smtp_listen == "127.0.0.1:2525"


def test_no_key_of_ours_looks_like_kubernetes() -> None:
    assert [key for key in settings.Settings.model_fields if key.endswith("_port") or "service" in key] == []


def test_a_relative_path_in_the_file_starts_at_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "gateway.toml"
    file.parent.mkdir()
    file.write_text('data_dir = "data"\n')
    found = settings.load(config=file, environment={})
    assert found.data_dir == tmp_path / "etc" / "data"
    assert found.queue_url == f"sqlite:///{tmp_path}/etc/data/queue.db"


def test_a_certificate_is_named_by_its_path_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text('tls_certificate = "tls/mx.crt"')
    found = settings.load(config=tmp_path / "gateway.toml", environment={"GATEWAY_TLS_KEY": "mx.key"})
    assert (found.tls_certificate, found.tls_key) == (tmp_path / "tls" / "mx.crt", Path.cwd() / "mx.key")
    secret = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----"
    with pytest.raises(SettingsError) as mistakes:
        settings.load(environment={"GATEWAY_TLS_KEY": secret})
    assert "takes the path of a file" in str(mistakes.value)
    assert "MII" not in str(mistakes.value)


def test_a_missing_settings_file_named_by_hand_is_a_mistake(tmp_path: Path) -> None:
    assert problems_of(config=tmp_path / "no.toml", environment={}) == [
        f"{tmp_path}/no.toml: this settings file does not exist"
    ]


def test_passwords_never_leave_in_what_is_printed() -> None:
    found = settings.load(environment={"GATEWAY_RELAY_URLS": "smtps://user:hunter2@mail.example.org"})
    assert "hunter2" not in str(found.masked())
    assert "smtps://user:***@mail.example.org" in str(found.masked())


@pytest.mark.parametrize("password", ["hunter2", "hunter 2", "hun@ter2", "hun:ter2", 'hun"ter2', "hun/ter2"])
def test_no_odd_password_shows(password: str) -> None:
    found = settings.load(
        environment={"GATEWAY_RELAYS": json.dumps([{"url": f"smtps://user:{password}@mail.example"}])}
    )
    assert found.masked()["relays"][0]["url"] == "smtps://user:***@mail.example"


def test_relays_given_higher_up_win_in_either_spelling(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[[relays]]\nurl = "smtps://real.example"\n')
    found = settings.load(config=file, environment={}, overrides=["relay_urls=capture:"])
    assert [relay.url for relay in found.relays] == ["capture:"]
    file.write_text('relay_urls = ["capture:"]\n')
    found = settings.load(config=file, environment={"GATEWAY_RELAYS": '[{"url": "smtps://real.example"}]'})
    assert [relay.url for relay in found.relays] == ["smtps://real.example"]
    file.write_text('relay_urls = ["capture:"]\n[[relays]]\nurl = "smtps://real.example"\n')
    assert "is short for relays" in problems_of(config=file, environment={})[0]


def test_no_relay_at_all_is_a_mistake() -> None:
    assert problems_of(environment={"GATEWAY_RELAY_URLS": ""})[0].startswith(
        "relay_urls (environment GATEWAY_RELAY_URLS)"
    )


def test_a_relative_queue_in_the_file_starts_at_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('queue_url = "sqlite:///q.db"\n')
    assert settings.load(config=file, environment={}).queue_url == f"sqlite:///{tmp_path}/q.db"


def test_a_percent_sign_in_data_dir_is_no_escape(tmp_path: Path) -> None:
    found = settings.load(environment={"GATEWAY_DATA_DIR": str(tmp_path / "a%41b")})
    assert sqlite_path(found.queue_url) == tmp_path / "a%41b" / "queue.db"


def test_the_documented_keys_are_the_keys() -> None:
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    keys = [*settings.Settings.model_fields, *(f"limits.{key}" for key in settings.LimitsTable.model_fields)]
    keys += [f"notices.{key}" for key in settings.NoticesTable.model_fields]
    assert [key for key in keys if f"`{key}`" not in text] == []
