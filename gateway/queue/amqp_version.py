"""What a RabbitMQ must be able to do, judged by its version and, where that is not enough, by a question to it.

Before 3.10 quorum queues ignore `x-message-ttl` and at-least-once dead lettering, so delays and crashed tickets would be lost:
refused.  3.10 has the latter only with the feature flag `stream_queue`, which one that was upgraded may lack; without it the
broker falls back to dropping and says so in its own log only.  4.x has a default delivery limit (20) that drops, and takes no
more than 16 MiB a message: every queue of `topology` names its own limit, and `amqp_ticket` takes no larger body.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPConnectionError, ChannelPreconditionFailed

from gateway.errors import Problem, SettingsError
from gateway.queue.amqp_faults import RPC_SECONDS, open_channel

OLDEST_VERSION = (3, 10)
_ALWAYS_STREAMS = (3, 11)
LACKS_STREAMS = "the feature flag stream_queue is off: its quorum queues may drop what they dead-letter"
ENABLE_STREAMS = "rabbitmqctl enable_feature_flag stream_queue"


def version_of(connection: AbstractConnection) -> str:
    """The version that the broker names in its greeting."""
    transport = connection.transport
    found = transport.connection.server_properties.get("version", "") if transport else ""
    return found.decode() if isinstance(found, bytes) else str(found)


def refuse_version(text: str) -> None:
    """Raises SettingsError for a broker that ignores arguments our promises rest on."""
    if _numbers(text) < OLDEST_VERSION:
        why = "its quorum queues ignore x-message-ttl and x-dead-letter-strategy, and would lose tickets"
        raise SettingsError([Problem("queue_url", f"RabbitMQ {text}: {why}; the gateway needs 3.10 or later")])


async def refuse_without_streams(connection: AbstractConnection) -> None:
    """Raises SettingsError for a 3.10 that ignores at-least-once dead lettering; the connection is lost then."""
    if await lacks_streams(connection):
        text = f"RabbitMQ {version_of(connection)}: {LACKS_STREAMS}"
        raise SettingsError([Problem("queue_url", text), Problem("queue_url", f"the cure: {ENABLE_STREAMS}")])


async def lacks_streams(connection: AbstractConnection) -> bool:
    """Whether the feature flag is off; the connection is lost then, and made is nothing in either case.

    The question is a stream that no broker declares, an exclusive one: where streams are known the fault is in the request.
    """
    if _numbers(version_of(connection)) >= _ALWAYS_STREAMS:
        return False
    channel = await open_channel(connection)
    name, arguments = f"gateway.probe.{uuid.uuid4().hex}", dict[str, Any]({"x-queue-type": "stream"})
    try:
        await channel.declare_queue(name, durable=True, exclusive=True, arguments=arguments, timeout=RPC_SECONDS)
    except AMQPConnectionError as error:
        if "feature flag" in str(error):
            return True
        raise
    except ChannelPreconditionFailed:
        pass
    return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
