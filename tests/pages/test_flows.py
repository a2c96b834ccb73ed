"""What people do at the pages, from login to a captured mail: at a desk, on a phone, and without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.policy import SMTP

import pytest
from conftest import Seeded
from lodge import Lodge, matryoshka, message
from playwright.sync_api import Browser, Page, StorageState, expect

OLGA, PASSWORD = "olga", "a long enough password"
WAYS = [("desktop", True), ("phone", True), ("desktop", False)]
pytestmark = pytest.mark.parametrize(
    ("size", "js"), WAYS, ids=[f"{size}-{'js' if js else 'plain'}" for size, js in WAYS]
)
Visit = Callable[[str], Page]


@pytest.fixture(scope="module")
def session(browser: Browser, lodge: Lodge, seeded: Seeded) -> StorageState:
    """Makes the first user by the link a command prints; returns the browser's cookies."""
    context = browser.new_context(base_url=lodge.url)
    page = context.new_page()
    page.goto(lodge.invitation(OLGA))
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def visit(open_page: Callable[..., Page], session: StorageState, size: str, js: bool) -> Visit:
    """Opens a page as somebody who is logged in."""
    page = open_page(size, js=js, storage_state=session)

    def visited(path: str) -> Page:
        page.goto(path)
        return page

    return visited


def test_people_are_led_to_the_login_and_back_and_out_again(
    open_page: Callable[..., Page], session: StorageState, size: str, js: bool
) -> None:
    page = open_page(size, js=js)
    page.goto("/mails?text=lake")
    for password in ("a wrong password", PASSWORD):
        page.get_by_label("Name").fill(OLGA)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Log in").click()
        if password != PASSWORD:
            expect(page.get_by_role("alert")).to_contain_text("Name or password is wrong.")
    expect(page).to_have_url(re.compile(r"/mails\?text=lake$"))
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.goto("/mails")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_a_mail_is_found_by_its_subject_and_its_story_read(visit: Visit, seeded: Seeded) -> None:
    page = visit("/")
    page.get_by_role("searchbox", name="Find a mail or an email").fill("a day lake")
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name="A day at the lake").click()
    expect(page).to_have_url(re.compile(f"/mails/{seeded.ids['album_mail']}$"))
    story = page.get_by_role("region", name="Its story")
    expect(story).to_contain_text("Came in by smtp from visitor@localhost and was kept.")
    expect(story).to_contain_text("Delivered to the mailbox photos: a post was made of it.")
    story.get_by_text("Details").first.click()
    expect(story.get_by_text("recipients", exact=True).first).to_be_visible()


def test_a_held_mail_is_released_and_the_story_names_who_did_it(visit: Visit, seeded: Seeded) -> None:
    page = visit("/held")
    page.get_by_role("row").filter(has_text="cannot be parsed").first.get_by_role("link").click()
    page.get_by_role("button", name="Release").click()
    expect(page.get_by_role("status").first).to_contain_text("Released")
    expect(page.get_by_role("region", name="Its story")).to_contain_text(f"{OLGA} let it go on to its mailbox.")


def test_a_held_mail_is_discarded_after_a_question(visit: Visit, lodge: Lodge) -> None:
    mail_id = lodge.deliver(matryoshka(), "posts@localhost", "held")["id"]
    page = visit(f"/mails/{mail_id}")
    sure = page.get_by_role("button", name="Discard it")
    expect(sure).to_be_hidden()
    page.get_by_text("Discard…").click()
    sure.click()
    expect(page.get_by_role("status").first).to_contain_text("Discarded")
    expect(page.get_by_role("region", name="What became of it")).to_contain_text(f"discarded by {OLGA}")


def test_a_dead_letter_is_replayed_and_another_dropped(visit: Visit, lodge: Lodge) -> None:
    number, dropped = lodge.dead_letter(), lodge.dead_letter()
    first_death = lodge.with_broker(lambda broker: broker.dead_one(number)).died_at
    page = visit(f"/dead/{number}")
    expect(page.get_by_text("Field required").first).to_be_visible()
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("status").first).to_contain_text("Put back into its queue")
    page.goto(f"/dead/{dropped}")
    page.get_by_text("Drop…").click()
    page.get_by_role("button", name="Drop it").click()
    expect(page.get_by_role("status").first).to_contain_text("Dropped.")

    def is_so() -> bool:
        letters = {item.number: item.died_at for item in lodge.with_broker(lambda broker: broker.dead())}
        return dropped not in letters and letters.get(number, first_death) > first_death

    lodge.until(is_so, "one was tried again and died again, the other is gone")


def test_a_counter_moves_when_a_mail_comes(visit: Visit, lodge: Lodge, size: str, js: bool) -> None:
    page = visit("/")
    counter = page.locator("#mails-hour")
    before = int(counter.inner_text())
    lodge.deliver(message(f"Ping {size} {js}").as_bytes(policy=SMTP), "posts@localhost")

    def has_moved() -> bool:
        if not js:
            page.reload()
        return int(counter.inner_text()) > before

    lodge.until(has_moved, "the counter moved")
    expect(page.get_by_role("region", name="Last mails")).to_contain_text(f"Ping {size} {js}")


def test_an_album_is_opened_and_walked_through(visit: Visit, seeded: Seeded) -> None:
    page = visit("/posts")
    page.get_by_role("link", name="A day at the lake").click()
    expect(page.get_by_text("The last boat home").first).to_be_visible()
    page.get_by_role("link", name="The harbour at noon").click()
    picture = page.get_by_role("img", name="The harbour at noon")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 0
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_role("heading", name="The last boat home")).to_be_visible()


def test_a_captured_mail_is_read(visit: Visit, seeded: Seeded) -> None:
    page = visit("/captured")
    page.get_by_role("link", name="Welcome, Ann").first.click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_text("Hello Ann,")).to_be_visible()
    expect(page.get_by_role("region", name="Envelope")).to_contain_text("ann@example.org")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download as .eml").click()
    assert saved.value.suggested_filename.endswith(".eml")


def test_an_email_is_found_cancelled_or_let_go_on(visit: Visit, lodge: Lodge, js: bool) -> None:
    email_id = lodge.send("broken", "held", to="ben@example.org", params={"name": "Ben"})
    page = visit(f"/find?q={email_id}")  # an id leads to its item
    expect(page.get_by_role("region", name="What became of it")).to_contain_text("ben@example.org")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel it").click()
    expect(page.get_by_role("region", name="Its story")).to_contain_text(f"cancelled by {OLGA}")


def test_filters_narrow_the_list_and_older_ones_are_a_link_away(visit: Visit, seeded: Seeded) -> None:
    page = visit("/mails?disposition=delivered&mailbox=photos")
    rows = page.get_by_role("table").get_by_role("row")
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("A day at the lake")
    page.get_by_label("Words").fill("nothing like it")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name="No mail is like that")).to_be_visible()
