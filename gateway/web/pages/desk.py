"""What all pages stand on: the parts they read, who asks, and what was just done.

Each subject has a module with `add_routes(router, desk)`; `create_pages` puts them together.  An action is a POST with the
form token; it answers with a redirect whose `said` names one of `SAID`, so that a reload repeats nothing.
Promises: nothing of a request is said back but as escaped text; a fault is a page that says what happened and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute

from gateway import __version__
from gateway.errors import PermanentFailure, TransientFailure
from gateway.web.asking import (
    FORM_FIELD,
    ApiKey,
    NotAllowed,
    User,
    asker_of,
    asking_of,
    form_token,
    require,
    require_form_token,
)
from gateway.web.login import read_form
from gateway.web.pages.faults import NoSuchPage, fault_page
from gateway.web.pages.live import Live
from gateway.web.pages.reading import Reader
from gateway.web.pages.view import View

if TYPE_CHECKING:
    from gateway.inbound.confirm import ConfirmDesk
    from gateway.mail.links import StatusLinks
    from gateway.outbound.captured import CapturedFolder
    from gateway.outbound.relay import PausedRelay
    from gateway.queue.broker import Broker
    from gateway.store.blobs import BlobStore
    from gateway.store.database import Database
    from gateway.store.emails import DatabaseLedger
    from gateway.store.lists import Lists
    from gateway.store.mails import Mails
    from gateway.watch.operator import Operator

FOR_STRANGERS = ("/static/", "/status/", "/confirm/")  # the guard lets anybody ask for these
SAID = {
    "released": ("good", "Released: it goes its way again."),
    "discarded": ("good", "Discarded. Its octets stay here to be read."),
    "replayed": ("good", "It is processed anew. Reload in a moment to see what becomes of it."),
    "cancelled": ("good", "Cancelled: what was not sent never will be."),
    "retried": ("good", "Put back into its queue: it is tried again."),
    "dropped": ("good", "Dropped."),
    "nothing": ("warn", "Nothing was left to do: somebody or something was faster."),
    "welcome": ("good", "You are logged in. From now on everybody needs a name and a password here."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where things are, for the hints of empty pages."""

    smtp: str
    mailbox: str
    photos: str
    mailboxes: Sequence[str]
    captures: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRelay:
    """A relay of the settings; `about` has no secrets."""

    name: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The parts, handed in by the composition root; `paused` is None where this process does not send."""

    view: View
    live: Live
    database: Database
    mails: Mails
    ledger: DatabaseLedger
    lists: Lists
    blobs: BlobStore
    broker: Broker
    reader: Reader
    captured: CapturedFolder
    links: StatusLinks
    places: Places
    relays: Sequence[KnownRelay]
    paused: Callable[[], Sequence[PausedRelay]] | None
    operator: Callable[[str], Operator]
    reply_address: Callable[[str, str], str]
    confirming: ConfirmDesk

    async def show(self, request: Request, name: str, values: Mapping[str, Any], *, room: str = "") -> Response:
        """A page within the frame all pages share."""
        snapshot = await self.live.snapshot()
        frame = {
            "me": _shown_name(request),
            "token": form_token(request),
            "said": SAID.get(request.query_params.get("said", "")),
            "rooms": _rooms(held=snapshot.held, dead=snapshot.dead, captures=self.places.captures),
            "room": room,
            "places": self.places,
            "release": __version__,
        }
        return self.view.page(request, name, **(frame | dict(values)))

    def operator_for(self, request: Request) -> Operator:
        """The operator's desk in the name of whoever asks."""
        return self.operator(who(request))


def who(request: Request) -> str:
    """Whose name stands in the story."""
    asker = asker_of(request)
    if isinstance(asker, User):
        return asker.name
    return f"key {asker.prefix}" if isinstance(asker, ApiKey) else "somebody on this machine"


def _shown_name(request: Request) -> str:
    asker = asking_of(request).asker
    return asker.name if isinstance(asker, User) else ""


def _rooms(*, held: int, dead: int, captures: bool) -> list[tuple[str, list[tuple[str, str, int]]]]:
    out = [("Emails", "/emails", 0)] + ([("Captured", "/captured", 0)] if captures else [])
    return [
        ("", [("Overview", "/", 0)]),
        ("Needs a person", [("Held", "/held", held), ("Dead letters", "/dead", dead)]),
        ("In", [("Mails", "/mails", 0), ("Posts", "/posts", 0), ("Support", "/support", 0)]),
        ("Out", out),
        ("Machine", [("Queues", "/queues", 0), ("Relays", "/relays", 0)]),
    ]


async def checked_form(request: Request) -> dict[str, str]:
    """The fields of a form with our token; raises NotAllowed for any other."""
    fields = await read_form(request)
    require_form_token(request, fields.get(FORM_FIELD))
    return fields


def done(where: str, said: str) -> Response:
    """After an action: back to a page that says what was done."""
    return RedirectResponse(f"{where}?said={said}", status_code=303)


def page_route(view: View) -> type[APIRoute]:
    """The class of all page routes: asks for the right to read, or to act, and turns what a handler raises into a page."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def shown(request: Request) -> Response:
                try:
                    if not request.scope["path"].startswith(FOR_STRANGERS):
                        require(request, "read" if request.method == "GET" else "admin")
                    return await handle(request)
                except RequestValidationError:
                    return fault_page(view, request, NoSuchPage("there is nothing of that number"))
                except (NoSuchPage, NotAllowed, PermanentFailure, TransientFailure, ValueError) as fault:
                    return fault_page(view, request, fault)

            return shown

    return PageRoute
