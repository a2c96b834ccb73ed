"""What hostile (or only unlucky) apps and people put into names, subjects, params and addresses."""

from __future__ import annotations

from hypothesis import strategies as st

FRAGMENTS = [
    *("\r\n", "\n", "\r", "\0", "\t", "\x0b", "\x0c", "\x1b", "\x1c", "\x7f", "\x85", "\u2028", "\u2029", "\ufeff"),
    *("\r\nBcc: eve@evil.example", "\n\n<script>", "\r\n\r\n", "\n.\r\n", "%0d%0aBcc:", "\\r\\n"),
    *("=?utf-8?q?=0d=0aBcc:_eve@evil.example?=", "=?utf-8?b?DQpCY2M6IGVAeC5kZQ==?=", "=?", "?=", "=?x?y?z?="),
    *(
        "\u202e",
        "\u2066",
        "\u2069",
        "\u200f",
        "\u200d",
        "👩‍👩‍👧‍👦",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "é",
        "e\u0301",
        "ß",
        "漢字",
        "مرحبا",
        "\ud800",
        "\udfff",
        "\uffff",
    ),
    *(" ", "  ", "\u00a0", ",", ";", ":", "@", "<", ">", '"', "\\", "(", ")", "[", "]", ".", "..", "-", "_", "=", "%"),
    *("Ann", "Doe, J.", "a@b", "<a@b>", "Subject: x", "From ", "x" * 80, "ü" * 80, "word " * 30),
]

snippets = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8))


@st.composite
def texts(draw: st.DrawFn, *, longest: int = 3000) -> str:
    """Mostly short, sometimes of extreme length."""
    text = "".join(draw(st.lists(snippets, max_size=8)))
    return (text * draw(st.sampled_from([1, 1, 1, 1, 5, 200])))[:longest]


locals_ = st.one_of(
    st.sampled_from(["ann", "a.b+c", "o'hara", "jörg", "用户", '"a..b"', '"a\\"b"', "x" * 64, "😀", "A" * 30 + ".b"]),
    snippets,
    st.text(max_size=10),
)
domains = st.one_of(
    st.sampled_from(["example.org", "localhost", "müller.example", "例え.jp", "[192.0.2.1]", "[IPv6:2001:db8::1]", ""]),
    st.sampled_from(
        ["a" * 63 + ".example", ".".join(["label"] * 40), "xn--mller-kva.de", "EXAMPLE.Org", "b@c", "x,y", "x>"]
    ),
    snippets,
)
mailboxes = st.builds("{}@{}".format, locals_, domains)
plain_mailboxes = st.sampled_from(
    ["ann@example.org", "jörg@müller.example", '"a..b"@x.example', "a.b+c@localhost", "用户@例え.jp", "x@[192.0.2.1]"]
)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    mailbox = draw(st.one_of(plain_mailboxes, plain_mailboxes, mailboxes))
    name = draw(texts(longest=400))
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return draw(st.sampled_from([mailbox, f"{name} <{mailbox}>", f'"{quoted}" <{mailbox}>', f"<{mailbox}>", name]))
