"""Read a checkpoint file of any accepted layout, believing nothing that it says about itself."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.archive import TorchArchive
from compress.checkpoint.content import Checkpoint
from compress.checkpoint.layouts import FoundWeights, choose_weights, find_weights, versions_of
from compress.checkpoint.legacy import LegacyFile
from compress.checkpoint.names import note_left_out, readings
from compress.checkpoint.own_layout import FORMAT, check_meta, plain_json
from compress.checkpoint.safetensors_file import SafetensorsFile
from compress.checkpoint.tensors import MAX_GIB, StoredTensors, read_tensors, sha256_of_tensors
from compress.checkpoint.wording import first_lines
from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.files import check_readable, sha256_of
from compress.models import infer
from compress.models.factory import FACTORY_ARCH, factory_of

__all__ = ["read_checkpoint"]

logger = logging.getLogger(__name__)

NARROW = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
ZIP = b"PK\x03\x04"


def read_checkpoint(
    path: str | Path,
    *,
    factory: str | None = None,
    unsafe_pickle: bool = False,
    exits: Sequence[int] | None = None,
    weights: str | None = None,
    max_gib: float = MAX_GIB,
) -> Checkpoint:
    """Read a checkpoint without building its network; the arguments are those of `load`.

    Raises:
        UserInputError: the file is missing, damaged, a whole-module pickle, or claims too much.
        UnsupportedModelError: its architecture is not known.
    """
    path = check_readable(Path(path), "checkpoint")
    sha256 = sha256_of(path)
    try:
        with _opened(path, unsafe_pickle) as file:
            if _is_ours(file.content):
                return _our_checkpoint(
                    file, path, factory=factory, weights=weights, max_gib=max_gib, sha256=sha256
                )
            found = _found(file, path, unsafe_pickle)
            chosen = choose_weights(found, weights, f"checkpoint {path}")
            state = read_tensors(chosen.state, file, what=f"checkpoint {path}", max_gib=max_gib)
            meta = _foreign_meta(file.content)
    except CompressError:
        raise
    except Exception as err:  # damaged bytes raise nearly anything
        raise _unreadable(path, err) from err
    _note_narrow(state, path)
    named, arch, config = _recognised(state, chosen, path, factory=factory, exits=exits)
    return Checkpoint(state_dict=named, arch=arch, config=config, meta=meta, sha256=sha256)


def _opened(path: Path, unsafe_pickle: bool) -> AbstractContextManager[Any]:
    """Open the file by what it begins with."""
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return SafetensorsFile(path)
    try:
        return TorchArchive(path) if start.startswith(ZIP) else LegacyFile(path)
    except Exception:
        # Older and stranger pickles are for the real unpickler, if that may run.
        if unsafe_pickle and not start.startswith(ZIP):
            return _Unpickled(path)
        raise


class _Unpickled:
    """A file that the real unpickler has read, running whatever code it names."""

    unknown: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        logger.warning("unpickling %s: this runs code from the file", path)
        self.content: Any = torch.load(path, map_location="cpu", weights_only=False)

    def __enter__(self) -> "_Unpickled":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def check_rest(self, read: set[str]) -> None:
        """Nothing is left to check."""


def _found(file: Any, path: Path, unsafe_pickle: bool) -> list[FoundWeights]:
    """The weights in a foreign file.

    Pickled modules give theirs without being rebuilt, where they are plain modules; only others
    are left to the real unpickler.
    """
    found = find_weights(file.content, modules=unsafe_pickle)
    if not found and unsafe_pickle and file.unknown:
        file.content = _Unpickled(path).content
        found = find_weights(file.content, modules=True)
    if found:
        if file.unknown:
            logger.info("objects in %s that are not rebuilt: %s", path, ", ".join(file.unknown))
        return found
    if file.unknown:
        raise UserInputError(
            f"checkpoint {path} is a pickle that would run code ({file.unknown[0]}); expected a "
            "state_dict, so save model.state_dict() instead of the model, or add --unsafe-pickle "
            "if you trust where the file comes from"
        )
    content = file.content
    names = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
    raise UserInputError(
        f"checkpoint {path} holds no weights: found {type(content).__name__} ({names}); expected "
        "a state_dict, alone or under a name such as state_dict, model or net"
    )


def _is_ours(content: Any) -> bool:
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def _our_checkpoint(
    file: Any,
    path: Path,
    *,
    factory: str | None,
    weights: str | None,
    max_gib: float,
    sha256: str,
) -> Checkpoint:
    what, content = f"checkpoint {path}", file.content
    arch, config, records = (content.get(key) for key in ("arch", "config", "state_dict"))
    fits = isinstance(arch, str) and isinstance(config, Mapping) and isinstance(records, Mapping)
    if not fits or not records or not all(isinstance(name, str) for name in records):
        raise UserInputError(
            f"{what} says {FORMAT} but lacks arch, config or state_dict; it is damaged"
        )
    if weights not in (None, "state_dict"):
        raise UserInputError(f"weights {weights!r} are not in {what}; expected state_dict alone")
    meta = plain_json(content.get("meta") or {}, f"meta of {what}")
    if not isinstance(meta, dict):
        raise UserInputError(f"meta of {what} is {meta!r}; expected a mapping, so it is damaged")
    check_meta(meta, what)
    config = _with_factory(arch, plain_json(config, f"config of {what}"), path, factory)
    state = _own_tensors(file, records, what, max_gib)
    return Checkpoint(state_dict=state, arch=arch, config=config, meta=meta, sha256=sha256)


def _own_tensors(
    file: StoredTensors, records: Mapping[str, Any], what: str, max_gib: float
) -> dict[str, Tensor]:
    for name, record in records.items():
        if not hasattr(record, "shape") and not hasattr(record, "why"):
            raise UserInputError(f"{name} of {what} is no tensor; the file is damaged")
    state = read_tensors(records, file, what=what, max_gib=max_gib)
    recorded = file.content.get("tensors_sha256")
    if recorded is not None and recorded != sha256_of_tensors(state):
        raise UserInputError(
            f"the tensors of {what} are not those that were written (their sha256 differs); the "
            "file is damaged or was edited, so fetch or make it again"
        )
    hung = file.content.get("versions")
    state._metadata = (  # type: ignore[attr-defined]  # where torch keeps versions
        versions_of(records) or {name: {"version": n} for name, n in _numbers(hung)}
    )
    return state


def _numbers(value: Any) -> list[tuple[str, int]]:
    items = value.items() if isinstance(value, Mapping) else ()
    return [(name, number) for name, number in items if type(number) is int]


def _with_factory(
    arch: str, config: dict[str, Any], path: Path, factory: str | None
) -> dict[str, Any]:
    recorded = factory_of(arch, config)
    if recorded is None and arch != FACTORY_ARCH:
        if factory is not None:
            raise UserInputError(
                f"--model {factory} was given, but {path} holds a {arch}, which needs no --model; "
                "leave it out"
            )
        return config
    if factory is None:
        raise UserInputError(
            f"the network of {path} is built by {recorded}; code is not run because a file "
            f"names it, so give --model {recorded} if you trust it"
        )
    if arch == FACTORY_ARCH:
        return {**config, "factory": factory}
    inner = config["backbone"]
    return {**config, "backbone": {**inner, "config": {**inner["config"], "factory": factory}}}


def _recognised(
    state: "OrderedDict[str, Tensor]",
    chosen: FoundWeights,
    path: Path,
    *,
    factory: str | None,
    exits: Sequence[int] | None,
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The state_dict under the names of its architecture, which is the factory's or a known one."""
    if factory:
        state._metadata = dict(chosen.versions)  # type: ignore[attr-defined]
        return state, FACTORY_ARCH, {"factory": factory}
    refusals = []
    for named in readings(state, chosen.versions):
        found = _inferred(named.state, exits, path)
        if not isinstance(found, CompressError):
            note_left_out(named, f"checkpoint {path}")
            return named.state, *found
        refusals.append((bool(named.left_out), found))
    # What is said of all names without any wrapper is the most to the point.
    raise next(err for partial, err in reversed(refusals) if not partial)


