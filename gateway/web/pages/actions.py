"""The buttons: each is a POST with the form token that lets the operator act, and leads back to a page that says what was done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import Response

from gateway.web.pages.desk import Desk, checked_form, done

if TYPE_CHECKING:
    from gateway.watch.operator import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """`base`/ITEM/`verb`; `act` returns how much was done (0: somebody was faster), `said` names the word for it."""

    base: str
    verb: str
    said: str
    act: Callable[[Operator, str], Awaitable[int]]
    leads_back_to_the_list: bool = False


def add_action(router: APIRouter, desk: Desk, action: Action) -> None:
    @router.post(f"{action.base}/{{item}}/{action.verb}")
    async def act(request: Request, item: str) -> Response:
        await checked_form(request)
        count = await action.act(desk.operator_for(request), item)
        where = action.base if action.leads_back_to_the_list else f"{action.base}/{item}"
        return done(where, action.said if count else "nothing")
