"""What apps use to reach the gateway: put `email.send` requests on the queue, hear answers and events.

    async with gateway.connect("sqlite:///var/queue.db") as client:
        email_id = await client.send("welcome", to="Ann <ann@example.org>", params={"name": "Ann"})

`connect_blocking` is the same for code without an event loop.  The gateway's own commands, pages and notices submit
through this too: it *is* submit.
Promise: `send` returns the email's id once the request is durable in the queue; until then it raises (InvalidRequest with
every problem and its path, or QueueUnavailable: try again with the same id, it is the idempotency key).
Limit: params are checked here only where the client sees the templates (`templates_dir=`); acceptance checks always.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote
from uuid import UUID

from gateway.contract.canonical_json import MAX_DEPTH
from gateway.contract.control import Action, ControlEmail
from gateway.contract.email_send import MAX_REQUEST_BYTES, Attachment, SendEmail, parse_send_email
from gateway.contract.post_create import CreatePost, parse_create_post
from gateway.errors import InvalidRequest, Problem, SettingsError, StoreUnavailable
from gateway.mail.ids import canonical_uuid, new_id
from gateway.pending import open_pending
from gateway.queue.amqp_url import SCHEMES, amqp_urls
from gateway.queue.broker import Broker, Done
from gateway.queue.ticket import EMAIL_CONTROL, EMAIL_SEND_SERIAL, POST_CREATE, STREAM_QUEUES, Ticket
from gateway.runtime import aside

if TYPE_CHECKING:
    from types import TracebackType

    from gateway.pending import PendingPosts
    from gateway.store.published_store import PublishedStore

T = TypeVar("T")
ParamsCheck = Callable[[str, dict[str, Any]], Sequence[Problem]]
_ENDLESS = Problem("params", "cannot be written as JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What acceptance said of a request: `accepted`, `rejected` or `conflict`, with the errors."""

    id: str
    status: str
    errors: tuple[str, ...] = ()


def sqlite_path(url: str, key: str = "queue_url") -> Path:
    """The file a `sqlite:///…` URL names; raises SettingsError for any other URL."""
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        shown = url.split("@")[-1].split("://")[0]
        raise SettingsError([Problem(key, f"{shown!r} is not sqlite:///PATH")])
    return Path(unquote(url.removeprefix("sqlite:///")))


def queue_file(url: str) -> Path | None:
    """The file of a queue on SQLite, None for one on RabbitMQ; raises SettingsError for what is neither."""
    if url.startswith(SCHEMES):
        amqp_urls(url)
        return None
    if not url.startswith("sqlite:///"):
        shown = url.split("@")[-1].split("://")[0]
        raise SettingsError([Problem("queue_url", f"{shown!r} is neither sqlite:///PATH nor amqp(s)://…")])
    return sqlite_path(url)


def open_broker(url: str, *, receipts: Path | None = None) -> AbstractAsyncContextManager[Broker]:
    """The queue engine a URL names, not yet open: an async context manager that yields a Broker.

    `receipts`, a file of this host, is for the gateway's own processes, which declare what is missing, work the queues and
    keep receipts; an app declares nothing and keeps none.
    """
    path = queue_file(url)
    if path is not None:
        from gateway.queue.sqlite import SqliteBroker

        return SqliteBroker(path)
    from gateway.queue.rabbitmq import RabbitmqBroker
    from gateway.queue.rabbitmq_house import HouseRabbitmqBroker

    urls = amqp_urls(url)
    return RabbitmqBroker(urls) if receipts is None else HouseRabbitmqBroker(urls, receipts=receipts)


