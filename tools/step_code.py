"""Tell which kinds of step a change of the code concerns, and confirm it.

    python -m tools.step_code             what changed since it was confirmed
    python -m tools.step_code --confirm   take the code as it is

A finished step is not made again while `STEP_VERSIONS` (`compress/recipe/plan.py`) says the same
number for its kind. So whoever changes what a step computes raises the number; whoever changes the
code and not the result confirms that. Either way `tests/recipe/step_code.json` changes, without
which a test fails.

What counts is what the work function of a kind reaches: definitions are followed by the names that
they use, through the imports. Comments, docstrings, annotations, messages of errors and of the log
do not count, nor do the modules that write, plan and tell but decide no result.
"""

import ast
import functools
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from compress.files import write_json
from compress.recipe.plan import STEP_VERSIONS
from compress.recipe.tasks import WORK

__all__ = ["CONFIRMED", "confirmed", "current", "reached", "told_changes"]

ROOT = Path(__file__).parent.parent
CONFIRMED = ROOT / "tests" / "recipe" / "step_code.json"
WITHOUT_EFFECT = frozenset(
    "compress." + name
    for name in (
        *("errors", "files", "optional", "cli", "measure.versions", "progress"),
        *("recipe.engine", "recipe.plan", "recipe.schema"),  # their part is in the options
    )
)
ALWAYS = ("compress.data.spec", "load_data")
MOST_NAMED = 12  # modules that a message lists
LOGGERS = frozenset({"logger", "log", "warnings", "bar"})
NO_FIELDS = frozenset({"annotation", "returns", "type_comment", "type_params", "kind", "ctx"})


class Definition(NamedTuple):
    """Something that stands in a module under a name; "" for statements without one."""

    module: str
    name: str


class Module(NamedTuple):
    """A parsed module: what stands in it by name, and what its imported names mean."""

    nodes: dict[str, list[ast.stmt]]
    imports: dict[str, Definition]


def current() -> dict[str, Any]:
    """Return version and digest of every kind, and a digest of every module by what is reached."""
    kinds, union = {}, set()
    for kind, work in WORK.items():
        found = reached([Definition(work.__module__, work.__name__), Definition(*ALWAYS)])
        union |= found
        kinds[kind] = {"version": STEP_VERSIONS[kind], "code": _digest(found)}
    by_module: dict[str, set[Definition]] = defaultdict(set)
    for each in union:
        by_module[each.module].add(each)
    return {
        "kinds": kinds,
        "modules": {name: _digest(by_module[name]) for name in sorted(by_module)},
    }


def confirmed() -> dict[str, Any]:
    """Return what was confirmed last, as `current` gives it."""
    found: dict[str, Any] = json.loads(CONFIRMED.read_text(encoding="utf-8"))
    return found


def told_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for every kind whose code is not what was confirmed."""
    modules = sorted(
        name
        for name in before["modules"] | now["modules"]
        if before["modules"].get(name) != now["modules"].get(name)
    )
    lines = []
    for kind, found in now["kinds"].items():
        was = before["kinds"].get(kind, {"version": None, "code": None})
        if found != was:
            version = f"version {was['version']} -> {found['version']}"
            if found["version"] == was["version"]:
                version = f"version {found['version']} still"
            lines.append(f"{kind}: {version}")
    more = f" and {len(modules) - MOST_NAMED} more" if len(modules) > MOST_NAMED else ""
    return [*lines, f"in {', '.join(modules[:MOST_NAMED])}{more}"] if lines else []


def reached(start: Iterable[Definition]) -> set[Definition]:
    """Return all definitions of the package that some use, themselves included."""
    found: set[Definition] = set()
    waiting = list(start)
    while waiting:
        each = waiting.pop()
        if each in found or each.module in WITHOUT_EFFECT:
            continue
        module = _module(each.module)
        if each.name in module.nodes:
            found.add(each)
            waiting += _used_by(each)
        elif each.name in module.imports:  # a name that is handed on
            waiting.append(module.imports[each.name])
    return found


@functools.cache
def _used_by(each: Definition) -> tuple[Definition, ...]:
    module = _module(each.module)
    used = {used for node in module.nodes[each.name] for used in _used(node, module, each.module)}
    return (*used, Definition(each.module, ""))


def _used(node: ast.AST, module: Module, name: str) -> Iterator[Definition]:
    imports = {**module.imports, **_imports_in(node)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
            place = imports.get(inner.value.id)
            if place is not None and not place.name:
                yield Definition(place.module, inner.attr)
        elif isinstance(inner, ast.Name):
            yield imports.get(inner.id, Definition(name, inner.id))


@functools.cache
def _module(name: str) -> Module:
    path = _path(name)
    nodes: dict[str, list[ast.stmt]] = {"": []}
    if path is None:
        return Module(nodes, {})
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _flat(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for each in _names(node):
            nodes.setdefault(each, []).append(node)
    return Module(nodes, _imports_in(ast.Module(list(_flat(tree.body)), []), top=True))


def _path(module: str) -> Path | None:
    base = ROOT / Path(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _flat([*node.body, *node.orelse])
        else:
            yield node


def _names(node: ast.stmt) -> list[str]:
    """Under which names a statement of a module counts."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    found = [each.id for target in targets for each in ast.walk(target or ast.Pass())
             if isinstance(each, ast.Name)]  # fmt: skip
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and found:
        return [] if found == ["__all__"] else found
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return [] if is_docstring else [""]


def _imports_in(node: ast.AST, *, top: bool = False) -> dict[str, Definition]:
    found: dict[str, Definition] = {}
    for inner in ast.iter_child_nodes(node) if top else ast.walk(node):
        if isinstance(inner, ast.Import):
            for alias in inner.names:
                if alias.asname and alias.name.startswith("compress"):
                    found[alias.asname] = Definition(alias.name, "")
        elif isinstance(inner, ast.ImportFrom) and str(inner.module).startswith("compress"):
            for alias in inner.names:
                inside = f"{inner.module}.{alias.name}"
                is_module = _path(inside) is not None
                found[alias.asname or alias.name] = (
                    Definition(inside, "")
                    if is_module
                    else Definition(str(inner.module), alias.name)
                )
    return found


def _digest(definitions: Iterable[Definition]) -> str:
    digest = hashlib.sha256()
    for each in sorted(definitions):
        digest.update(f"{each.module}:{each.name} {_digest_of(each)}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _digest_of(each: Definition) -> str:
    nodes = _module(each.module).nodes[each.name]
    return hashlib.sha256("\n".join(map(_plain, nodes)).encode()).hexdigest()


def _plain(node: Any) -> str:
    """Write a node without what decides no result, the same in every version of Python."""
    if isinstance(node, list):
        return f"[{','.join(_plain(each) for each in node if not _is_silent(each))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise):
        call = node.exc
        return f"Raise({_plain(call.func if isinstance(call, ast.Call) else call)})"
    fields = [
        f"{name}={_plain(value)}"
        for name, value in ast.iter_fields(node)
        if name not in NO_FIELDS and value not in (None, [])
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def _is_silent(node: Any) -> bool:
    """Whether a statement is a docstring, or tells the log something."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    call = node.value
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in LOGGERS
    )


def main() -> None:
    """Print what changed; confirm it where that is asked for."""
    before = confirmed() if CONFIRMED.exists() else {"kinds": {}, "modules": {}}
    now = current()
    lines = told_changes(before, now)
    print("\n".join(lines) or "nothing changed")
    if "--confirm" in sys.argv[1:]:
        write_json(CONFIRMED, now)


if __name__ == "__main__":
    main()
