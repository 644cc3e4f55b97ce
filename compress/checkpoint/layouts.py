"""Where the weights stand in a checkpoint of somebody else's, and which are taken.

A file may hold one state_dict, bare or under a name, several of them (plain and averaged weights,
a generator and a discriminator), and numbers and objects of every kind beside them. Averaged
("EMA") weights are taken only where there are no others, or where they are asked for.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.checkpoint.plain_values import (
    Opaque,
    PickledName,
    Record,
    TensorRecord,
    UnreadableTensor,
)
from compress.errors import UserInputError

__all__ = ["FoundWeights", "choose_weights", "find_weights", "versions_of"]

logger = logging.getLogger(__name__)

# Names under which the plain weights stand, the likeliest first.
PLAIN = ("state_dict", "model", "net", "model_state_dict", "network", "module", "weights", "params")
AVERAGED = re.compile(r"(^|[._])(ema|swa|shadow|averaged?)($|[._])|average_?model")
OTHER_TENSORS = re.compile(r"(^|_)(optim\w*|\w*sched\w*|scaler|amp|rng\w*|loss\w*)($|[._])")
COUNTERS = ("total_ops", "total_params")  # thop leaves them in the networks that it has counted
MAX_DEPTH = 64
BARE = "(bare)"
TENSORS = (Tensor, TensorRecord, UnreadableTensor)


@dataclass(frozen=True, kw_only=True)
class FoundWeights:
    """One state_dict in a file.

    Attributes:
        name: of its place, such as "state_dict" or "ema.module".
        state: tensors, or what the file says about them, by name.
        versions: `state_dict._metadata`: the versions of the modules by their names.
    """

    name: str
    state: Mapping[str, Any]
    versions: Mapping[str, Any]

    @property
    def averaged(self) -> bool:
        """Whether they are a running average of the plain weights."""
        return AVERAGED.search(self.name) is not None


def find_weights(content: Any, *, modules: bool) -> list[FoundWeights]:
    """Return all state_dicts in the outline of a file, those first that are rather meant.

    Args:
        content: the outline.
        modules: take the weights out of pickled modules, too; their classes are not needed.
    """
    found = [part for whole in _places(content, modules) for part in _split_averages(whole)]
    return sorted(found, key=lambda one: (one.averaged, _rank(one.name), -len(one.state)))


def choose_weights(found: list[FoundWeights], asked: str | None, what: str) -> FoundWeights:
    """Return the weights that are asked for, or the first; say which where there are others.

    Raises:
        UserInputError: the file has none of that name.
    """
    names = ", ".join(one.name for one in found)
    if asked is not None:
        chosen = next((one for one in found if asked == one.name), None)
        if chosen is None:
            raise UserInputError(f"weights {asked!r} are not in {what}; expected one of: {names}")
        return chosen
    chosen = found[0]
    if len(found) > 1:
        others = ", ".join(one.name for one in found[1:])
        logger.warning(
            "note: the weights %s of %s were taken; there are also %s, which --weights chooses",
            chosen.name,
            what,
            others,
        )
    elif chosen.averaged:
        logger.warning("note: %s holds averaged weights alone (%s); taken", what, chosen.name)
    return chosen


def versions_of(state: Any) -> dict[str, dict[str, Any]]:
    """Return the `_metadata` of a state_dict as far as it is what torch writes."""
    if isinstance(state, Record):
        hung = state.attributes.get("_metadata") if isinstance(state.attributes, dict) else None
    else:
        hung = getattr(state, "_metadata", None)
    if not isinstance(hung, Mapping):
        return {}
    return {
        name: {"version": facts["version"]}
        for name, facts in hung.items()
        if isinstance(name, str)
        and isinstance(facts, Mapping)
        and type(facts.get("version")) is int
    }


def _rank(name: str) -> int:
    """Places that are usual for weights come first, then those of any name."""
    first = name.partition(".")[0]
    return PLAIN.index(first) if first in PLAIN else len(PLAIN)


def _places(content: Any, modules: bool) -> Iterator[FoundWeights]:
    """State_dicts at the top and up to two levels below it."""
    pending: list[tuple[str, Any, int]] = [("", content, 0)]
    seen: set[int] = set()
    while pending:
        name, value, depth = pending.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if modules and isinstance(value, Opaque | nn.Module):
            value = value.state_dict() if isinstance(value, nn.Module) else _module_state(value)
        if not isinstance(value, Mapping):
            continue
        state = _tensors(value)
        if state:
            yield FoundWeights(name=name or BARE, state=state, versions=versions_of(value))
        if depth < 2:
            pending += [
                (f"{name}.{key}" if name else key, inner, depth + 1)
                for key, inner in value.items()
                if isinstance(key, str)
                and isinstance(inner, Mapping | Opaque | nn.Module)
                and not OTHER_TENSORS.search(key)
            ]


def _tensors(value: Mapping[Any, Any]) -> "OrderedDict[str, Any]":
    """The tensors of a mapping; empty where it holds mostly other things."""
    state: OrderedDict[str, Any] = OrderedDict()
    for name, entry in value.items():
        entry = _packed(entry)
        if isinstance(name, str) and isinstance(entry, TENSORS):
            state[name] = entry
    nested = any(_holds_tensors(entry) for entry in value.values())
    if nested and not any("." in name for name in state):
        return OrderedDict()  # a mean or a best accuracy beside the weights
    for name in [name for name in state if name.rpartition(".")[2] in COUNTERS]:
        del state[name]
    return state


def _holds_tensors(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return any(isinstance(inner, TENSORS) for inner in entry.values())
    return isinstance(entry, Opaque | nn.Module)


def _packed(entry: Any) -> Any:
    """The weight and bias of a quantised layer stand in one tuple, or in an object of torch's."""
    if isinstance(entry, tuple) and any(isinstance(part, UnreadableTensor) for part in entry):
        return UnreadableTensor("quantised")
    if isinstance(entry, PickledName) and entry.path in ("torch.qint8", "torch.quint8"):
        return UnreadableTensor("quantised")
    return entry


