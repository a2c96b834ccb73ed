"""The queue on RabbitMQ as the gateway's own processes open it: it declares, works the queues, and keeps receipts.

Receipts lie in a file of this host, written after the confirms and before publish returns (`queue.receipts`).
Limit: queues on RabbitMQ cannot be looked through, so `still_queued` answers with every ticket of a kind unless all queues
that could hold one are surely empty; what is missing is then named by the next count in a quiet moment.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from types import TracebackType

from gateway.queue.broker import DeadTicket
from gateway.queue.rabbitmq import RabbitmqBroker
from gateway.queue.receipts import Kind, Name, ReceiptFile, kind_of
from gateway.queue.ticket import DEAD_CRASHED, DEAD_FAILED, HOME_QUEUES, SUSPECT, Ticket, retry_queue
from gateway.runtime import Clock, utc_now


class HouseRabbitmqBroker(RabbitmqBroker):
    """`RabbitmqBroker` and `Receipted`."""

    def __init__(self, urls: Sequence[str], *, receipts: Path, clock: Clock = utc_now) -> None:
        super().__init__(urls, is_house=True, clock=clock)
        self.receipts = ReceiptFile(receipts)

    async def __aenter__(self) -> HouseRabbitmqBroker:
        await self.receipts.__aenter__()
        try:
            await self.open()
        except BaseException:
            await self.receipts.__aexit__()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        finally:
            await self.receipts.__aexit__()

    async def publish(self, tickets: Sequence[Ticket]) -> None:
        await super().publish(tickets)
        await self.receipts.keep(tickets, self.clock())

    async def drop_dead(self, number: str, *, is_recorded: bool = False) -> bool:
        async def note(letter: DeadTicket) -> None:
            if not is_recorded:
                await self.receipts.note_dropped(letter.ticket)

        return await self.find_dead(number, note) is not None

    async def still_queued(self, names: Set[Name]) -> set[Name]:
        """Those of the (kind, id) that a ticket may stand for now."""
        shared = [await self.is_surely_empty(queue) for queue in (SUSPECT, DEAD_FAILED, DEAD_CRASHED)]
        gone = {kind for kind in {kind for kind, _ in names} if all(shared) and await self._has_none_of(kind)}
        return {name for name in names if name[0] not in gone}

    async def _has_none_of(self, kind: Kind) -> bool:
        homes = [home for home in HOME_QUEUES if kind_of(home) == kind]
        return all([await self.is_surely_empty(queue) for home in homes for queue in (home, retry_queue(home))])
