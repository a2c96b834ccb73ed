"""From an accepted request to the octets every attempt sends: template → cage → compose → read back.

Used by deliver, once per email and copy.  Faults keep their owner: what the template or the params did is permanent and
the content's, what an operator can mend (a template gone, no child in the cage) is transient and ours.
"""

from __future__ import annotations

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
from gateway.runtime import aside, failpoint

PRELOAD = ("gateway.outbound.typeset",)
RENDER_JOB = "gateway.outbound.typeset:render_job"
MAX_EMAIL_BYTES = 35 * 1024 * 1024
_LIMITS = {"cpu": "time", "wall": "time", "memory": "memory"}
ReadBlob = Callable[[str], Awaitable[bytes]]
BlobSize = Callable[[str], Awaitable[int | None]]


async def render(
    request: SendEmail,
    *,
    message_id: str,
    date: datetime,
    default_from: str,
    cage: Cage,
    templates: TemplateSet,
    read_blob: ReadBlob,
    blob_size: BlobSize,
) -> bytes:
    """Renders and composes one email, verified; raises PermanentFailure or TransientFailure.

    What its attachments would make of it is known before any of them is read.
    """
    size = await _size(request, blob_size)
    if request.template is None:
        rendered = Rendered(subject=request.subject or "", text=request.text or "", html=request.html or "")
    else:
        rendered = await fill(request.template, request.params, request.locale, cage=cage, templates=templates)
    digests = {item.blob for item in request.attachments if item.blob is not None}
    blobs = {digest: await read_blob(digest) for digest in sorted(digests)}
    write = partial(
        compose, request, rendered, message_id=message_id, date=date, default_from=default_from, blobs=blobs
    )
    octets = await aside(size + len(rendered.text) + len(rendered.html), write)
    failpoint("render.composed")
    return octets


async def _size(request: SendEmail, blob_size: BlobSize) -> int:
    """About how many octets the attachments take in the email; raises PermanentFailure when they are too many."""
    total = 0
    for item in request.attachments:
        size = len(item.data or "") * 3 // 4 if item.blob is None else await blob_size(item.blob)
        if size is None:
            raise PermanentFailure(f"attachment {item.blob} is not in the blob store")
        total += size * 78 // 57  # base64, in lines of 76 characters with CRLF
    if total > MAX_EMAIL_BYTES:
        raise PermanentFailure(f"its attachments make an email of {total} bytes, at most {MAX_EMAIL_BYTES}")
    return total


async def fill(
    template: str, params: dict[str, Any], locale: str | None, *, cage: Cage, templates: TemplateSet
) -> Rendered:
    """Fills a template's parts in the cage."""
    try:
        parts, _ = await cage.run(RENDER_JOB, asdict(templates.sources(template, locale)) | {"params": params})
    except OverBudget as error:
        if error.kind == "died":
            raise TransientFailure(f"template {template}: its rendering died ({error.text})") from error
        if error.kind == "crashed":
            raise PermanentFailure(f"template {template} breaks its rendering ({error.text})") from error
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
