"""The model card: the same tables as the page, in Markdown that shows names as they are."""

import json

from compress.report.card import render_card
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


def test_the_same_facts_give_the_same_card(tmp_path):
    first = render_card([collect(write_run(tmp_path / "a"))])
    assert render_card([collect(write_run(tmp_path / "b"))]) == first
