"""What goes to a device runs on Python 3.8, which JetPack 5.1 has: read by rules, and started."""

import ast
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.export.triton_bundles import THRESHOLDS, early_exit, images_with, write_bundle

ROOT = Path(__file__).parent.parent
DOORS = ("build_engines", "dispatch", "measure_device", "monitor")
GROUND = ("__init__", "errors", "files", "cli", "optional", "device_options")
FILES = sorted(
    [
        *(ROOT / "compress" / "runtime").rglob("*.py"),
        *(ROOT / "compress" / f"{name}.py" for name in (*DOORS, *GROUND)),
    ]
)
BUILTIN = {"list", "dict", "tuple", "set", "frozenset", "type", "deque", "Future", "defaultdict"}
NEWER = {"removeprefix", "removesuffix", "pairwise", "bit_count", "lcm", "is_relative_to", "cache"}
NEWER_KEYWORDS = {("zip", "strict"), ("dataclass", "kw_only"), ("dataclass", "slots")}


def newer_than_38(source: str) -> list[str]:
    """What of a module Python 3.8 would fail at when it is imported or when it comes to run."""
    tree = ast.parse(source, feature_version=(3, 8))
    is_lazy = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(name.name == "annotations" for name in node.names)
        for node in tree.body
    )
    abstract = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "collections.abc"
        for name in node.names
    }
    faults = [] if is_lazy else [_evaluated(each, abstract) for each in _annotations(tree)]
    faults += [_called(node) for node in ast.walk(tree)]
    return [fault for fault in faults if fault]


def _annotations(tree):
    """Those that are evaluated: of functions, and of names outside of functions."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns:
            yield node.returns
        elif isinstance(node, ast.AnnAssign) and id(node) not in inside:
            yield node.annotation


def _evaluated(annotation, abstract):
    for node in ast.walk(annotation):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return f"line {node.lineno}: a union by |"
        name = getattr(node.value, "id", "") if isinstance(node, ast.Subscript) else ""
        if name in BUILTIN | abstract:
            return f"line {node.lineno}: {name}[...]"
    return ""


def _called(node):
    if isinstance(node, ast.Attribute) and node.attr in NEWER:
        return f"line {node.lineno}: .{node.attr}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        for keyword in node.keywords:
            if (node.func.id, keyword.arg) in NEWER_KEYWORDS:
                return f"line {node.lineno}: {node.func.id}({keyword.arg}=)"
    return ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_newer_than_python_38(file):
    assert newer_than_38(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f() -> int | None: ...",
        "def f(x: list[int]): ...",
        "x: dict[str, int] = {}",
        "from collections.abc import Iterator\ndef f(x: Iterator[int]): ...",
        "class A:\n    x: int | None = None",
        "zip(a, b, strict=True)",
        "@dataclass(kw_only=True)\nclass A: ...",
        "'a'.removeprefix('b')",
    ],
)
def test_the_rules_find_what_is_newer(source):
    assert len(newer_than_38(source)) == 1


def test_what_python_38_takes_is_let_through():
    source = "def f(x: 'int | None'):\n    y: list[int] = []\n    return a | b\n"
    assert newer_than_38(source) == []
    assert newer_than_38("from __future__ import annotations\nx: int | None = 1") == []
    with pytest.raises(SyntaxError):
        newer_than_38("match x:\n    case 1: ...")


def old_python() -> str | None:
    """A Python 3.8 that starts: a shim of pyenv may be there without one behind it."""
    known = sorted(map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python")))
    for found in (*known, shutil.which("python3.8")):
        if found is not None:
            done = subprocess.run([found, "-c", ""], capture_output=True, check=False)
            if done.returncode == 0:
                return found
    return None


@pytest.mark.slow
def test_doors_and_dispatcher_run_on_a_real_python_38(tmp_path):
    python = old_python()
    if python is None:
        pytest.skip("there is no Python 3.8 here; install one, such as with pyenv install 3.8")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--target", tmp_path / "site", "numpy", "onnxruntime"], check=True)

    def run(*arguments):
        done = subprocess.run(
            [python, *arguments],
            cwd=ROOT,
            env={"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for door in DOORS:
        assert "usage" in run("-m", f"compress.{door}", "-h")
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]
    run("-c", f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")
    write_bundle(tmp_path / "tiny.bundle")
    images = images_with([[0, 0], [1, 0], [0, 1], [np.nan, 0.25]])
    np.save(tmp_path / "images.npy", images)
    out = run(
        "-m", "compress.dispatch", tmp_path / "tiny.bundle", tmp_path / "images.npy", "--json"
    )
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["exit"] for each in found[:-1]] == early_exit(images, THRESHOLDS)[1][:, 0].tolist()
