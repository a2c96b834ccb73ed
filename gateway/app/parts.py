"""The parts that the services of one process share, each opened at its first use and closed in the reverse order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.app.making import (
    Store,
    open_cage,
    open_intake,
    open_photo_cage,
    open_pool,
    open_queue,
    open_store,
    open_templates,
    open_tokens,
)
from gateway.maillog import MailLog
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.cage import Cage
    from gateway.inbound.confirm import ConfirmDesk
    from gateway.inbound.intake import Intake
    from gateway.outbound.relay import RelayPool
    from gateway.outbound.templates import TemplateSet
    from gateway.queue.broker import Broker

T = TypeVar("T")


class Parts:
    """What services share, each opened at its first use and closed by the stack in the reverse order."""

    def __init__(self, settings: Settings, log: MailLog) -> None:
        self.settings = settings
        self.log = log
        self._open: dict[str, Any] = {}

    async def queue(self, stack: AsyncExitStack) -> Broker:
        return await self._once("queue", stack, lambda: open_queue(self.settings))

    async def store(self, stack: AsyncExitStack) -> Store:
        return await self._once("store", stack, lambda: open_store(self.settings))

    async def intake(self, stack: AsyncExitStack) -> Intake:
        broker = await self.queue(stack)
        if "intake" not in self._open:
            self._open["intake"] = open_intake(self.settings, broker, self.log)
        intake: Intake = self._open["intake"]
        return intake

    async def cage(self, stack: AsyncExitStack) -> Cage:
        return await self._once("cage", stack, lambda: open_cage(self.settings))

    async def photo_cage(self, stack: AsyncExitStack) -> Cage:
        return await self._once("photo_cage", stack, lambda: open_photo_cage(self.settings))

    async def confirm_desk(self, stack: AsyncExitStack) -> ConfirmDesk:
        """What pages and answers do with held mails that somebody is asked about."""
        from gateway.inbound.confirm import ConfirmDesk

        broker, store = await self.queue(stack), await self.store(stack)
        return ConfirmDesk(store.confirmations, store.mails, broker.publish, open_tokens(self.settings))

    def templates(self) -> TemplateSet:
        if "templates" not in self._open:
            self._open["templates"] = open_templates(self.settings)
        templates: TemplateSet = self._open["templates"]
        return templates

    async def pool(self, stack: AsyncExitStack) -> RelayPool:
        return await self._once("pool", stack, lambda: open_pool(self.settings, self.log))

    async def _once(self, name: str, stack: AsyncExitStack, build: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        if name not in self._open:
            self._open[name] = await stack.enter_async_context(build())
        part: T = self._open[name]
        return part
