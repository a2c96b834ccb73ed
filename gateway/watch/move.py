"""`gateway move`: what a house holds goes to where its new settings point; counted, proved at the end, begun again at will.

    ledger    every table, then the old database is closed                     `store.moving`
    blobs     copied; the old ones stay until somebody deletes them
    queue     each ticket leaves the old file when it lies aside at the new place      `queue.moving`, `queue.amqp_moving`
    receipts  go behind the tickets they stand for, so that `reconcile` never misses what is still on its way

A line for each part: `found` = `carried` now + `already` there + what is still `lacking`, which is named.
Promise: killed at any instruction and run again, everything is there, and once.
Limits: nobody works with what is moved meanwhile; the new queue may be in use by others already, the new ledger not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gateway.errors import BlobDamaged
from gateway.queue.moving import Stage
from gateway.runtime import failpoint

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.queue.amqp_moving import Staging
    from gateway.queue.moving import MovingQueue
    from gateway.queue.receipts import ReceiptFile
    from gateway.store.blobs import BlobStore
    from gateway.store.database import Database

Tell = Callable[[str, int, int], None]
_RECEIPTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of the count; `lacking` names what could not be carried, and why."""

    part: str
    found: int
    carried: int
    already: int
    lacking: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return not self.lacking and self.found == self.carried + self.already

    def as_row(self) -> dict[str, Any]:
        return asdict(self) | {"lacking": list(self.lacking)}


async def move_ledger(source: Database, target: Database, *, to: str, tell: Tell) -> list[Part]:
    """Moves a ledger; no lines where it had moved before."""
    from gateway.store import moving

    lines = await moving.move_ledger(source, target, to=to, tell=tell)
    return [
        Part(
            part=f"ledger {line.table}",
            found=line.found,
            carried=line.carried,
            already=line.already,
            lacking=(f"{line.lacking} rows",) if line.lacking else (),
        )
        for line in lines
    ]


async def move_blobs(source: BlobStore, target: BlobStore, *, now: datetime, tell: Tell) -> Part:
    """Copies every blob that the other store has not; a damaged one is named, and the others go on."""
    found = carried = already = 0
    lacking: list[str] = []
    async for digests in source.old(before=now + timedelta(days=36500)):
        for digest in digests:
            found += 1
            try:
                if await target.size(digest) is not None:
                    already += 1
                else:
                    await target.put(await source.get(digest))
                    carried += 1
                    failpoint("move.blob")
            except BlobDamaged as damage:
                lacking.append(str(damage))
        tell("blobs", carried + already, found)
    return Part(part="blobs", found=found, carried=carried, already=already, lacking=tuple(lacking))


async def move_queue(source: MovingQueue, staging: Staging, receipts: ReceiptFile, *, tell: Tell) -> list[Part]:
    """Empties the queue in the file; what the other engine cannot carry is named and stays."""
    for queue, patterns in (await source.subscriptions()).items():
        await staging.subscribe(queue, patterns)
    await _end_what_was_under_way(source, staging)
    before, here = await source.carried(), await source.counts()
    total = sum(here.values())
    unfit: dict[str, list[str]] = {}
    moved = 0
    while parcels := await source.batch():
        for parcel in parcels:
            if why := staging.refusal(parcel):
                queue = parcel.box or parcel.ticket.queue
                unfit.setdefault(queue, []).append(f"ticket {parcel.ticket.id} stays: {why}")
        fit = [parcel for parcel in parcels if not staging.refusal(parcel)]
        if fit:
            await staging.fill(fit)
            await source.remove(fit)
            await staging.release()
        await source.released()
        failpoint("move.batch")
        moved += len(fit)
        tell("queue", moved, total)
    after = await source.carried()
    left = await source.counts()
    lines = []
    for queue in sorted({*before, *here}):
        already, carried = before.get(queue, 0), after.get(queue, 0) - before.get(queue, 0)
        lacking = unfit.get(queue, [])
        if left.get(queue, 0) > len(lacking):
            lacking = [
                *lacking,
                f"{left[queue] - len(lacking)} tickets stay in {queue}: they are leased, or came meanwhile",
            ]
        found = already + carried + left.get(queue, 0)
        lines.append(Part(part=f"queue {queue}", found=found, carried=carried, already=already, lacking=tuple(lacking)))
    return [*lines, await _move_receipts(source, receipts, tell)]


async def _end_what_was_under_way(source: MovingQueue, staging: Staging) -> None:
    """Goes on from where an earlier run was killed."""
    stage = await source.stage()
    if stage is Stage.FILLED:
        await staging.release()
    else:
        await staging.clear()
    await source.released()


async def _move_receipts(source: MovingQueue, receipts: ReceiptFile, tell: Tell) -> Part:
    found = carried = after = 0
    until = await source.receipts.last()
    while page := await source.receipts.page(after=after, until=until, limit=_RECEIPTS):
        carried += await receipts.take_over(page)
        failpoint("move.receipts")
        after = page[-1].number
        await source.receipts.forget(after)
        found += len(page)
        tell("receipts", found, found)
    return Part(part="receipts", found=found, carried=carried, already=found - carried)