class Client:
    """A connection to the queue; open it with `async with`. Safe for concurrent use within its event loop."""

    def __init__(
        self,
        url: str = "",
        *,
        broker: Broker | None = None,
        check: ParamsCheck | None = None,
        app: str = "",
        database_url: str = "",
        pending: PendingPosts | None = None,
    ) -> None:
        self._url = url
        self._broker = broker
        self._check = check
        self._app = app
        self._database_url = database_url
        self._store: PublishedStore | None = None
        self._pending = pending or open_pending()
        self._stack = AsyncExitStack()  # what is open

    async def __aenter__(self) -> Client:
        async with AsyncExitStack() as opened:  # what fails half-way closes what was open
            if self._broker is None:
                self._broker = await opened.enter_async_context(open_broker(self._url))
                opened.push_async_callback(self._pending.close)
            if self._database_url:
                from gateway.store.published_store import PublishedStore

                self._store = PublishedStore(self._database_url)
                opened.push_async_callback(self._store.close)
                await self._store.open()
            self._stack = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def send(
        self,
        email: SendEmail | str,
        /,
        *,
        to: str | Iterable[str] = (),
        attachments: Iterable[Attachment | Path] = (),
        **fields: Any,
    ) -> str:
        """Queues one email, given as a SendEmail or as a template's name and fields; returns its id."""
        request = await self._request(email, to, attachments, fields)
        await self._open_broker.publish([await self._ticket(request)])
        return request.id

    async def ask(
        self,
        email: SendEmail | str,
        /,
        *,
        to: str | Iterable[str] = (),
        attachments: Iterable[Attachment | Path] = (),
        timeout_seconds: float = 10,
        **fields: Any,
    ) -> Answer:
        """Queues one email and waits for acceptance's answer; TimeoutError means queued, not yet answered."""
        request = await self._request(email, to, attachments, fields)
        body = await self._open_broker.ask(await self._ticket(request), timeout_seconds=timeout_seconds)
        return _answer(body)

    async def cancel(self, email_id: str, *, timeout_seconds: float = 10) -> Answer:
        """Has what is not yet sent of an email of this app never sent; waits for the answer, TimeoutError as for `ask`."""
        return await self._control("cancel", email_id, timeout_seconds)

    async def hold(self, email_id: str, *, timeout_seconds: float = 10) -> Answer:
        """Has what is not yet sent of an email of this app wait until `release`; waits for the answer."""
        return await self._control("hold", email_id, timeout_seconds)

    async def release(self, email_id: str, *, timeout_seconds: float = 10) -> Answer:
        """Lets go on what this app held; waits for the answer."""
        return await self._control("release", email_id, timeout_seconds)

    async def create_post(
        self, post: CreatePost | None = None, /, *, attachments: Iterable[Attachment | Path] = (), **fields: Any
    ) -> str:
        """Queues a post of the app's own, given as a CreatePost or as its fields (author, title, text …); returns its id."""
        request = post or build_post(attachments, fields)
        await self._open_broker.publish([self._post_ticket(request)])
        await self._pending.remember(request)
        return request.id

    async def post(self, post_id: str) -> dict[str, Any] | None:
        """A post by its id, its `status` first: `stored`, `failed` with its `reason`, or `pending` with its content.

        Stored and failed ones are seen where the client was given a `database_url` (an app's role reads what is published);
        None for a post that neither the store nor anybody who remembers knows.  While the store is away what is remembered
        is `pending`, and of the rest StoreUnavailable is raised.
        """
        try:
            known = canonical_uuid(post_id)
        except ValueError:
            return None  # an id that nobody can have given to a post
        fault = None
        if self._store is not None:
            try:
                if (found := await self._store.post(known)) is not None:
                    return found
            except StoreUnavailable as away:
                fault = away
        remembered = await self._pending.recall(known)
        if remembered is None and fault is not None:
            raise fault
        return remembered

    async def ask_post(
        self,
        post: CreatePost | None = None,
        /,
        *,
        attachments: Iterable[Attachment | Path] = (),
        timeout_seconds: float = 10,
        **fields: Any,
    ) -> Answer:
        """Queues a post and waits for what became of it; TimeoutError means queued, not yet answered."""
        request = post or build_post(attachments, fields)
        try:
            body = await self._open_broker.ask(self._post_ticket(request), timeout_seconds=timeout_seconds)
        except TimeoutError:
            await self._pending.remember(request)
            raise
        answer = _answer(body)
        if answer.status == "accepted":
            await self._pending.remember(request)
        return answer

    async def events(self, name: str, patterns: Sequence[str] = ("#",)) -> AsyncGenerator[dict[str, Any]]:
        """Yields CloudEvents from the durable subscription `name`; an event is done when the next one is asked for."""
        queue = await self._open_broker.subscribe(name, patterns)
        async with self._open_broker.consume({queue: 1}, concurrency=1) as consumer:
            async for lease in consumer:
                yield json.loads(lease.ticket.body)
                await lease.settle(Done())

    @property
    def _open_broker(self) -> Broker:
        if self._broker is None:
            raise RuntimeError("the client is not open: use `async with gateway.connect(url) as client`")
        return self._broker

    async def _request(
        self,
        email: SendEmail | str,
        to: str | Iterable[str],
        attachments: Iterable[Attachment | Path],
        fields: dict[str, Any],
    ) -> SendEmail:
        request = email if isinstance(email, SendEmail) else await _build_aside(email, to, attachments, fields)
        if isinstance(email, SendEmail) and (to or attachments or fields):
            given = [name for name, value in (("to", to), ("attachments", attachments)) if value] + list(fields)
            raise InvalidRequest([Problem(name, "not together with a SendEmail, which has its own") for name in given])
        if self._check is not None and request.template is not None:
            problems = self._check(request.template, request.params)
            if problems:
                raise InvalidRequest(problems)
        return request

    async def _ticket(self, request: SendEmail) -> Ticket:
        queue = STREAM_QUEUES[request.stream or "normal"] if request.serial_key is None else EMAIL_SEND_SERIAL
        size = sum(len(item.data or "") for item in request.attachments) + len(request.text or request.html or "")
        body = await aside(size, request.to_json)
        if len(body) > MAX_REQUEST_BYTES:
            raise InvalidRequest([Problem("(request)", f"has {len(body)} bytes, at most {MAX_REQUEST_BYTES}")])
        return Ticket(queue=queue, id=request.id, body=body, app=self._app)

    async def _control(self, action: Action, email_id: str, timeout_seconds: float) -> Answer:
        try:
            request = ControlEmail(action=action, email_id=email_id)
        except ValueError:
            raise InvalidRequest([Problem("email_id", "is not a UUID")]) from None
        ticket = Ticket(queue=EMAIL_CONTROL, id=request.id, body=request.to_json(), app=self._app)
        return _answer(await self._open_broker.ask(ticket, timeout_seconds=timeout_seconds))

    def _post_ticket(self, request: CreatePost) -> Ticket:
        return Ticket(queue=POST_CREATE, id=request.id, body=request.to_json(), app=self._app)


