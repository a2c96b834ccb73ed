"""A survey of RabbitMQ for `gateway doctor`: every node, versions, feature flags, what is declared otherwise, and the cure.

Looks only: what is missing is named and not declared, what is there is compared by declaring it as it should be, which changes
nothing.  Limits: AMQP shows no bindings and no policies.  The start makes the bindings; of policies the survey says how to ask:
the length cap, a time to live, an expiry and the delivery limit of one count beside our own arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

import aio_pika
from aio_pika.abc import AbstractConnection

from gateway.errors import GatewayError, QueueUnavailable, SettingsError
from gateway.queue import topology
from gateway.queue.amqp_faults import faults_told
from gateway.queue.amqp_link import CONNECT_SECONDS
from gateway.queue.amqp_version import ENABLE_STREAMS, LACKS_STREAMS, lacks_streams, refuse_version, version_of

_NAMES_SHOWN = 5
_NODE_STEP = "look at the node, its log, and queue_url"
_POLICY_STEP = (
    "none of them may set max-length, max-length-bytes, message-ttl, expires or delivery-limit for our queues"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One thing looked at; `wrong` keeps the gateway from starting or from its promises."""

    level: Literal["ok", "warning", "wrong"]
    finding: str
    next_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All that was found; `is_whole`: whoever opens the queue now need not declare anything, and may."""

    found: list[Surveyed]
    is_whole: bool


async def survey(urls: Sequence[str]) -> Survey:
    """Looks at every node, and by the first that answers at what is declared; whatever fails is a finding."""
    found: list[Surveyed] = []
    is_whole = False
    versions: dict[str, str] = {}
    for url in urls:
        host = urlsplit(url).hostname or url
        try:
            with faults_told(f"RabbitMQ at {host}"):
                async with await aio_pika.connect(url, timeout=CONNECT_SECONDS) as connection:
                    versions[host] = version_of(connection)
                    if len(versions) == 1:
                        looked = await _look_by(connection, url)
                        is_whole = looked.is_whole
                        found += looked.found
        except QueueUnavailable as error:
            found.append(Surveyed(level="wrong", finding=str(error), next_step=_NODE_STEP))
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{host} {version}" for host, version in versions.items())
        step = "bring all to one version when the upgrade is through"
        found.append(Surveyed(level="warning", finding=f"nodes of several versions: {told}", next_step=step))
    return Survey(found=found, is_whole=is_whole)


async def _look_by(connection: AbstractConnection, url: str) -> Survey:
    version = version_of(connection)
    try:
        refuse_version(version)
    except SettingsError as error:
        step = "upgrade it, or use another one"
        return Survey(
            found=[Surveyed(level="wrong", finding=error.problems[0].message, next_step=step)], is_whole=False
        )
    found = [Surveyed(level="ok", finding=f"RabbitMQ {version}")]
    declared = await _look_at_topology(connection)
    found += declared or [Surveyed(level="ok", finding="declared as this version has it")]
    vhost = unquote(urlsplit(url).path[1:]) or "/"
    text = "policies are not seen over AMQP"
    found.append(Surveyed(level="ok", finding=text, next_step=f"rabbitmqctl list_policies -p {vhost}: {_POLICY_STEP}"))
    is_lacking = await lacks_streams(connection)  # last: where it is so, the connection is lost
    if is_lacking:
        text = f"RabbitMQ {version}: {LACKS_STREAMS}"
        found.append(Surveyed(level="wrong", finding=text, next_step=ENABLE_STREAMS))
    return Survey(found=found, is_whole=not (declared or is_lacking))


async def _look_at_topology(connection: AbstractConnection) -> list[Surveyed]:
    """What is not as it must be."""
    try:
        look = await topology.look(connection)
    except GatewayError as error:
        return [Surveyed(level="wrong", finding=f"cannot compare: {error}", next_step="the user needs all rights here")]
    found = [
        Surveyed(level="wrong", finding=str(problem), next_step=topology.CURE) for problem in look.differences.values()
    ]
    if look.missing:
        names = ", ".join(spec.name for spec in look.missing[:_NAMES_SHOWN])
        more = len(look.missing) - _NAMES_SHOWN
        text = f"not declared: {names}" + (f" and {more} more" if more > 0 else "")
        step = "`gateway run` declares what is missing when it starts"
        found.append(Surveyed(level="ok" if look.is_untouched else "warning", finding=text, next_step=step))
    return found
