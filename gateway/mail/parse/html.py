"""HTML of strangers: sanitised to an allow-list, and turned into plain text.  Home of nh3 and turbohtml.

Promises: no script, style, form or event handler survives; pictures only from the mail itself (`cid:`), so that reading
a post tells nobody; links open without a referrer.  The text is made from the sanitised form, so that both say the same.
Runs in the cage only: both libraries are native code on hostile input.
"""

from __future__ import annotations

import re

_TEXT_TAGS = {"a", "abbr", "b", "br", "cite", "code", "del", "em", "i", "img", "ins", "kbd", "mark", "q", "s", "samp"}
_MORE_TEXT_TAGS = {"small", "span", "strong", "sub", "sup", "u"}
_BLOCK_TAGS = {"blockquote", "dd", "div", "dl", "dt", "figcaption", "figure", "hr", "li", "ol", "p", "pre", "ul"}
_HEADING_TAGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_TABLE_TAGS = {"caption", "col", "colgroup", "table", "tbody", "td", "tfoot", "th", "thead", "tr"}
_TAGS = frozenset(_TEXT_TAGS | _MORE_TEXT_TAGS | _BLOCK_TAGS | _HEADING_TAGS | _TABLE_TAGS)
_ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "width", "height"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
    "ol": {"start"},
    "*": {"dir", "lang"},
}
_NESTING = re.compile(
    r"<(/?)(a|b|big|blockquote|center|code|div|em|font|i|nobr|ol|s|small|span|strike|strong|table|tt|u|ul)(?=[\s/>])",
    re.I,
)
_LEFT_OUT = {"script", "style", "title"}  # with all that stands in them
_SCHEMES = {"http", "https", "mailto", "tel", "cid"}


def sanitise(html: str) -> str:
    """Returns the part of `html` that is safe to show."""
    import nh3

    return nh3.clean(
        html,
        tags=set(_TAGS),
        clean_content_tags=_LEFT_OUT,
        attributes=_ATTRIBUTES,
        attribute_filter=_keep,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        url_relative="deny",
    ).replace("\0", "")


def to_text(sanitised: str) -> str:
    """Plain text of sanitised html: paragraphs, lists and tables laid out, links as their words."""
    import turbohtml

    return turbohtml.parse(sanitised).to_text().replace("\0", "").replace("\xa0", " ").strip()


def deepest(html: str) -> int:
    """How deep the most often nested element is, by its tags; elements open at once cost the square of their number."""
    depths: dict[str, int] = {}
    most = 0
    for closes, name in _NESTING.findall(html):
        name = name.lower()
        depth = depths.get(name, 0)
        depths[name] = max(0, depth - 1) if closes else depth + 1
        most = max(most, depths[name])
    return most


def _keep(tag: str, attribute: str, value: str) -> str | None:
    if tag == "img" and attribute == "src" and not value.lower().startswith("cid:"):
        return None
    return value
