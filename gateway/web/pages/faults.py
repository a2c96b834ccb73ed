"""Faults as people see them: a page that says what happened and what to do, wherever the no comes from.

It comes from a page's handler, from the routes beside the pages (login, an address that is none), or from the guard, before
any of them is asked.  Programs keep their problem+json (`guard.wants_html` tells them apart).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.errors import InvalidRequest, PermanentFailure, TransientFailure
from gateway.web.asking import NotAllowed
from gateway.web.guard import Refused, wants_html
from gateway.web.pages.view import View


class NoSuchPage(Exception):
    """There is nothing of that name; the text says what there is not."""


class OurFault(Exception):
    """Something broke that should not."""


def fault_page(view: View, request: Request, fault: Exception) -> Response:
    """What happened and what to do, as a page."""
    status, title, next_step = _fault(fault)
    return _page(view, request, status, title=title, happened=str(fault), next_step=next_step)


def show_refusal(view: View) -> Callable[[dict[str, Any], Refused], Response]:
    """Renders what the guard refuses to a browser."""

    def show(scope: dict[str, Any], refused: Refused) -> Response:
        title, next_step = _REFUSALS.get(refused.status, _TOO_MUCH)
        return _page(view, Request(scope), refused.status, title=title, happened=refused.title, next_step=next_step)

    return show


def answer_people(api: FastAPI, view: View) -> None:
    """Lets errors of a browser's requests end as pages wherever they come from; programs keep their problem+json."""

    def told_as(kind: type[Exception], page_of: Callable[[Any], Exception | None]) -> None:
        plain: Any = api.exception_handlers[kind]

        async def handler(request: Request, error: Any) -> Response:
            told: Response = await plain(request, error)
            fault = page_of(error) if wants_html(request.scope) else None
            return told if fault is None else fault_page(view, request, fault)

        api.add_exception_handler(kind, handler)

    told_as(HTTPException, lambda error: _NO_PAGE if error.status_code == 404 else None)
    told_as(RequestValidationError, lambda error: _NO_PAGE)
    for kind in (InvalidRequest, NotAllowed, TransientFailure):
        told_as(kind, lambda error: error)
    told_as(Exception, lambda error: _BROKEN)


def _page(view: View, request: Request, status: int, *, title: str, happened: str, next_step: str) -> Response:
    sentence = f"{happened[:1].upper()}{happened[1:]}."
    return view.page(request, "error.html", status=status, title=title, happened=sentence, next_step=next_step)


def _fault(fault: Exception) -> tuple[int, str, str]:
    match fault:
        case OurFault():
            return (
                500,
                "A fault of the gateway itself",
                "It is in the log, and it is ours to mend. Nothing was lost by it.",
            )
        case NoSuchPage():
            return 404, "Not here", "Check the address, or look for it with the field at the top of the overview."
        case NotAllowed():
            return 403, *_REFUSALS[403]
        case TransientFailure():
            return 503, *_REFUSALS[503]
        case PermanentFailure():
            return 404, "Not here", "Check the id; ids may be shortened to a beginning that only one item has."
        case _:
            return 400, "That cannot be shown", "Go back to the list and choose again."


_NO_PAGE = NoSuchPage("there is no page at this address")
_BROKEN = OurFault("something broke while this page was made")
_TOO_MUCH = ("That was too much", "Go back and send less of it.")
_REFUSALS = {
    401: ("Log in first", "Your session is over. Log in from the overview, then do it again: nothing was done yet."),
    403: ("Not allowed", "Go back, reload the page and try again; log in anew if that does not help."),
    408: ("That took too long", "Go back and send it again."),
    421: ("Not under this name", "Use the address that the gateway printed when it started, or its `public_url`."),
    503: (
        "Not now",
        "Nothing is lost: mail is taken all the same and waits in the queue. Reload in a moment; `gateway doctor` says what "
        "is wrong, and `/readyz` says when it is over.",
    ),
}
