"""`email.control`, version 1: an app stops, holds or lets go on an email of its own.

Published by `client`, worked by `outbound.control`.  `email_id` is the id under which the email was sent, `id` the request's own;
the same request again changes nothing more.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gateway.contract.request import parse
from gateway.mail.ids import canonical_uuid, new_id

VERSION = 1

Action = Literal["cancel", "hold", "release"]


class ControlEmail(BaseModel):
    """One `email.control` request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    id: Annotated[str, AfterValidator(canonical_uuid)] = Field(default_factory=new_id)
    action: Action
    email_id: Annotated[str, AfterValidator(canonical_uuid)]

    def to_json(self) -> bytes:
        """The JSON an app would publish."""
        return json.dumps(self.model_dump(mode="json")).encode()


def parse_control_email(body: bytes) -> ControlEmail:
    """Reads a request; raises InvalidRequest naming every problem with its path."""
    return parse(ControlEmail, body)
