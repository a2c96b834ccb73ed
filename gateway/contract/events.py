"""What the gateway tells the apps: CloudEvents 1.0 in structured JSON, type = routing key, at least once.

`subject` is the id of an email, a mail or a post; `sequence` rises with every event of a subject, so that a reader knows
a late or repeated one (CloudEvents sequence extension).  Facts of one recipient stand in `data.recipient`.
Promise: neither params nor bodies nor subjects of mails ever stand in an event.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

CONTENT_TYPE = "application/cloudevents+json"
EventType = Literal[
    "mail.received",
    "mail.held",
    "mail.delivered",
    "mail.duplicate",
    "mail.discarded",
    "mail.failed",
    "mail.dead",
    "post.created",
    "post.failed",
    "email.accepted",
    "email.held",
    "email.delayed",
    "email.unknown",
    "email.relayed",
    "email.bounced",
    "email.complained",
    "email.suppressed",
    "email.expired",
    "email.cancelled",
    "email.failed",
    "email.dead",
    "email.rejected",
    "notice.sent",
]


class CloudEvent(BaseModel):
    """One event (CloudEvents 1.0, structured mode)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: Annotated[str, Field(description="//<hostname>/gateway")]
    type: EventType
    subject: Annotated[str, Field(description="the id of the email, mail or post")]
    time: AwareDatetime
    sequence: Annotated[str, Field(pattern=r"^[0-9]{20}$", description="rises with every event of the subject")]
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()


def event_source(hostname: str) -> str:
    return f"//{hostname}/gateway"


def sequence_text(number: int) -> str:
    """The number as text that sorts like the number."""
    return f"{number:020d}"
