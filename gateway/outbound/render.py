"""From an accepted request to the octets every attempt sends: template → cage → compose → read back.

Used by deliver, once per email and copy.  Faults keep their owner: what the template or the params did is permanent and
the content's, what an operator can mend (a template gone, no child in the cage) is transient and ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from gateway.cage import Cage
from gateway.contract.email_send import SendEmail
from gateway.errors import JobFailed, OverBudget, PermanentFailure, Problem, TransientFailure
from gateway.outbound.compose import Rendered, compose
from gateway.outbound.templates import TemplateSet
from gateway.runtime import failpoint

PRELOAD = ("gateway.outbound.typeset",)
RENDER_JOB = "gateway.outbound.typeset:render_job"
_INLINE_WORK_BYTES = 256 * 1024
_LIMITS = {"cpu": "time", "wall": "time", "memory": "memory"}


async def render(
    request: SendEmail,
    *,
    message_id: str,
    date: datetime,
    default_from: str,
    cage: Cage,
    templates: TemplateSet,
    read_blob: Callable[[str], Awaitable[bytes]],
) -> bytes:
    """Renders and composes one email, verified; raises PermanentFailure or TransientFailure."""
    if request.template is None:
        rendered = Rendered(subject=request.subject or "", text=request.text or "", html=request.html or "")
    else:
        rendered = await fill(request.template, request.params, request.locale, cage=cage, templates=templates)
    blobs = {item.blob: await read_blob(item.blob) for item in request.attachments if item.blob is not None}
    write = partial(
        compose, request, rendered, message_id=message_id, date=date, default_from=default_from, blobs=blobs
    )
    size = sum(map(len, blobs.values())) + sum(len(item.data or "") for item in request.attachments)
    octets = write() if size <= _INLINE_WORK_BYTES else await asyncio.to_thread(write)
    failpoint("render.composed")
    return octets


async def fill(
    template: str, params: dict[str, Any], locale: str | None, *, cage: Cage, templates: TemplateSet
) -> Rendered:
    """Fills a template's parts in the cage."""
    try:
        parts, _ = await cage.run(RENDER_JOB, asdict(templates.sources(template, locale)) | {"params": params})
    except OverBudget as error:
        if error.kind == "died":
            raise TransientFailure(f"template {template}: its rendering died ({error.text})") from error
        raise PermanentFailure(f"template {template} was ended at its limit of {_LIMITS[error.kind]}") from error
    except JobFailed as error:
        raise PermanentFailure(f"template {template}: {error}") from error
    return Rendered(subject=parts["subject"], text=parts["text"], html=parts["html"])


async def check_samples(templates: TemplateSet, cage: Cage) -> list[Problem]:
    """Everything wrong with the templates: their folders, and what rendering each with its sample runs into."""
    problems = templates.check()
    for name in sorted(set(templates.names) - {problem.path for problem in problems}):
        try:
            await fill(name, templates.sample(name), None, cage=cage, templates=templates)
        except (PermanentFailure, TransientFailure) as error:
            problems.append(Problem(name, str(error)))
    return problems
