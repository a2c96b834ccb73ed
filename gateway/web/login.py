"""`/login`, `/logout` and `/invitation/TOKEN`: how a person becomes known, and unknown again.

Flow: form → throttle → password (argon2, off the loop) → a new session; the old one, if any, is ended.  An invitation is a
signed link that makes its user once, within a day.
Promises: a wrong name and a wrong password look and cost alike; every POST carries the form's token; `next` leads to our own
pages only.  `show` renders the forms (a plain one stands here, so that a gateway without pages has a door).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from gateway.errors import InvalidRequest, TransientFailure
from gateway.mail.tokens import INVITATION, Tokens
from gateway.maillog import MailLog
from gateway.store.access import Access
from gateway.web.asking import FORM_FIELD, User, asking_of, form_token, require_form_token
from gateway.web.credentials import session_cookie
from gateway.web.passwords import Passwords
from gateway.web.throttle import LoginThrottle

_MAX_FORM_BYTES = 16 * 1024
_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormView:
    """What a form shows: `kind` is `login`, or `invitation` for a first password; `trouble` is what went wrong."""

    kind: str
    action: str
    form_token: str
    name: str = ""
    next: str = "/"
    trouble: str = ""


Show = Callable[[Request, FormView], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Proves who people are."""

    access: Access
    passwords: Passwords
    throttle: LoginThrottle
    tokens: Tokens
    log: MailLog

    async def log_in(self, name: str, password: str, *, client: str, old_session: str) -> str:
        """A new session's token; '' where name and password are not of one user.

        Raises Throttled, and TransientFailure where it cannot be tried now.
        """
        wait = self.throttle.wait_seconds(name, client)
        if wait:
            self.log.login_refused(client=client, why="throttled")
            raise Throttled(wait)
        self.throttle.failed(name, client)
        try:
            kept = await self.access.password_hash(name)
            is_right = await self.passwords.is_right(kept, password)
        except TransientFailure:
            self.throttle.succeeded(name, client)  # nothing was tried
            raise
        token = await self.access.start_session(name, kept) if is_right and kept is not None else ""
        if not token:
            self.log.login_refused(client=client, why="name or password")
            return ""
        self.throttle.succeeded(name, client)
        if old_session:
            await self.access.end_session(old_session)
        self.log.logged_in(name.strip().lower(), client=client)
        return token

    async def accept(self, token: str, password: str) -> str:
        """A new session of the invited user; '' where the invitation is none any more. Raises InvalidRequest."""
        invitation_id = self.tokens.read(INVITATION, token)
        if invitation_id is None or await self.access.invited(invitation_id) is None:
            return ""
        kept = await self.passwords.keep(password)
        name = await self.access.accept_invitation(invitation_id, kept)
        return await self.access.start_session(name, kept) if name is not None else ""

    async def invited(self, token: str) -> str | None:
        """Whose invitation this is, None for none."""
        invitation_id = self.tokens.read(INVITATION, token)
        return None if invitation_id is None else await self.access.invited(invitation_id)