def _inferred(
    state: Mapping[str, Tensor], exits: Sequence[int] | None, path: Path
) -> tuple[str, dict[str, Any]] | CompressError:
    try:
        return infer(state, exits=exits)
    except CompressError as err:
        return err
    except Exception as err:  # shapes that no network has
        return UnsupportedModelError(
            f"the names in checkpoint {path} are those of a known network, but its shapes are not "
            f"({type(err).__name__}: {first_lines(err)}); expected the weights as trained"
        )


def _foreign_meta(content: Any) -> dict[str, Any]:
    """The plain numbers and words that stood beside the weights, such as `acc` and `epoch`."""
    if not isinstance(content, Mapping):
        return {}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in content.items()}
    kept = {
        k: v
        for k, v in plain.items()
        if isinstance(k, str) and isinstance(v, bool | int | float | str)
    }
    finite = {k: v for k, v in kept.items() if not isinstance(v, float) or np.isfinite(v)}
    return {"source": finite} if finite else {}


def _note_narrow(state: Mapping[str, Tensor], path: Path) -> None:
    narrow = sorted(
        {str(t.dtype).removeprefix("torch.") for t in state.values() if t.dtype in NARROW}
    )
    if narrow:
        logger.warning("note: weights of %s are %s; taken as float32", path, " and ".join(narrow))


def _unreadable(path: Path, err: Exception) -> UserInputError:
    return UserInputError(
        f"checkpoint {path} cannot be read ({first_lines(err)}); expected a file written by "
        "torch.save or safetensors, so it may be truncated or of another kind: fetch it again"
    )
