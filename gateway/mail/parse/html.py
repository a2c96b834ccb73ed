"""HTML of strangers: sanitised to an allow-list, and turned into plain text.  Home of nh3 and turbohtml.

Promises: no script, style, form or event handler survives; pictures only from the mail itself (`cid:`), so that reading
a post tells nobody; links open without a referrer.  The text is made from the sanitised form, so that both say the same.
`styled` keeps colours, type and boxes as well, for a view in a frame that can load nothing; nothing in it names a file
or a place on the page outside its own box.
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
_STYLED_TAGS = _TAGS | {"center", "font", "tfoot"}
_BOX = {"align", "valign", "bgcolor", "width", "height"}
_STYLED_ATTRIBUTES = {
    **_ATTRIBUTES,
    "*": _ATTRIBUTES["*"] | {"style"},
    "font": {"color", "face", "size"},
    "table": _BOX | {"border", "cellpadding", "cellspacing"},
    "tr": _BOX,
    "td": _ATTRIBUTES["td"] | _BOX,
    "th": _ATTRIBUTES["th"] | _BOX,
    "div": {"align"},
    "p": {"align"},
}
_STYLE_PROPERTIES = {
    *("background", "background-color", "color", "direction", "opacity", "overflow-wrap", "white-space", "word-break"),
    *("font", "font-family", "font-size", "font-style", "font-variant", "font-weight", "letter-spacing", "line-height"),
    *("text-align", "text-decoration", "text-indent", "text-transform", "vertical-align", "list-style-type"),
    *(
        "width",
        "max-width",
        "min-width",
        "height",
        "max-height",
        "min-height",
        "box-sizing",
        "display",
        "float",
        "clear",
    ),
    *("table-layout", "empty-cells", "caption-side", "border", "border-collapse", "border-color", "border-radius"),
    *("border-spacing", "border-style", "border-width", "border-top", "border-right", "border-bottom", "border-left"),
    *("margin", "margin-top", "margin-right", "margin-bottom", "margin-left"),
    *("padding", "padding-top", "padding-right", "padding-bottom", "padding-left"),
}
# Whatever loads something, and every escape that could spell it.
_LOADS = re.compile(r"url|image|src|expression|var|attr|env|[\\@]", re.I)


def sanitise(html: str, *, styled: bool = False) -> str:
    """Returns the part of `html` that is safe to show."""
    import nh3

    return nh3.clean(
        html,
        tags=set(_STYLED_TAGS if styled else _TAGS),
        clean_content_tags=_LEFT_OUT,
        attributes=_STYLED_ATTRIBUTES if styled else _ATTRIBUTES,
        attribute_filter=_keep,
        filter_style_properties=_STYLE_PROPERTIES if styled else None,
        set_tag_attribute_values={"a": {"target": "_blank"}} if styled else None,
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
    if attribute == "style":
        return ";".join(part for part in value.split(";") if not _LOADS.search(part))
    return value