def _answer(body: bytes) -> Answer:
    data = json.loads(body)
    return Answer(id=data["id"], status=data["status"], errors=tuple(data.get("errors", ())))


def build_post(attachments: Iterable[Attachment | Path], fields: dict[str, Any]) -> CreatePost:
    """Makes a CreatePost of loose fields; raises InvalidRequest naming every problem."""
    files = [attachment_from_file(item) if isinstance(item, Path) else item for item in attachments]
    data = {"id": new_id()} | fields | ({"attachments": tuple(files)} if files else {})
    return parse_create_post(data)


async def _build_aside(
    template: str, to: str | Iterable[str], attachments: Iterable[Attachment | Path], fields: dict[str, Any]
) -> SendEmail:
    """`build_request`, in a thread when there are files to read or much to check."""
    files = list(attachments)
    if files:
        return await asyncio.to_thread(build_request, template, to, files, fields)
    body = _request_json(template, to, files, fields)
    return await aside(len(body), lambda: parse_send_email(body))


def build_request(
    template: str, to: str | Iterable[str], attachments: Iterable[Attachment | Path], fields: dict[str, Any]
) -> SendEmail:
    """Makes a SendEmail of a template's name and loose fields; raises InvalidRequest naming every problem."""
    return parse_send_email(_request_json(template, to, attachments, fields))


def _request_json(
    template: str, to: str | Iterable[str], attachments: Iterable[Attachment | Path], fields: dict[str, Any]
) -> str:
    data = {"from" if key == "from_" else "list" if key == "list_" else key: value for key, value in fields.items()}
    files = [attachment_from_file(item) if isinstance(item, Path) else item for item in attachments]
    data |= {"template": template, "to": [to] if isinstance(to, str) else list(to)}
    if files:
        data["attachments"] = [item.model_dump(exclude_none=True) for item in files]
    data.setdefault("id", new_id())
    try:
        return json.dumps(data, default=_to_json)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(list(islice(_not_json(data, "", MAX_DEPTH), 100)) or [_ENDLESS]) from None


def attachment_from_file(path: Path) -> Attachment:
    """Reads a file to attach; its type follows its name."""
    import mimetypes

    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    try:
        return Attachment.of(path.name, path.read_bytes(), kind)
    except OSError as error:
        raise InvalidRequest([Problem("attachments", f"{path}: {error.strerror}")]) from None


