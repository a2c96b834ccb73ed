"""What strangers write stays text: payloads by subject, sender, file name, header, text, html and template error."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.policy import SMTP
from pathlib import Path

import pytest
from lodge import SCRIPT, Lodge, message
from playwright.sync_api import Page, Request

PAYLOADS = (
    SCRIPT,
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "{{ 7*7 }}${7*7}<%= 7*7 %>",
    "</title></textarea></style><script>alert(1)</script>",
    "<a href=javascript:alert(1)>x</a>",
    "<div hx-get=/queues hx-trigger=load hx-sse:connect=/live/queues>",
)
HTML = """<html><head><title>no</title><meta http-equiv=refresh content="0;url=https://e.example/">
<link rel=stylesheet href="https://e.example/a.css"><base href="https://e.example/"><style>@import 'https://e.example/b.css'</style></head>
<body background="https://e.example/c.png" onload="alert(1)"><script>alert(1)</script><img src="https://e.example/d.png">
<img src=x onerror=alert(1)><p style="background:url(https://e.example/e.png);position:fixed;color:red">shown</p>
<p style="background:u\\72l(https://e.example/f.png)">text</p><form action="https://e.example/"><input name=password></form>
<iframe src="https://e.example/g"></iframe><svg><script>alert(1)</script></svg><a href="javascript:alert(1)">link</a></body></html>"""


@pytest.fixture(scope="module")
def posted(lodge: Lodge) -> dict[str, str]:
    """A mail that is hostile in every place, as a mail, a post, an email and a captured file."""
    all_at_once = " ".join(PAYLOADS)
    mail = message(all_at_once, all_at_once, sender=f'"{all_at_once.replace(chr(34), chr(39))}" <eve@example.org>')
    mail["X-Payload"] = all_at_once
    mail.add_alternative(HTML, subtype="html")
    mail.add_attachment(b"%PDF-1.4", maintype="application", subtype="pdf", filename=f"{SCRIPT}.pdf")
    mail.add_attachment(b"<svg onload=alert(1)>", maintype="image", subtype="svg+xml", filename="picture.svg")
    octets = mail.as_bytes(policy=SMTP)
    post = lodge.deliver(octets, "posts@localhost")
    support = lodge.deliver(octets, "support@localhost")
    ids = {"mail": post["id"], "post": post["post_id"], "support": support["post_id"]}
    ids["held"] = lodge.send("broken", "held", to="ann@example.org", params={"name": all_at_once})
    fields = {"subject": all_at_once, "text": all_at_once, "html": HTML}
    ids["email"] = lodge.send("mended", to="ann@example.org", params={"name": all_at_once})
    folder = lodge.folder / "var" / "captured"
    name = "20300101T000000000000-0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b11"
    (folder / f"{name}.eml").write_bytes(octets)
    (folder / f"{name}.json").write_text(json.dumps({"mail_from": SCRIPT, "recipient": fields["subject"]}))
    return ids | {"captured": name}


def test_no_payload_runs_and_nothing_is_loaded_from_elsewhere(
    open_page: Callable[..., Page], lodge: Lodge, posted: dict[str, str]
) -> None:
    page = open_page()
    abroad: list[str] = []
    dialogs: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((lodge.url, "data:")):
            abroad.append(request.url)

    page.on("request", note)
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    paths = ["/", "/mails", "/emails", "/posts", "/support", "/captured", "/held", f"/mails/{posted['mail']}"]
    paths += [f"/mails/{posted['mail']}/contents", f"/mails/{posted['mail']}/html", f"/posts/{posted['post']}"]
    paths += [f"/posts/{posted['support']}", f"/emails/{posted['held']}", f"/emails/{posted['email']}"]
    paths += [f"/emails/{posted['email']}/contents", f"/captured/{posted['captured']}"]
    paths += [f"/find?q={SCRIPT}", f"/mails?text={SCRIPT}&rcpt_to={SCRIPT}", f"/held?said={SCRIPT}"]
    for path in paths:
        page.goto(path, wait_until="load")
        for folded in page.locator("details").all():
            folded.evaluate("item => item.open = true")
        assert page.locator("main script, main [onerror], main [onload], main form[action^='http']").count() == 0, path
    assert (dialogs, abroad) == ([], [])


def test_payloads_are_shown_as_they_were_written(open_page: Callable[..., Page], posted: dict[str, str]) -> None:
    page = open_page()
    page.goto(f"/mails/{posted['mail']}/contents")
    shown = page.locator("main").inner_text()
    for payload in PAYLOADS:
        assert payload in shown, payload
    attachments = page.get_by_role("region", name="Attachments").inner_text()
    assert "script>.pdf" in attachments, "the bare name of the file"
    page.goto(f"/emails/{posted['held']}")
    assert SCRIPT in page.locator("main").inner_text()


def test_a_frame_shows_the_words_and_none_of_the_tricks(open_page: Callable[..., Page], posted: dict[str, str]) -> None:
    page = open_page()
    page.goto(f"/mails/{posted['mail']}/html")
    assert page.get_by_text("shown").count() == 1
    assert page.locator("script, iframe, form, input, link, meta[http-equiv], base").count() == 0
    assert page.locator("img[src^='http']").count() == 0


def test_files_of_strangers_are_saved_and_never_shown(open_page: Callable[..., Page], posted: dict[str, str]) -> None:
    page = open_page()
    page.goto("/mails")
    for number in (0, 1):
        answer = page.request.get(f"/mails/{posted['mail']}/files/{number}")
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "name",
    ["../queue", "..%2fqueue", "%2e%2e%2fqueue.db", "/etc/passwd", "20300101T000000000000-x", "%00", "a" * 5000],
)
def test_only_names_that_capture_makes_are_looked_for(
    open_page: Callable[..., Page], posted: dict[str, str], name: str
) -> None:
    page = open_page()
    for more in ("", "/raw", "/html"):
        answer = page.request.get(f"/captured/{name}{more}", headers={"Accept": "text/html"})
        assert answer.status in (404, 414, 400), answer.url
        assert b"SQLite" not in answer.body()


def test_every_answer_forbids_what_is_not_ours(open_page: Callable[..., Page], posted: dict[str, str]) -> None:
    page = open_page()
    for path in ("/", f"/mails/{posted['mail']}", f"/mails/{posted['mail']}/raw", "/nothing/here", "/login"):
        answer = page.request.get(path, headers={"Accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "frame-ancestors 'none'" in policy, path
        assert "unsafe" not in policy, path


def test_a_form_without_our_token_does_nothing(open_page: Callable[..., Page], posted: dict[str, str]) -> None:
    page = open_page()
    page.goto("/")
    answer = page.request.post(f"/emails/{posted['held']}/cancel", form={"form_token": "forged"})
    assert answer.status == 403
    page.goto(f"/emails/{posted['held']}")
    assert "cancelled" not in page.get_by_role("region", name="What became of it").inner_text()


def test_the_pages_never_read_a_link_out_of_the_folder(
    open_page: Callable[..., Page], lodge: Lodge, posted: dict[str, str]
) -> None:
    name = "20300102T000000000000-0199b7a2-6d0e-7c3c-9e1f-0a4c7a1f2b12"
    (lodge.folder / "var" / "captured" / f"{name}.eml").symlink_to(Path("/etc/passwd"))
    page = open_page()
    page.goto("/captured")
    assert "cannot be read" in page.locator("main").inner_text()
    assert page.request.get(f"/captured/{name}/raw").status == 404
