"""The parts that the services of one process share, each opened at its first use and closed in the reverse order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.app.making import (
    Store,
    blob_mark,
    open_cage,
    open_intake,
    open_outage,
    open_photo_cage,
    open_pool,
    open_queue,
    open_store_patiently,
    open_templates,
    open_tokens,
    tls_pair,
)
from gateway.errors import Problem, SettingsError
from gateway.maillog import MailLog
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.cage import Cage
    from gateway.inbound.activation import Activation
    from gateway.inbound.certificate import Certificates
    from gateway.inbound.confirm import ConfirmDesk
    from gateway.inbound.intake import Intake
    from gateway.outbound.relay import RelayPool
    from gateway.outbound.templates import TemplateSet
    from gateway.queue.broker import Broker
    from gateway.store.blobs import BlobStore
    from gateway.store.outage import OutageLedger
    from gateway.watch.alarms.facts import Eyes, Sources
    from gateway.web.passwords import Passwords
    from gateway.web.throttle import LoginThrottle

T = TypeVar("T")


class Parts:
    """What services share, each opened at its first use and closed by the stack in the reverse order."""

    def __init__(self, settings: Settings, log: MailLog) -> None:
        self.settings = settings
        self.log = log
        self._activation: Activation | None = None
        self._open: dict[str, Any] = {}

    @property
    def activation(self) -> Activation:
        """The sockets that systemd, or `run --processes`, opened for this process."""
        from gateway.inbound.activation import Activation

        self._activation = self._activation or Activation()
        return self._activation

    def opened(self, name: str) -> Any:
        """A part that somebody has opened, None while nobody has."""
        return self._open.get(name)

    async def queue(self, stack: AsyncExitStack) -> Broker:
        return await self._once("queue", stack, lambda: open_queue(self.settings))

    async def store(self, stack: AsyncExitStack) -> Store:
        """The store; where it is away it may be used all the same, and every use says so until it is back."""
        return await self._once("store", stack, lambda: open_store_patiently(self.settings, self.log))

    async def outage(self, stack: AsyncExitStack) -> OutageLedger:
        return await self._once("outage", stack, lambda: open_outage(self.settings))

    async def intake(self, stack: AsyncExitStack) -> Intake:
        broker = await self.queue(stack)
        if "intake" not in self._open:
            self._open["intake"] = open_intake(self.settings, broker, await self._blobs(stack), self.log)
        intake: Intake = self._open["intake"]
        return intake

    async def _blobs(self, stack: AsyncExitStack) -> BlobStore:
        """The blobs by themselves: a door works on while the database is away, unless the blobs are in it."""
        from gateway.store.blobs import IN_DATABASE, open_own_blob_store

        if self.settings.blobs_url == IN_DATABASE:
            return (await self.store(stack)).blobs
        url = self.settings.blobs_url
        return open_own_blob_store(url, was_begun=partial(blob_mark(self.settings).knows, url))

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

    def certificates(self) -> Certificates | None:
        """The door's certificate, None where there is no TLS; raises SettingsError where it cannot be used."""
        from gateway.inbound.certificate import Certificates

        pair = tls_pair(self.settings)
        if pair is not None and "certificates" not in self._open:
            try:
                self._open["certificates"] = Certificates(pair, on_fault=self._say_certificate_failed)
            except ValueError as error:
                raise SettingsError([Problem("tls_certificate", str(error))]) from None
        certificates: Certificates | None = self.opened("certificates")
        return certificates

    def _say_certificate_failed(self, fault: Exception) -> None:
        self.log.service_failed("certificate (the old one stays in use)", error=fault)

    def passwords(self) -> Passwords:
        from gateway.web.passwords import Passwords

        passwords: Passwords = self._open.setdefault("passwords", Passwords())
        return passwords

    def throttle(self) -> LoginThrottle:
        """Counts wrong passwords of the pages and of the door together."""
        from gateway.web.throttle import LoginThrottle

        throttle: LoginThrottle = self._open.setdefault("throttle", LoginThrottle())
        return throttle

    async def pool(self, stack: AsyncExitStack) -> RelayPool:
        return await self._once("pool", stack, lambda: open_pool(self.settings, self.log))

    def eyes(self) -> Eyes:
        """What looks at this process; at each look it asks the parts that are open then."""
        from gateway.watch.alarms.facts import Eyes

        if "eyes" not in self._open:
            self._open["eyes"] = Eyes(self.log, self._sources)
        eyes: Eyes = self._open["eyes"]
        return eyes

    def metrics(self) -> Callable[[], tuple[bytes, str]]:
        """What renders `GET /metrics`: the body and its content type."""
        from gateway.watch.metrics import Metrics

        eyes = self.eyes()
        return Metrics(self.log, lambda: eyes.latest, self.settings.data_dir).render

    def _sources(self) -> Sources:
        from gateway.store.accounting import Accounting
        from gateway.watch.alarms.facts import Sources

        names = ("queue", "store", "pool", "certificates")
        queue, store, pool, certificates = (self.opened(name) for name in names)
        return Sources(
            depths=queue.depths if queue else None,
            held=Accounting(store.database).held_faults if store else None,
            relays=pool.health if pool else (),
            certificate=partial(certificates.judge, hostname=self.settings.hostname) if certificates else None,
            data_dir=self.settings.data_dir,
            min_free_bytes=self.settings.min_free_bytes,
            old_seconds=self.settings.limits.oldest_ticket,
        )

    async def _once(self, name: str, stack: AsyncExitStack, build: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        if name not in self._open:
            self._open[name] = await stack.enter_async_context(build())
        part: T = self._open[name]
        return part
