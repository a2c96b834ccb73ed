"""The pages: server-rendered, readable without JavaScript; nobody should have to ask what became of a mail.

Flow: browser → guard (who asks) → here → store, queue and the operator's desk.  Each subject is a module with `add_routes`;
`view` has the templates and headers, `live` what moves.  Promises: strict Content-Security-Policy on every answer, nothing
inline, nothing from elsewhere; what strangers wrote is text, or stands in a frame that can do nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.web.login import FormView
from gateway.web.pages import captured, confirm, emails, mails, overview, posts, status, waiting
from gateway.web.pages.desk import Desk, page_route
from gateway.web.pages.faults import NoSuchPage, answer_people, show_refusal
from gateway.web.pages.view import View, static_files, static_response

__all__ = ["Desk", "answer_people", "create_pages", "show_form", "show_refusal"]


def create_pages(desk: Desk) -> APIRouter:
    """The routes of all pages, for the application to include."""
    router = APIRouter(route_class=page_route(desk.view), include_in_schema=False)
    files = static_files()

    @router.get("/static/{path:path}")
    async def static(path: str) -> Response:
        if path not in files:
            raise NoSuchPage("there is no such file")
        return static_response(*files[path])

    for subject in (overview, mails, emails, posts, captured, waiting, status, confirm):
        subject.add_routes(router, desk)
    return router


def show_form(view: View) -> Callable[[Request, FormView], str]:
    """Renders the forms of login and invitation as pages of this house."""

    def show(request: Request, form: FormView) -> str:
        return view.render(f"{form.kind}.html", form=form)

    return show
