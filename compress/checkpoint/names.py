"""Names of tensors that wrappers have put something before: what they were without it.

`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.`, `net.` or any other name of an
attribute in a Lightning module, and `features.module.…`, where DataParallel wraps a part. The same
words may belong to the network itself, so nothing is taken off blindly: `readings` gives every
reading, the names as they stand first, and the caller takes the one that fits.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Named", "closest", "note_left_out", "readings"]

logger = logging.getLogger(__name__)

WRAPPERS = ("module", "_orig_mod")
# Attributes whose name alone tells that they hold the network, whatever else stands beside them.
NETWORKS = ("module", "_orig_mod", "model", "net", "network", "backbone", "student")
COUNTS = "num_batches_tracked"  # that BatchNorm has it or not decides nothing
MAX_PREFIXES = 8


@dataclass(frozen=True, kw_only=True)
class Named:
    """One reading of the names.

    Attributes:
        state: tensors by name; `_metadata` as torch has it.
        left_out: names that do not belong to the network in this reading.
    """

    state: "OrderedDict[str, Tensor]"
    left_out: tuple[str, ...] = ()


def readings(state: Mapping[str, Tensor], versions: Mapping[str, object]) -> Iterator[Named]:
    """Give the state_dict as it stands, then without the prefixes that its names may have.

    Prefixes that all names share are taken off one by one; then those of a network that has
    something else beside it, such as a loss. Each also without wrappers inside of the names.
    """
    prefix = ""
    for _ in range(MAX_PREFIXES):
        yield from _with_and_without_wrappers(state, versions, prefix)
        common = {name[len(prefix) :].partition(".")[0] for name in state}
        word = common.pop() if len(common) == 1 else ""
        if not word or any(name == prefix + word for name in state):
            break
        prefix += f"{word}."
    for word in NETWORKS:
        if any(name.startswith(f"{prefix}{word}.") for name in state):
            yield from _with_and_without_wrappers(state, versions, f"{prefix}{word}.")


def closest(found: Iterator[Named], own: Collection[str], what: str) -> "OrderedDict[str, Tensor]":
    """Return the reading whose names are those that a network has itself, as nearly as possible.

    Args:
        found: readings; of equally near ones the first is taken.
        own: names in the state_dict of the network.
        what: names the file in the note on tensors that are left out.
    """
    wanted = {name for name in own if not name.endswith(COUNTS)}

    def distance(named: Named) -> tuple[int, int]:
        names = {name for name in named.state if not name.endswith(COUNTS)}
        return len(wanted - names), len(names - wanted)

    best = min(found, key=distance)
    note_left_out(best, what)
    return best.state


def note_left_out(named: Named, what: str) -> None:
    """Say which tensors of a file are not taken."""
    if named.left_out:
        logger.warning(
            "note: %d tensors of %s do not belong to the network and are left out, such as %s",
            len(named.left_out),
            what,
            ", ".join(named.left_out[:3]),
        )


def _with_and_without_wrappers(
    state: Mapping[str, Tensor], versions: Mapping[str, object], prefix: str
) -> Iterator[Named]:
    kept = [name for name in state if name.startswith(prefix)]
    left = tuple(name for name in state if not name.startswith(prefix))
    inner = any(part in WRAPPERS for name in kept for part in name[len(prefix) :].split("."))
    for unwrap in (False, True) if inner else (False,):
        renamed = OrderedDict((_rename(name, prefix, unwrap), state[name]) for name in kept)
        if len(renamed) == len(kept):
            renamed._metadata = {  # type: ignore[attr-defined]  # where torch keeps versions
                _rename(f"{name}.", prefix, unwrap).rstrip("."): facts
                for name, facts in versions.items()
                if f"{name}.".startswith(prefix)
            }
            yield Named(state=renamed, left_out=left)


def _rename(name: str, prefix: str, unwrap: bool) -> str:
    rest = name[len(prefix) :]
    if unwrap:
        rest = ".".join(part for part in rest.split(".") if part not in WRAPPERS)
    return rest
