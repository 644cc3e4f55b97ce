"""What a stranger writes into a recipe: one sentence each, at once, and no traceback."""

import contextlib
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import CompressError, UserInputError
from compress.recipe.yaml_file import parse_yaml, read_yaml
from compress.run import main

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
HOSTILE = {
    "int": ("name: !!int abc", "holds a value that cannot be read"),
    "empty int": ("name: !!int ''", "holds a value that cannot be read"),
    "bool": ("name: !!bool maybe", "holds a value that cannot be read"),
    "float": ("name: !!float x", "holds a value that cannot be read"),
    "timestamp": ("name: !!timestamp x", "is not known; expected plain text"),
    "object": ("name: !!python/object/apply:os.system [ls]", "is not known; expected plain text"),
    "binary": ("name: !!binary abc", "is not known; expected plain text"),
    "map of text": ("!!map abc", "is not YAML"),
    "long number": ("seed: " + "9" * 5000, "holds a value that cannot be read"),
    "large number": ("seed: " + "9" * 400, "more than 64 bits"),
    "nan": ("seed: .nan", "is no finite number"),
    "infinite": ("seed: -.inf", "is no finite number"),
    "too large for a float": ("seed: 1.0e+999", "is no finite number"),
    "deep": ("[" * 1000, "nested more than 32 deep"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(40)), "nested more than 32 deep"),
    "recursive": ("steps: &a [*a]", "stands inside what it names"),
    "recursive key": ("&a {b: *a}", "stands inside what it names"),
    "billion laughs": (LAUGHS, "aliases"),
    "many aliases": ("a: &a x\nb: [" + "*a, " * 200 + "]", "more than 100 aliases"),
    "deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40)),
        "nested more than 32 deep",
    ),
    "unknown alias": ("a: *b", "is not YAML"),
    "key twice": ("name: a\nname: b", "the key 'name' stands twice"),
    "number as key": ("1: a", "1 is a key; expected text"),
    "list as key": ("? [a]\n: b", "is a key; expected text"),
    "NUL": ('data: "folder:a\\0b"', "control character"),
    "half a pair": ('name: "\\ud800"', "control character"),
    "no character": ('name: "\\UFFFFFFFF"', "cannot be read"),
    "two documents": ("--- a\n--- b", "is not YAML"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(UserInputError) as told:
        read_yaml(path, "recipe")
    assert time.monotonic() - began < 5
    assert message in str(told.value)
    assert str(told.value).startswith(f"recipe {path}")
    assert len(str(told.value)) < 700
    assert "\n" not in str(told.value)


def test_a_large_file_is_not_read_and_bytes_are_told(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"#" * (1 << 20))
    assert read_yaml(path, "recipe") is None
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(UserInputError, match="larger than 1 MiB"):
        read_yaml(path, "recipe")
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserInputError, match="is not YAML"):
        read_yaml(path, "recipe")


def test_what_people_write_is_read_as_ever():
    text = """
    base: &base {lr: 0.1, epochs: 3}
    tuned: {<<: *base, epochs: 5}
    when: 2023-99-99
    day: 2023-01-01
    "1": [yes, no, null, ~, 1e-3, 1.0e-3, 0x10, -5]
    text: |
      two
      lines
    """
    found = parse_yaml(text, "text")
    assert found["tuned"] == {"lr": 0.1, "epochs": 5}
    assert (found["when"], found["day"]) == ("2023-99-99", "2023-01-01")
    assert found["1"] == [True, False, None, None, "1e-3", 0.001, 16, -5]
    assert found["text"] == "two\nlines\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF, exclude_categories=["Cc"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner),
    max_leaves=10,
)  # fmt: skip


@given(VALUES)
def test_what_is_plain_comes_back(value):
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "text") == value


PIECES = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "!!int ", "!!bool ",
     "!!float ", "!!set ", "!!timestamp ", "<<: ", "? ", "| ", "> ", "'", '"', "\\", "1", "0x",
     "1:2", "2023-99-99", ".nan", "9" * 5000, "%YAML 9.9\n", "---\n", "\0", "\t", "é", "~"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join))
def test_anything_is_read_or_told(text):
    with contextlib.suppress(CompressError):
        parse_yaml(text, "text")


SET = ["abc", "!!int abc", "!!float x", "2023-99-99", "9" * 5000, "[" * 99, "&a [*a]", ".inf",
       "{a: {b: 1}}", "!!set {a}", "'\\0'", "-1", "1.5", "", "null",
       "99999999999999999999"]  # fmt: skip


@pytest.mark.parametrize(
    "option",
    ["seed", "name", "data", "image_size", "steps", "chains", "train.epochs", "train.lr",
     "train.augment", "train.model", "train.model.widths", "train.milestones", "compare.seconds"],
)  # fmt: skip
def test_overrides_are_read_or_told(option, capsys):
    """Nothing that stands behind `--set` ends in a traceback."""
    for value in SET:
        code = main(["validate", "vgg16_cifar100_slim", "--set", f"{option}={value}"])
        out = capsys.readouterr().out
        assert code in (0, 3), (value, out)
        assert len(out.splitlines()) == 1, value
