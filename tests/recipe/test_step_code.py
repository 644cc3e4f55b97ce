"""A step's version number and its code change together, or the change is confirmed."""

import ast

import pytest

from compress.recipe.plan import STEP_VERSIONS
from compress.recipe.tasks import WORK
from tools import step_code
from tools.step_code import Definition, confirmed, current, reached, told_changes

CODE = '''
def step(x: int) -> int:
    """Words."""
    # why
    if x < 0:
        raise ValueError(f"{x} is below 0")
    logger.info("at %d", x)
    return x + 1
'''


@pytest.fixture(scope="module")
def now():
    return current()


def test_every_change_of_a_steps_code_was_confirmed(now):
    """Where this fails: raise STEP_VERSIONS of the kinds whose results are others now, and run

    python -m tools.step_code --confirm
    """
    assert told_changes(confirmed(), now) == []
    assert confirmed() == now


def test_every_kind_has_a_version_and_a_work(now):
    assert list(now["kinds"]) == list(WORK) == list(STEP_VERSIONS)


def digest(code: str) -> str:
    return step_code._plain(ast.parse(code).body)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Words.", "Other words."),
        ("# why", "# therefore"),
        ("is below 0", "must not be negative"),
        ("at %d", "now at %d"),
        ("x: int", "x: float"),
    ],
)
def test_words_do_not_count(old, new):
    assert old in CODE
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("x + 1", "x + 2"), ("x < 0", "x <= 0"), ("ValueError", "TypeError"), ("def step", "def go")],
)
def test_what_runs_counts(old, new):
    assert digest(CODE.replace(old, new)) != digest(CODE)


def test_what_a_step_uses_is_followed_through_the_imports_and_no_further():
    modules = {
        kind: {each.module for each in reached([Definition(work.__module__, work.__name__)])}
        for kind, work in WORK.items()
    }
    assert {"compress.training.loop", "compress.models.vgg"} <= modules["train"]
    assert {"compress.slimming.traced_surgery", "compress.checkpoint.reading"} <= modules["slim"]
    assert "compress.training.loop" not in modules["slim"]
    assert not any(name.startswith("compress.report") for name in modules["train"])
    assert "compress.report.page" in modules["report"]


def test_a_raised_version_is_told_and_so_is_one_that_was_not(now):
    was = {"modules": {**now["modules"], "compress.slimming.slim": "another"}, "kinds": {}}
    was["kinds"] = {
        **now["kinds"],
        "slim": {"version": now["kinds"]["slim"]["version"], "code": ""},
    }
    version = STEP_VERSIONS["slim"]
    assert told_changes(was, now) == [f"slim: version {version} still", "in compress.slimming.slim"]
    was["kinds"]["slim"]["version"] = 0
    assert told_changes(was, now)[0] == f"slim: version 0 -> {version}"
