"""A login proves its own author and nobody else: the tricks of `test_spoofing`, by somebody who has logged in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sender_desk import MEMBER_HOST, STRANGER_HOST, Desk, envelope, mail, signed
from test_spoofing import FROM_ANN, TRICKS, is_member, raw

from gateway.inbound.authenticate import Result
from gateway.inbound.authenticate.authenticator import TrustedMta

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.mark.parametrize("author", ["ann@example.org", "Ann <ANN@Example.ORG>"])
async def test_who_logged_in_is_the_author(author: str, desk: Desk) -> None:
    found = await desk.judge(mail(author), auth=ANN, mail_from=ANN)
    assert (found.verdict, found.author, found.aligned_by) == (Result.PASS, ANN, "login")
    assert found.verifies(ANN)
    assert not found.verifies("somebody@else.example")
    assert await is_member(desk, mail(author), auth=ANN, mail_from="")


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
async def test_a_trick_of_somebody_logged_in_makes_nobody_a_member(desk: Desk, trick: Callable[[], bytes]) -> None:
    assert not await is_member(desk, trick(), auth=BOB, client=STRANGER_HOST)


@pytest.mark.parametrize("auth", [BOB, "ann", "example.org", "app:shop", f"app:{ANN}", f"{ANN}.", f"{ANN}@x.example"])
@pytest.mark.parametrize("client", [STRANGER_HOST, MEMBER_HOST], ids=["a stranger's host", "a host of Ann's domain"])
async def test_nobody_else_who_logged_in_is_ann(auth: str, client: str, desk: Desk) -> None:
    found = await desk.judge(mail(), auth=auth, client=client, mail_from=ANN, helo="example.org")
    assert found.verdict is Result.FAIL
    assert auth in found.reason
    assert not await is_member(desk, mail(), auth=auth, client=client, mail_from=ANN, helo="example.org")


async def test_a_login_does_not_make_up_for_two_authors(desk: Desk) -> None:
    for octets in (raw(FROM_ANN, "From: bob@example.org"), mail(f"{ANN}, {BOB}"), mail(f"<{ANN}> <{BOB}>")):
        assert not await is_member(desk, octets, auth=ANN, mail_from=ANN)


async def test_a_signature_of_the_authors_domain_proves_what_an_app_hands_on(desk: Desk) -> None:
    assert await is_member(desk, signed(mail()), auth="app:shop", client=STRANGER_HOST)


@pytest.mark.parametrize(
    ("auth", "mail_from", "vouches"),
    [
        (ANN, ANN, True),
        (ANN, "Ann@EXAMPLE.org", True),
        (ANN, BOB, False),
        (ANN, "", False),
        ("ann", "ann", False),
        ("", "", False),
        ("app:shop", BOB, True),
    ],
)
async def test_a_login_vouches_for_its_own_sender(auth: str, mail_from: str, vouches: bool) -> None:
    assert envelope(auth=auth, mail_from=mail_from).is_sender_by_login is vouches


async def test_the_results_of_somebody_logged_in_are_his_own_words(desk: Desk) -> None:
    forged = mail(more=["Authentication-Results: mx.example.net; dmarc=pass header.from=example.org"])
    trusting = Desk(desk.dns, desk.cage, desk.resolver, TrustedMta(authserv_id="mx.example.net"))
    assert (await trusting.judge(forged, by_trusted_host=True)).verdict is Result.PASS
    found = await trusting.judge(forged, by_trusted_host=True, auth=BOB, client=STRANGER_HOST)
    assert (found.verdict, found.source) == (Result.FAIL, "own")
