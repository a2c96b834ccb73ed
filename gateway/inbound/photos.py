"""Photos of albums: looked at before they are stored, rendered afterwards.  The worker's job for a ticket of `photo.render`.

Flow: the mailbox `photos` asks `inspect` → ingest records post and attachments, a photo to be rendered as `waiting` → one
ticket a photo, published after the record → here: original from the blob store → cage (5 s CPU, 768 MiB each) → renditions
into the blob store → one transaction that records them.
Promises: idempotent by (attachment, kind); a photo that cannot be rendered, or costs too much, is marked with its reason and
harms no other; faults of ours (store, blobs, a machine too busy) are raised, never blamed on the photo.
"""

from __future__ import annotations

import json

from gateway.errors import JobFailed, OverBudget, PermanentFailure
from gateway.inbound.intake import Blobs
from gateway.mail.parse import Cage
from gateway.maillog import MailLog
from gateway.queue.broker import Done
from gateway.queue.ticket import PHOTO_RENDER, Ticket
from gateway.runtime import failpoint
from gateway.store.blobs import octets_of
from gateway.store.photos import NewRendition, Photos, WaitingPhoto

MAX_PIXELS = 100_000_000
CPU_SECONDS = 5.0
MEMORY_BYTES = 768 * 1024 * 1024
_WALL_SECONDS = 120.0  # generous: on a busy machine an honest photo waits for its turn
_INSPECT_CPU_SECONDS = 1.0
_INSPECT_WALL_SECONDS = 30.0


def photo_ticket(attachment_id: str) -> Ticket:
    """The ticket that has one photo rendered."""
    return Ticket(queue=PHOTO_RENDER, id=attachment_id, body=json.dumps({"attachment": attachment_id}).encode())


async def inspect(octets: bytes, cage: Cage) -> str:
    """Returns why a photo is refused, '' for one that looks sound; reads its header only."""
    request = {"max_pixels": MAX_PIXELS}
    try:
        answer, _ = await cage.run(
            "gateway.inbound.photo_job:inspect_job",
            request,
            octets,
            cpu_seconds=_INSPECT_CPU_SECONDS,
            wall_seconds=_INSPECT_WALL_SECONDS,
        )
    except OverBudget as fault:
        return _too_costly(fault)
    return str(answer.get("refusal", ""))


class RenderPhoto:
    """The handler of photos; one for all workers of a process."""

    def __init__(self, *, photos: Photos, blobs: Blobs, cage: Cage, log: MailLog) -> None:
        self._photos = photos
        self._blobs = blobs
        self._cage = cage
        self._log = log

    async def handle(self, ticket: Ticket) -> Done:
        """Renders one photo; a photo already rendered or refused is left alone."""
        photo = await self._photos.waiting(ticket.id)
        if photo is None:
            return Done()
        octets = await self._original(photo)
        try:
            answer, contents = await self._cage.run(
                "gateway.inbound.photo_job:render_job",
                {"max_pixels": MAX_PIXELS},
                octets,
                cpu_seconds=CPU_SECONDS,
                wall_seconds=_WALL_SECONDS,
            )
        except OverBudget as fault:
            return await self._refuse(photo, _too_costly(fault))
        failpoint("photos.rendered")
        if "refusal" in answer:
            return await self._refuse(photo, str(answer["refusal"]))
        renditions = await self._keep(answer["renditions"], contents)
        failpoint("photos.kept")
        if await self._photos.record_rendered(photo, renditions):
            self._log.photo_rendered(photo.attachment_id, post_id=photo.post_id)
        return Done()

    async def _original(self, photo: WaitingPhoto) -> bytes:
        digest = f"sha256:{photo.sha256}"
        octets = await octets_of(self._blobs, digest)
        if octets is None:
            raise PermanentFailure(f"the original {digest} is not in the store")
        return octets

    async def _keep(self, facts: list[dict[str, object]], contents: bytes) -> list[NewRendition]:
        kept, position = [], 0
        for fact in facts:
            size = int(str(fact["size"]))
            digest = await self._blobs.put(contents[position : position + size])
            position += size
            kept.append(
                NewRendition(
                    kind=str(fact["kind"]),
                    sha256=digest.removeprefix("sha256:"),
                    content_type=str(fact["type"]),
                    size=size,
                    width=int(str(fact["width"])),
                    height=int(str(fact["height"])),
                )
            )
        return kept

    async def _refuse(self, photo: WaitingPhoto, reason: str) -> Done:
        if await self._photos.record_refused(photo, reason):
            self._log.photo_refused(photo.attachment_id, post_id=photo.post_id, reason=reason)
        return Done()


def _too_costly(fault: OverBudget) -> str:
    """The reason of a photo that was ended at its limit; raises what says more of the machine than of the photo."""
    if fault.kind == "wall":
        raise JobFailed("wall", fault.text) from fault
    return f"costs too much to decode ({fault})"
