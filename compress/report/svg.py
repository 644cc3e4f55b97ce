"""SVG elements as text: everything that comes from a file is escaped by the XML library.

Colours are left to the page, by class, so that one drawing serves light and dark. Every mark that
stands for a value carries it unrounded in a `data-` attribute.
"""

import json
from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

__all__ = ["add", "data_number", "drawing", "svg_text"]


def drawing(width: float, height: float, title: str) -> Element:
    """Return an empty drawing that a screen reader calls by its title."""
    box = f"0 0 {_place(width)} {_place(height)}"
    attributes = {"viewBox": box, "role": "img", "aria-label": title, "class": "chart"}
    return Element("svg", attributes)


def add(
    parent: Element,
    tag: str,
    /,
    *,
    words: str = "",
    tip: str = "",
    data: Iterable[tuple[str, str]] = (),
    **attributes: float | str,
) -> Element:
    """Add an element.

    Args:
        parent: to add it to.
        tag: of SVG.
        words: its text.
        tip: shown when a pointer rests on it.
        data: `data-` attributes, by their names without that.
        attributes: numbers are places and lengths; `class_` is class, `text_anchor` text-anchor.
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    written = {
        name: value if isinstance(value, str) else _place(value) for name, value in named.items()
    }
    element = SubElement(parent, tag, written | {f"data-{name}": value for name, value in data})
    if tip:
        SubElement(element, "title").text = tip
    elif words:
        element.text = words
    return element


def data_number(value: float) -> str:
    """Return a number as JSON writes it."""
    return json.dumps(value)


def svg_text(root: Element) -> str:
    """Return a drawing as text that can stand inside HTML."""
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _place(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
