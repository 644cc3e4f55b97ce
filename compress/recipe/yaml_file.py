"""Read YAML that a stranger may have written: bounded before anything is built of it.

A recipe is a small tree of mappings, lists, strings, numbers and truth values. Size, depth, and
what aliases would come to when written out are counted on the events of the parser, which builds
nothing; so neither a billion laughs nor an alias to itself costs anything. Dates stay strings.
"""

import math
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from compress.errors import UserInputError
from compress.files import check_readable

__all__ = ["parse_yaml", "read_yaml"]

LARGEST_FILE = 1 << 20  # bytes
LARGEST_TREE = 100_000  # nodes, aliases written out
DEEPEST = 32
MOST_ALIASES = 100
LARGEST_INT = 2**63
TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)


class _Loader(yaml.SafeLoader):
    """Builds what JSON can hold; keys are strings that stand once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # else told below
        keys = [self.construct_object(key, deep=True) for key, _ in pairs if not _merges(key)]
        for number, key in enumerate(keys):
            if not isinstance(key, str):
                raise _RefusedError(f"{key!r:.60} is a key; expected text, perhaps in quotes")
            if key in keys[:number]:
                raise _RefusedError(f"the key {key!r:.60} stands twice")
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        number = super().construct_yaml_int(node)
        if not -LARGEST_INT <= number < LARGEST_INT:
            raise _RefusedError("a whole number has more than 64 bits")
        return number

    def construct_yaml_float(self, node: Any) -> float:
        number = super().construct_yaml_float(node)
        if not math.isfinite(number):
            raise _RefusedError(f"{node.value:.60} is no finite number")
        return number

    def construct_yaml_str(self, node: Any) -> str:
        text = self.construct_scalar(node)
        if any((ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) < 0xE000 for c in text):
            raise _RefusedError(f"{text!a:.60} holds a control character")
        return str(text)


_Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in ("int", "float", "str"):
    _Loader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"construct_yaml_{_kind}")
    )


class _RefusedError(Exception):
    """Why a file is not taken."""


def read_yaml(path: Path, what: str) -> Any:
    """Return the content of a YAML file.

    Args:
        path: of the file, at most 1 MiB.
        what: it is, for messages.

    Raises:
        UserInputError: it is missing, larger, not YAML, or holds what a recipe cannot hold.
    """
    with open(check_readable(path, what), "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserInputError(f"{what} {path} is larger than 1 MiB; expected a file written by hand")
    return _parsed(content, f"{what} {path}")


def parse_yaml(text: str, what: str) -> Any:
    """Return the value of a YAML text; `what` names it in messages.

    Raises:
        UserInputError: see `read_yaml`.
    """
    return _parsed(text, what)


def _parsed(content: str | bytes, what: str) -> Any:
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.load(text, Loader=_Loader)
    except _RefusedError as err:
        raise UserInputError(f"{what}: {err}") from err
    except (yaml.YAMLError, UnicodeError) as err:
        raise UserInputError(f"{what} is not YAML: {' '.join(str(err).split())[:400]}") from err
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as err:
        # a scalar that is not what its tag or its form says, such as !!int abc
        reason = " ".join(str(err).split())[:200]
        raise UserInputError(f"{what} holds a value that cannot be read: {reason}") from err


def _check_events(events: Iterator[Any]) -> None:
    """Count nodes, depth and aliases.

    Raises:
        _RefusedError: there are too many, or an alias stands inside what it names.
    """
    open_nodes: list[list[Any]] = [[None, 0, 0]]  # anchor, nodes and depth of what stands in it
    known: dict[str, tuple[int, int]] = {}
    aliases = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            _check_tag(event)
            if event.anchor is not None:
                known.pop(event.anchor, None)
            open_nodes.append([event.anchor, 1, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes, depth = open_nodes.pop()
            if anchor is not None:
                known[anchor] = (nodes, depth)
            _add(open_nodes, nodes, depth)
        elif isinstance(event, yaml.ScalarEvent):
            _check_tag(event)
            if event.anchor is not None:
                known[event.anchor] = (1, 0)
            _add(open_nodes, 1, 0)
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if any(anchor == event.anchor for anchor, _, _ in open_nodes):
                raise _RefusedError(f"the alias *{event.anchor:.60} stands inside what it names")
            _add(open_nodes, *known.get(str(event.anchor), (1, 0)))
        if len(open_nodes) > DEEPEST + 1 or open_nodes[-1][2] > DEEPEST:
            raise _RefusedError(f"it is nested more than {DEEPEST} deep")
        if aliases > MOST_ALIASES or open_nodes[-1][1] > LARGEST_TREE:
            raise _RefusedError(
                f"it has more than {MOST_ALIASES} aliases, or comes to more than {LARGEST_TREE:,} "
                "values when they are written out"
            )


def _add(open_nodes: list[list[Any]], nodes: int, depth: int) -> None:
    inner = open_nodes[-1]
    inner[1] += nodes
    inner[2] = max(inner[2], depth + 1)


def _check_tag(event: Any) -> None:
    if event.tag is not None and event.tag not in TAGS and event.tag != "!":
        raise _RefusedError(
            f"the tag {event.tag!r:.60} is not known; expected plain text, numbers, lists and "
            "mappings"
        )


def _merges(key: Any) -> bool:
    return bool(key.tag == "tag:yaml.org,2002:merge")
