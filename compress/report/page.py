"""The page: everything in one HTML file, without scripts and without a request."""

import functools
from collections.abc import Sequence
from typing import Any

from compress.optional import require
from compress.report.document import document_of
from compress.report.facts import RunFacts

__all__ = ["render_html"]

TEMPLATE = "report.html.j2"
# What the page may do, should something slip through escaping: show its own styles and pictures.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_html(runs: Sequence[RunFacts]) -> str:
    """Return the page about runs; the same facts give the same text.

    Args:
        runs: at least one; several are compared with the first.
    """
    text: str = _template().render(page=document_of(runs), policy=POLICY)
    return text


@functools.cache
def _template() -> Any:
    jinja2 = require("jinja2", "writing the report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compress.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE)
