"""What `gateway doctor` looks at: folders, disk, store, queue, relays, certificate, templates; each finding with its next step.

Looks only; changes nothing.  Levels: ok, warning (works, but mind it), wrong (does not work).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from gateway.errors import Problem, SettingsError, StoreUnavailable
from gateway.inbound.certificate import Pair, expiry, judge
from gateway.outbound.relay_url import RelaySpec
from gateway.queue.broker import Depth
from gateway.watch.alarms.book import read_alarms, utc_text

OLD_TICKET_SECONDS = 3600
QUEUE_STEP = "a disk or rights fault: mend it; a damaged file: keep a copy, restore the last backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    level: Literal["ok", "warning", "wrong"]
    what: str
    finding: str
    next_step: str = ""

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def check_data_dir(folder: Path, min_free_bytes: int) -> list[Finding]:
    """The folder can be written, its disk has room, and it is no network file system's by its own word."""
    if not folder.exists():
        return [
            Finding(
                level="ok", what="data_dir", finding=f"{folder} does not exist yet", next_step="`gateway run` makes it"
            )
        ]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [
            Finding(
                level="wrong", what="data_dir", finding=f"{folder} cannot be written", next_step="give us the folder"
            )
        ]
    free = shutil.disk_usage(folder).free
    if free < min_free_bytes:
        return [
            Finding(level="wrong", what="disk", finding=f"{free} bytes free, doors answer 452", next_step="make room")
        ]
    return [Finding(level="ok", what="data_dir", finding=f"{folder}, {free // 2**20} MiB free")]


def check_relays(relays: Sequence[RelaySpec]) -> list[Finding]:
    """Capture is for development; unverified certificates are named."""
    findings = []
    for relay in relays:
        shown = relay.name if relay.is_capture else f"{relay.name}, {relay.security}"
        if relay.is_capture:
            text = "capture: email is written to files and never sent"
            findings.append(
                Finding(level="warning", what="relay", finding=text, next_step="set relay_urls to send for real")
            )
        elif not relay.verify:
            text = f"{shown}: its certificate is not verified"
            findings.append(Finding(level="warning", what="relay", finding=text, next_step="drop verify=no"))
        else:
            findings.append(Finding(level="ok", what="relay", finding=shown))
    return findings


def check_own_mail_server(authserv_id: str, *, has_trusted_host: bool) -> list[Finding]:
    """The word of our own mail server counts only where a mail is handed over by a host that we trust."""
    if not authserv_id or has_trusted_host:
        return []
    return [
        Finding(
            level="warning",
            what="senders",
            finding=f"the results of {authserv_id} are never believed: no host is trusted, and LMTP is not at a socket",
            next_step="add the mail server's address to trusted_hosts, or let it hand over at a UNIX socket (lmtp_listen)",
        )
    ]


def check_certificate(pair: Pair | None, *, hostname: str, now: datetime, is_public: bool) -> list[Finding]:
    """The SMTP door's certificate: usable, not soon over, for our name, its key for us alone."""
    if pair is None:
        step = "set tls_certificate, or let a mail server stand before it" if is_public else ""
        text = "the SMTP door has no certificate: mail comes in the clear, and nobody can log in"
        return [Finding(level="warning" if is_public else "ok", what="certificate", finding=text, next_step=step)]
    troubles = judge(pair, hostname=hostname, now=now)
    if not troubles:
        text = f"{pair.certificate}, good until {expiry(pair):%Y-%m-%d}"
        return [Finding(level="ok", what="certificate", finding=text)]
    return [
        Finding(level=trouble.level, what="certificate", finding=trouble.text, next_step=trouble.next_step)
        for trouble in troubles
    ]


async def check_store(url: str, *, known: str = "") -> Finding:
    """The store opens, has this version's schema, and the ledger that is `known` to be in it; nothing is helped along."""
    from gateway.store.database import file_of, open_as_it_is
    from gateway.store.migrations import HEAD, KNOWN_VERSIONS, current_version, is_compatible
    from gateway.store.moving import why_not_here

    path = file_of(url)
    if not known and path is not None and (not path.exists() or not path.stat().st_size):
        return Finding(level="ok", what="store", finding=f"{path} is not made yet", next_step="`gateway run` makes it")
    try:
        database = await open_as_it_is(url, known=known)
        try:
            version = await current_version(database)
            is_newer = version not in (None, *KNOWN_VERSIONS) and await is_compatible(database)
            moved = await why_not_here(database) if version == HEAD or is_newer else ""
        finally:
            await database.close()
    except (StoreUnavailable, SettingsError) as error:
        step = "look at the file, its folder and disk" if path else "look at the server, its log and database_url"
        return Finding(level="wrong", what="store", finding=str(error), next_step=step)
    if known and version is None:
        text = f"its database is empty, and {known} knows a ledger"
        return Finding(level="wrong", what="store", finding=text, next_step="restore it; mind database_url")
    if moved:
        return Finding(level="wrong", what="store", finding=moved, next_step="mind database_url; see `gateway move`")
    if is_newer:
        return Finding(
            level="ok", what="store", finding=f"opens, schema {version} of a newer gateway, good for this one"
        )
    if version not in (None, *KNOWN_VERSIONS):
        text = f"has schema {version}, and this gateway knows {HEAD}"
        return Finding(level="wrong", what="store", finding=text, next_step="run the newer gateway")
    if version != HEAD:
        text = f"has schema {version or 'none'}, this gateway works with {HEAD}"
        return Finding(level="warning", what="store", finding=text, next_step="the next `gateway run` brings it up")
    return Finding(level="ok", what="store", finding="opens, schema up to date")


