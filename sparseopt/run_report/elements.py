"""HTML from Python: elements that escape what they are given, tables, figures, and the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree import ElementTree

from .style import STYLE

__all__ = ["Node", "figure", "note", "page", "section", "table", "tag"]

Node: TypeAlias = "ElementTree.Element | str | None"


def tag(kind: str, /, *children: Node, **attributes: str | float) -> ElementTree.Element:
    """An element; ``_`` in the name of an attribute stands for ``-``, one at its end for nothing.

    Children that are None are left out.

    >>> ElementTree.tostring(tag("b", "1 < 2", class_="loud"), encoding="unicode")
    '<b class="loud">1 &lt; 2</b>'
    """
    named = {key.rstrip("_").replace("_", "-"): written(v) for key, v in attributes.items()}
    made = ElementTree.Element(kind, named)
    for child in children:
        if isinstance(child, ElementTree.Element):
            made.append(child)
        elif child is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + child
        elif child is not None:
            made.text = (made.text or "") + child
    return made


def written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def note(text: str) -> ElementTree.Element:
    """A sentence on what is not known, or left out."""
    return tag("p", text, class_="note")


def section(title: str, *children: Node) -> ElementTree.Element:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *children)


def figure(title: str, *children: Node) -> ElementTree.Element:
    """A titled picture with what belongs to it."""
    return tag("figure", tag("figcaption", title), *children)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1
) -> ElementTree.Element:
    """A table that scrolls sideways where the screen is narrow.

    Args:
        head: Titles of the columns; none for a table of names and values.
        rows: The cells of every row; the first names the row.
        numbers_from: Columns from this one on are set as numbers.
    """

    def kind(column: int) -> dict[str, str]:
        return {"class": "number"} if column >= numbers_from else {}

    body = [
        tag("tr", tag("th", row[0], scope="row", **kind(0)),
            *(tag("td", cell, **kind(column)) for column, cell in enumerate(row[1:], 1)))
        for row in rows
    ]  # fmt: skip
    titles = [tag("th", title, scope="col", **kind(column)) for column, title in enumerate(head)]
    top = tag("thead", tag("tr", *titles)) if titles else None
    return tag("div", tag("table", top, tag("tbody", *body)), class_="scroll", tabindex="0")


def page(title: str, *children: Node) -> str:
    """A whole document that asks for nothing outside itself; its policy forbids it, too."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", STYLE),
    )
    whole = tag("html", head, tag("body", tag("main", *children)), lang="en")
    text = ElementTree.tostring(whole, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"