class Throttled(Exception):
    """Too many wrong passwords; carries how long to wait."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many tries; wait {seconds} seconds")
        self.seconds = seconds


def login_routes(login: Login, show: Show | None = None) -> APIRouter:
    """The routes; not part of the API, so OpenAPI does not tell them."""
    routes = APIRouter(include_in_schema=False)
    render = show or plain_form

    def page(request: Request, view: FormView, status: int = 200, **headers: str) -> Response:
        fixed = {"Content-Security-Policy": _CSP, "Cache-Control": "no-store"}
        return HTMLResponse(render(request, view), status_code=status, headers=fixed | headers)

    def login_view(request: Request, **values: str) -> FormView:
        return FormView(kind="login", action="/login", form_token=form_token(request), **values)

    @routes.get("/login")
    async def login_form(request: Request, next: str = "/") -> Response:
        if isinstance(asking_of(request).asker, User):
            return _to(local_path(next))
        return page(request, login_view(request, next=local_path(next)))

    @routes.post("/login")
    async def log_in(request: Request) -> Response:
        form = await read_form(request)
        require_form_token(request, form.get(FORM_FIELD))
        asking, name, target = asking_of(request), form.get("name", ""), local_path(form.get("next", "/"))
        try:
            token = await login.log_in(name, form.get("password", ""), client=asking.client, old_session=asking.session)
        except Throttled as throttled:
            view = login_view(
                request, name=name, next=target, trouble=f"Too many tries. Wait {_minutes(throttled.seconds)}."
            )
            return page(request, view, 429, **{"Retry-After": str(throttled.seconds)})
        if not token:
            view = login_view(request, name=name, next=target, trouble="Name or password is wrong.")
            return page(request, view, 403)
        return _to(target, session_cookie(token, is_https=asking.is_https))

    @routes.post("/logout")
    async def log_out(request: Request) -> Response:
        form = await read_form(request)
        require_form_token(request, form.get(FORM_FIELD))
        asking = asking_of(request)
        if asking.session:
            await login.access.end_session(asking.session)
        return _to("/login", session_cookie("", is_https=asking.is_https))

    def invitation_view(request: Request, token: str, name: str, trouble: str = "") -> FormView:
        action = f"/invitation/{token}"
        return FormView(kind="invitation", action=action, form_token=form_token(request), name=name, trouble=trouble)

    @routes.get("/invitation/{token}")
    async def invitation_form(request: Request, token: str) -> Response:
        name = await login.invited(token)
        if name is None:
            return page(request, login_view(request, trouble=_NO_INVITATION), 404)
        return page(request, invitation_view(request, token, name))

    @routes.post("/invitation/{token}")
    async def accept_invitation(request: Request, token: str) -> Response:
        form = await read_form(request)
        require_form_token(request, form.get(FORM_FIELD))
        try:
            session = await login.accept(token, form.get("password", ""))
        except InvalidRequest as error:
            name = await login.invited(token) or ""
            trouble = f"The password {error.problems[0].message}."
            return page(request, invitation_view(request, token, name, trouble), 422)
        if not session:
            return page(request, login_view(request, trouble=_NO_INVITATION), 404)
        return _to("/", session_cookie(session, is_https=asking_of(request).is_https))

    return routes


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form (application/x-www-form-urlencoded); the first of each name counts."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=50, errors="replace")
    return {name: values[0] for name, values in fields.items()}


def local_path(text: str) -> str:
    """The path, if it leads to a page of ours; `/` otherwise."""
    is_ours = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if is_ours and len(text) <= 2000 else "/"


def plain_form(request: Request, view: FormView) -> str:
    """The forms without any pages around them."""
    name = (
        f'<p><label>Name <input name="name" value="{escape(view.name)}" autocomplete="username" required></label></p>'
    )
    known = f"<p>Choose a password for {escape(view.name)} (10 characters or more).</p>"
    complete = "current-password" if view.kind == "login" else "new-password"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Log in - gateway</title><main><h1>The gateway</h1><p role="alert">{escape(view.trouble)}</p>
<form method="post" action="{escape(view.action)}"><input type="hidden" name="{FORM_FIELD}" value="{escape(view.form_token)}">
<input type="hidden" name="next" value="{escape(view.next)}">{name if view.kind == "login" else known}
<p><label>Password <input type="password" name="password" autocomplete="{complete}" required></label></p>
<p><button>{"Log in" if view.kind == "login" else "Set password"}</button></p></form></main></html>"""


def _to(path: str, cookie: str = "") -> Response:
    headers = {"Location": path, "Cache-Control": "no-store"} | ({"Set-Cookie": cookie} if cookie else {})
    return Response(status_code=303, headers=headers)


def _minutes(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 90 else f"{-(-seconds // 60)} minutes"


_NO_INVITATION = "This invitation is used, over, or none of ours. Ask for another one."
