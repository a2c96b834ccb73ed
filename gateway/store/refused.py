"""Requests that were never accepted: kept with their problems, once for each id, app and set of problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gateway.errors import Problem
from gateway.store.database import insert_absent
from gateway.store.locks import hold_name
from gateway.store.schema import rejections

MAX_REASON_CHARACTERS = 500


def insert_rejection(
    connection: sa.Connection, now: datetime, *, request_id: str, app: str, problems: Sequence[Problem]
) -> list[dict[str, str]] | None:
    """Keeps the rejection and returns its problems, cut to size; None when the very same is known."""
    told = [{"path": item.path, "message": item.message[:MAX_REASON_CHARACTERS]} for item in problems]
    values = {
        "request_id": request_id,
        "app": app,
        "fingerprint": hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        "reason": "; ".join(map(str, problems))[:MAX_REASON_CHARACTERS],
        "problems": told,
        "rejected_at": now,
    }
    hold_name(connection, "rejections", request_id)
    return told if insert_absent(connection, rejections, values) else None


def post_refusal(
    connection: sa.Connection, request_id: str, *, of: sa.TableClause = rejections
) -> dict[str, Any] | None:
    """Why the last request under this id failed, for who asks for the post it would have made; `of` may be the view."""
    key = of.c["id" if of is not rejections else "request_id"]
    query = sa.select(of.c.reason).where(key == request_id)
    reason = connection.execute(query.order_by(of.c.rejected_at.desc()).limit(1)).scalar()
    return None if reason is None else {"id": request_id, "status": "failed", "reason": reason}
