"""What the smaller requests have in common: how one is read, what it goes by when it is broken, and the answer to it.

`email.send` is read by its own module, which says more of a mistake; id and answer are the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.contract.email_send import refuse_too_large
from gateway.contract.versions import refuse_newer
from gateway.errors import InvalidRequest, Problem
from gateway.mail.ids import canonical_uuid

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], body: bytes | Mapping[str, Any]) -> M:
    """Reads a request; raises InvalidRequest naming every problem with its path."""
    try:
        if isinstance(body, bytes):
            refuse_too_large(body)
            return model.model_validate_json(body)
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise InvalidRequest([Problem(_path(item["loc"]), _message(item)) for item in found]) from None


def with_id(body: bytes, otherwise: str, *, known: int, contract: str) -> bytes:
    """The request with an `id`, its own or else the ticket's; unchanged where it cannot be read, the parser says why.

    Raises NewerVersion for one above the version known here.
    """
    refuse_too_large(body)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(data, dict):
        return body
    refuse_newer(data, known=known, contract=contract)
    return body if "id" in data else json.dumps(data | {"id": otherwise}).encode()


def claimed_id(body: bytes, otherwise: str) -> str:
    """The id a broken request goes by: its own if that can be read, else the ticket's."""
    try:
        refuse_too_large(body)
        return canonical_uuid(json.loads(body)["id"])
    except (InvalidRequest, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return otherwise


def answer_json(request_id: str, status: str, problems: Sequence[Problem] = ()) -> bytes:
    """The answer to whoever asked: `{"id", "status": "accepted" | "rejected" | "conflict", "errors": [...]}`."""
    return json.dumps({"id": request_id, "status": status, "errors": [str(problem) for problem in problems]}).encode()


def _path(loc: tuple[str | int, ...]) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc]
    return "".join(steps).removeprefix(".") or "(request)"


def _message(item: Any) -> str:
    return "unknown key" if item["type"] == "extra_forbidden" else str(item["msg"]).removeprefix("Value error, ")
