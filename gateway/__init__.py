"""The gateway: the mail room of a company's applications.  What apps import stands here; everything else is inside.

    import gateway
    with gateway.connect_blocking("sqlite:///var/queue.db") as client:
        client.send("invoice", to="ann@example.org", params={...})

Names are loaded at first use, so that `import gateway` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.client import connect, connect_blocking
    from gateway.contract.email_send import Attachment, SendEmail
    from gateway.contract.post_create import CreatePost
    from gateway.errors import GatewayError, InvalidRequest, PermanentFailure, QueueUnavailable, TransientFailure
    from gateway.inbound.mailbox import Mailbox

__version__ = "0.1.0"

_HOMES = {
    "Attachment": "gateway.contract.email_send",
    "CreatePost": "gateway.contract.post_create",
    "GatewayError": "gateway.errors",
    "InvalidRequest": "gateway.errors",
    "Mailbox": "gateway.inbound.mailbox",
    "PermanentFailure": "gateway.errors",
    "QueueUnavailable": "gateway.errors",
    "SendEmail": "gateway.contract.email_send",
    "TransientFailure": "gateway.errors",
    "connect": "gateway.client",
    "connect_blocking": "gateway.client",
}

__all__ = [
    "Attachment",
    "CreatePost",
    "GatewayError",
    "InvalidRequest",
    "Mailbox",
    "PermanentFailure",
    "QueueUnavailable",
    "SendEmail",
    "TransientFailure",
    "connect",
    "connect_blocking",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gateway' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