async def check_blobs(url: str, database_url: str, *, is_known: bool) -> list[Finding]:
    """The blob store is there, as far as somebody needs it: `is_known` says that it was begun, the ledger that it names blobs."""
    from gateway.store.blobs import IN_DATABASE, open_own_blob_store

    if url == IN_DATABASE:
        return []
    try:
        if await open_own_blob_store(url).is_there():
            return [Finding(level="ok", what="blobs", finding="the store is there")]
    except StoreUnavailable as fault:
        return [
            Finding(
                level="wrong", what="blobs", finding=str(fault), next_step="look at blobs_url and what is behind it"
            )
        ]
    if not is_known and not await _names_blobs(database_url):
        return [Finding(level="ok", what="blobs", finding="no store yet", next_step="`gateway run` begins it")]
    why = "it was begun before" if is_known else "the ledger names blobs"
    return [
        Finding(
            level="wrong",
            what="blobs",
            finding=f"the store is not there, or is empty, and {why}: what needs a blob waits",
            next_step="mount it or bring it back; mind blobs_url; if it is lost for good: delete blobs.mark in data_dir",
        )
    ]


async def _names_blobs(database_url: str) -> bool:
    """Whether the ledger names blobs; False where it cannot be asked, which `check_store` tells."""
    from gateway.store.blob_collector import names_any
    from gateway.store.database import file_of, open_as_it_is
    from gateway.store.migrations import KNOWN_VERSIONS, current_version

    path = file_of(database_url)
    if path is not None and (not path.exists() or not path.stat().st_size):
        return False
    try:
        database = await open_as_it_is(database_url)
        try:
            return await current_version(database) in KNOWN_VERSIONS and await database.read(names_any)
        finally:
            await database.close()
    except (StoreUnavailable, SettingsError):
        return False


def check_left(problem: str) -> Finding:
    """What the settings leave behind in `data_dir` keeps the gateway from starting."""
    what, _, finding = problem.partition(": ")
    return Finding(level="wrong", what=what, finding=finding, next_step="gateway move")


def check_queues(depths: Sequence[Depth]) -> list[Finding]:
    """Dead letters wait for a person; old ready tickets mean nobody works."""
    findings = []
    for depth in depths:
        if depth.dead:
            step = "gateway dead list; then dead retry or dead drop"
            findings.append(
                Finding(level="warning", what=depth.name, finding=f"{depth.dead} dead letters", next_step=step)
            )
        if depth.ready and (depth.oldest_seconds or 0) > OLD_TICKET_SECONDS:
            text = f"{depth.ready} ready, the oldest since {depth.oldest_seconds:.0f} s"
            findings.append(
                Finding(level="warning", what=depth.name, finding=text, next_step="is `gateway run` running?")
            )
    return findings or [Finding(level="ok", what="queues", finding=f"{sum(d.ready for d in depths)} ready, none dead")]


def check_alarms(folder: Path, *, admins: int) -> list[Finding]:
    """The alarms raised on this host, as the running gateway last entered them; and whether anybody hears of them."""
    raised = [
        Finding(
            level="wrong" if alarm.severity == "critical" else "warning",
            what=f"alarm {alarm.topic}",
            finding=f"{alarm.what} (since {utc_text(alarm.since)}, seen {utc_text(alarm.last_seen)})",
            next_step=alarm.next_step,
        )
        for alarm in read_alarms(folder)
    ]
    if raised:
        return raised
    if not admins:
        step = "set admin_urls so that somebody is told"
        return [Finding(level="ok", what="alarms", finding="none raised; nobody would be told", next_step=step)]
    return [Finding(level="ok", what="alarms", finding=f"none raised; {admins} would be told")]


def check_templates(problems: Sequence[Problem]) -> list[Finding]:
    """Templates that do not compile or whose sample breaks their schema."""
    if not problems:
        return [Finding(level="ok", what="templates", finding="all render with their samples")]
    step = "gateway templates check"
    return [Finding(level="wrong", what="templates", finding=str(problem), next_step=step) for problem in problems]
