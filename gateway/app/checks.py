"""What only the parts themselves can judge of the settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.app.making import (
    admin_of,
    is_loopback,
    ladder,
    mailboxes,
    notice_delays,
    our_names,
    relay_spec,
    resolver,
    router,
    tls_pair,
)
from gateway.client import queue_file
from gateway.errors import Problem, SettingsError
from gateway.pending import open_pending
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.store.access import Access


def check_values(settings: Settings) -> None:
    """Finds what only the parts themselves can judge: ladder, URLs of relays, admins and engines, mailboxes."""
    problems: list[Problem] = []
    checks: list[tuple[str, Callable[[], Any]]] = [
        ("retry_ladder", lambda: ladder(settings)),
        ("notices.delays", lambda: notice_delays(settings)),
        ("mailboxes", lambda: mailboxes(settings)),
        ("mailboxes", lambda: router(settings)),
        ("mail_from", lambda: _mailbox(settings.mail_from)),
        ("blobs_url", lambda: _check_blobs(settings.blobs_url)),
        ("queue_url", lambda: queue_file(settings.queue_url)),
        ("database_url", lambda: database_file(settings)),
        ("cache_url", lambda: open_pending(settings.cache_url)),
        ("smtp_listen", lambda: _check_door(settings, settings.smtp_listen)),
        ("lmtp_listen", lambda: _check_door(settings, settings.lmtp_listen)),
        ("tls_certificate", lambda: tls_pair(settings)),
        ("dns_servers", lambda: resolver(settings)),
        ("trusted_authserv_id", lambda: _check_authserv_id(settings.trusted_authserv_id)),
        ("trusted_hosts", lambda: our_names(settings)),
        ("limits.room", lambda: _check_room(settings)),
    ]
    checks += [(f"relays[{i}].url", functools.partial(relay_spec, item)) for i, item in enumerate(settings.relays)]
    checks += [(f"admins[{i}]", functools.partial(admin_of, i, item)) for i, item in enumerate(settings.admins)]
    for key, check in checks:
        try:
            check()
        except SettingsError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(Problem(key, str(error)))
    if settings.templates_dir is not None and not settings.templates_dir.is_dir():
        problems.append(Problem("templates_dir", f"{settings.templates_dir} is not a folder"))
    if problems:
        raise SettingsError(problems)


async def refuse_open_house(settings: Settings, access: Access) -> None:
    """Raises SettingsError where others than this machine's people would find a house without a user."""
    if is_loopback(settings.web_listen) or await access.is_entered():
        return
    text = "listening beyond loopback needs a user: gateway users add NAME, or gateway users invite NAME for a link"
    raise SettingsError([Problem("web_listen", f"{settings.web_listen}: {text}")])


def _mailbox(text: str) -> str:
    from gateway.mail.addresses import parse_mailbox

    return parse_mailbox(text)


def _check_door(settings: Settings, listen: str) -> None:
    from gateway.inbound.listen import TcpAddress, parse_listen

    address = parse_listen(listen)
    if isinstance(address, TcpAddress) and address.expects_proxy and not settings.trusted_hosts:
        raise ValueError("proxy=yes: nobody's PROXY header would be believed; name the load balancers in trusted_hosts")


def _check_authserv_id(text: str) -> None:
    if text and (len(text.split()) != 1 or not text.isascii() or set(text) & set(";()")):
        raise ValueError(f"{text!r} is not a name like mx.example.org")


def _check_blobs(url: str) -> None:
    from gateway.store.blobs import IN_DATABASE, open_own_blob_store

    if url != IN_DATABASE:
        open_own_blob_store(url)


def database_file(settings: Settings) -> Path | None:
    """The file of the store, None where a server has it."""
    from gateway.store.database import file_of

    return file_of(settings.database_url)


def _check_room(settings: Settings) -> None:
    if settings.limits.room < settings.limits.mail_bytes:
        raise ValueError(f"is less than one mail may have (limits.mail_bytes, {settings.limits.mail_bytes})")