def _split_averages(whole: FoundWeights) -> Iterator[FoundWeights]:
    """Take averaged weights that stand among the plain ones, as `model_ema.…`, apart."""
    groups = {name.partition(".")[0] for name in whole.state if "." in name}
    averaged = sorted(group for group in groups if AVERAGED.search(group))
    if len(averaged) < len(groups):
        for group in averaged:
            yield _part(whole, group, [n for n in whole.state if n.startswith(f"{group}.")])
        names = [n for n in whole.state if n.partition(".")[0] not in averaged]
        yield _part(whole, "", names)
    else:
        yield whole


def _part(whole: FoundWeights, group: str, names: list[str]) -> FoundWeights:
    if not group:
        return FoundWeights(
            name=whole.name, state={n: whole.state[n] for n in names}, versions=whole.versions
        )
    start = len(group) + 1
    versions = {
        n[start:]: facts for n, facts in whole.versions.items() if n.startswith(f"{group}.")
    }
    state = {n[start:]: whole.state[n] for n in names}
    name = group if whole.name == BARE else f"{whole.name}.{group}"
    return FoundWeights(name=name, state=state, versions=versions)


def _module_state(module: Opaque) -> Record:
    """What `state_dict()` of a pickled module would give, from the attributes that it had."""
    state = Record()
    pending: list[tuple[str, Any, int]] = [("", module, 0)]
    seen: set[int] = set()
    while pending:
        prefix, part, depth = pending.pop()
        attributes = part.state if isinstance(part, Opaque) else None
        if not isinstance(attributes, dict) or id(part) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(part))
        skipped = attributes.get("_non_persistent_buffers_set")
        skipped = skipped if isinstance(skipped, list) else []
        for kind in ("_parameters", "_buffers"):
            for name, entry in _entries(attributes, kind):
                if name not in skipped:
                    state[prefix + name] = entry
        children = list(_entries(attributes, "_modules"))
        pending += [(f"{prefix}{n}.", child, depth + 1) for n, child in reversed(children)]
    return state


def _entries(attributes: Mapping[Any, Any], kind: str) -> Iterator[tuple[str, Any]]:
    entries = attributes.get(kind)
    if isinstance(entries, dict):
        yield from ((n, e) for n, e in entries.items() if isinstance(n, str) and e is not None)
