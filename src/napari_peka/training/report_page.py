"""One HTML page that needs nothing but itself: markup that escapes by default, tables, pictures, the frame around."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from napari_peka.io.prediction import RESEARCH_USE

_ASSETS = Path(__file__).parent.parent / "assets" / "report"
_VOID = frozenset({"img", "meta"})


class Html(str):
    """Text that is markup already. Everything else is escaped where it is put into markup."""

    __slots__ = ()


def markup(*parts: object) -> Html:
    """Join parts, escaping what is not :class:`Html` yet."""
    return Html("".join(p if isinstance(p, Html) else html.escape(str(p)) for p in parts))


def element(tag: str, *parts: object, **attributes: object) -> Html:
    """Return an element.

    Parameters
    ----------
    tag
        Its name.
    *parts
        What is in it; escaped unless :class:`Html`.
    **attributes
        Escaped values. A trailing underscore is dropped (``class_``), others become hyphens; None leaves it out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>" if tag in _VOID else f"<{tag}{written}>{markup(*parts)}</{tag}>")


def table(
    heads: Sequence[object], rows: Iterable[Sequence[object]], *, kind: str = "", caption: str = "", own: int = -1
) -> Html:
    """Return a table in a box that scrolls.

    Parameters
    ----------
    heads, rows
        Cells; a cell may be an element ``td`` or ``th`` itself.
    kind
        CSS classes of the table: ``words`` (left-aligned), ``sortable``, ``searchable``, ``long`` (cut on paper).
    caption
        Above the table.
    own
        Row to set in bold.
    """
    head = element("thead", element("tr", *(h if _is_cell(h) else element("th", h, scope="col") for h in heads)))
    own_class = ' class="own"'
    body = "".join(f"<tr{own_class if i == own else ''}>{''.join(map(_cell, row))}</tr>" for i, row in enumerate(rows))
    above = element("caption", caption) if caption else ""
    inner = element("table", above, head, element("tbody", Html(body)), class_=kind or None)
    box = "scroll tall" if "searchable" in kind else "scroll"
    return element("div", inner, class_=box, tabindex=0, role="region", aria_label=caption or "Table")


def _is_cell(cell: object) -> bool:
    return isinstance(cell, Html) and cell.startswith(("<td", "<th"))


def _cell(cell: object) -> str:
    # by hand: 18,000 genes are a quarter of a million cells
    return str(cell) if _is_cell(cell) else f"<td>{cell if isinstance(cell, Html) else html.escape(str(cell))}</td>"


def picture(png: bytes, alt: str, caption: object = "") -> Html:
    """Return a PNG, held in the page itself, with the text for who cannot see it and a caption."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return element("figure", element("img", src=source, alt=alt), element("figcaption", caption) if caption else "")


def caution(title: str, notes: Sequence[str]) -> Html:
    """Return a box that cannot be missed."""
    listed = element("ul", *(element("li", note) for note in notes)) if notes else ""
    return element("div", element("p", element("strong", title)), listed, class_="caution", role="note")


def section(anchor: str, title: str, *parts: object) -> Html:
    """Return a part of the page under a heading that can be linked to."""
    return element("section", element("h2", title), *parts, id=anchor)


def page(title: str, kicker: str, sections: Sequence[Html], links: Sequence[tuple[str, str]], top: Html) -> str:
    """Return the whole page.

    Parameters
    ----------
    title, kicker
        The heading, and what kind of page this is.
    sections
        The body, from :func:`section`.
    links
        (anchor, words) of what the page holds, shown under `top`.
    top
        What is read first.

    Notes
    -----
    The content security policy forbids every connection, and every script and style but the page's own.
    """
    style, script = ((_ASSETS / name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} – {kicker}"),
        element("style", Html(style)),
    )
    header = element(
        "header",
        element("p", kicker, class_="kicker"),
        element("h1", title),
        element("p", RESEARCH_USE, class_="research"),
        top,
    )
    contents = element("nav", element("ul", *(element("li", element("a", w, href=f"#{a}")) for a, w in links)))
    footer = element("footer", element("p", RESEARCH_USE, class_="note"))
    body = element("body", header, element("main", contents, *sections), footer, element("script", Html(script)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
