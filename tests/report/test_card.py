"""The model card: the same tables as the page, in Markdown that shows names as they are."""

import json
import re

import pytest

from compress.report.card import _escaped, render_card
from compress.report.collect import collect
from tests.report.small_run import SLIM_ROWS, write_run


def test_the_card_holds_the_tables_of_the_run(tmp_path):
    card = render_card([collect(write_run(tmp_path))]).replace("\u00a0", " ")
    assert card.startswith("# small\n")
    assert "| slim 0.5 | 45.0% | 40.0 k (−80.0%) | 2.00 M (−75.0%) | 60.25% | 94.50% (" in card
    assert "| dynn | 400 | 399 | 99.75% | 96.50% | 201 · 149 · 50 |" in card
    assert "| cpu | Abacus 9 |" in card
    assert "- In the chain thin, slim 0.5 is right for 94.50%" in card
    assert "<svg" not in card


def test_every_row_of_a_table_has_its_cells(tmp_path):
    blocks = render_card([collect(write_run(tmp_path))]).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) >= 8
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_names_are_escaped(tmp_path):
    name = "a|b](x) <i>*c*_d_`e`"
    rows = {"rows": [SLIM_ROWS[0], {**SLIM_ROWS[1], "network": name}]}
    card = render_card(
        [collect(write_run(tmp_path, **{"thin/compare/table.json": json.dumps(rows)}))]
    )
    assert r"a\|b\](x) \<i\>\*c\*\_d\_\`e\`" in card
    assert "<i>" not in card


HOSTILE = [
    "a\n# heading",
    "a\r\n\r\n<b>html</b>",
    "# heading",
    "- item",
    "+ item",
    "12. item",
    "7) item",
    "===",
    "---",
    "- - -",
    "a | b | c",
    "[a](http://x)",
    "![a](x)",
    "see https://x.org or www.x.org, or write to a@x.org",
    "<https://x.org>",
    "&lt;i&gt;",
    "a\x1b[2J\u2028b\x0bc",
    "```\ncode",
    "    code",
    "> quote",
    "~~~",
    "$x$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_stranger_is_text_wherever_it_stands(text):
    """Read by a parser of Markdown where there is one, else by the rules of CommonMark and GFM."""
    shown = _escaped(text)
    assert shown.isprintable()
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", shown)  # without what is escaped
    assert not re.search(r"[<>\[\]`*_|~#&$@]|://|www\.", bare)
    assert not re.match(r"\s|[-+](\s|$)|\d+[.)](\s|$)|[-=\s]+$", shown)
    words = re.findall(r"\w+", text)
    assert re.findall(r"\w+", shown.replace("\\", "")) == words


def test_numbers_stay_as_they_are():
    for text in ("94.50% (+0.5)", "-3.2", "201 · 149 · 50", "1.5 ms: fast", "40.0\u00a0k"):
        assert _escaped(text) == text


def test_the_same_facts_give_the_same_card(tmp_path):
    first = render_card([collect(write_run(tmp_path / "a"))])
    assert render_card([collect(write_run(tmp_path / "b"))]) == first