def _to_json(value: Any) -> Any:
    """What JSON has no type for, but everybody writes the same way; anything else is a mistake."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError


def _not_json(value: Any, path: str, depth: int) -> Iterator[Problem]:
    """Where the values stand that cannot be written as JSON."""
    if depth < 0:
        yield Problem(path, "is nested too deep, or holds itself")
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str):
                yield from _not_json(item, f"{path}.{key}".lstrip("."), depth - 1)
            else:
                yield Problem(path, f"has the key {key!r}, which is not text")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{path}[{index}]", depth - 1)
    elif not isinstance(value, str | int | float | date | time | UUID | Decimal | Enum | None):
        yield Problem(path, f"is not a JSON value ({type(value).__name__})")


class BlockingClient:
    """The client for code without an event loop: the same calls, each waits. Safe to use from several threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway-client", daemon=True)

    def __enter__(self) -> BlockingClient:
        self._thread.start()
        try:
            self._wait(self._client.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._client.__aexit__(None, None, None))
        finally:
            self._end()

    def send(self, email: SendEmail | str, /, **fields: Any) -> str:
        """As Client.send."""
        return self._wait(self._client.send(email, **fields))

    def ask(self, email: SendEmail | str, /, **fields: Any) -> Answer:
        """As Client.ask."""
        return self._wait(self._client.ask(email, **fields))

    def cancel(self, email_id: str, *, timeout_seconds: float = 10) -> Answer:
        """As Client.cancel."""
        return self._wait(self._client.cancel(email_id, timeout_seconds=timeout_seconds))

    def hold(self, email_id: str, *, timeout_seconds: float = 10) -> Answer:
        """As Client.hold."""
        return self._wait(self._client.hold(email_id, timeout_seconds=timeout_seconds))

    def release(self, email_id: str, *, timeout_seconds: float = 10) -> Answer:
        """As Client.release."""
        return self._wait(self._client.release(email_id, timeout_seconds=timeout_seconds))

    def create_post(self, post: CreatePost | None = None, /, **fields: Any) -> str:
        """As Client.create_post."""
        return self._wait(self._client.create_post(post, **fields))

    def post(self, post_id: str) -> dict[str, Any] | None:
        """As Client.post."""
        return self._wait(self._client.post(post_id))

    def ask_post(self, post: CreatePost | None = None, /, **fields: Any) -> Answer:
        """As Client.ask_post."""
        return self._wait(self._client.ask_post(post, **fields))

    def events(self, name: str, patterns: Sequence[str] = ("#",)) -> Iterator[dict[str, Any]]:
        """As Client.events: `for event in client.events(…)`; who leaves the loop gives the event in hand back."""
        events = self._client.events(name, patterns)
        try:
            while (event := self._wait(_next(events))) is not None:
                yield event
        finally:
            self._wait(_ended(events))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("the client is not open: use `with gateway.connect_blocking(url) as client`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # where Ctrl-C ended the waiting

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(events: AsyncGenerator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)


async def _ended(events: AsyncGenerator[dict[str, Any]]) -> None:
    while True:
        try:
            return await events.aclose()
        except RuntimeError:  # the step that Ctrl-C ended is still on its way out
            await asyncio.sleep(0.01)


def connect(
    url: str = "sqlite:///var/queue.db",
    *,
    templates_dir: Path | str | None = None,
    database_url: str = "",
    cache_url: str = "",
) -> Client:
    """A client of the queue at `url`.

    With `templates_dir` params are checked before they are sent; `database_url` is where `post` reads what is stored, and
    `cache_url` (redis) where it finds posts on their way that other processes made.
    """
    return Client(url, check=_params_check(templates_dir), database_url=database_url, pending=open_pending(cache_url))


def connect_blocking(
    url: str = "sqlite:///var/queue.db",
    *,
    templates_dir: Path | str | None = None,
    database_url: str = "",
    cache_url: str = "",
) -> BlockingClient:
    """The blocking form of `connect`, for use with `with`."""
    return BlockingClient(connect(url, templates_dir=templates_dir, database_url=database_url, cache_url=cache_url))


def _params_check(templates_dir: Path | str | None) -> ParamsCheck | None:
    return None if templates_dir is None else _LazyCheck(Path(templates_dir))


class _LazyCheck:
    """Checks params against the schemas of a templates folder, read at the first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, template: str, params: dict[str, Any]) -> Sequence[Problem]:
        from gateway.contract.template_schema import problems_in

        return problems_in(self._folder, template, params)
