"""The resume point of a run: everything that the rest of it depends on, in one file.

`state.pt` holds the weights, the optimizer, the loss scale, the position and the history. Learning
rate and random numbers are functions of the position (`schedule`, `batches`), so nothing else has
to be kept. It is read with `weights_only=True`, and names the run that it belongs to.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.errors import UserInputError
from compress.files import replacing

__all__ = ["Position", "check_same_run", "read_state", "write_state"]

FORMAT = "compress.training/1"


@dataclass(kw_only=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: whole epochs done.
        step: optimizer steps done in the epoch under way.
        sums: terms of the loss, summed over these steps.
        elapsed_s: time spent on these steps.
        history: one record for every whole epoch.
        best_score: of the best evaluation, or None before the first.
        best_epoch: the epoch of it, counted from 1.
        without_gain: evaluations since then.
        stopped_early: no gain for as long as was allowed.
        finished: nothing is left to do.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_score: list[float] | None = None
    best_epoch: int = 0
    without_gain: int = 0
    stopped_early: bool = False
    finished: bool = False


def write_state(
    path: Path, *, identity: Mapping[str, Any], position: Position, tensors: Mapping[str, Any]
) -> None:
    """Write a resume point, whole or not at all.

    Args:
        path: of the file.
        identity: JSON values that tell this run from others.
        position: where it stands.
        tensors: state dicts by name; empty once the run is finished.
    """
    content = {
        "format": FORMAT,
        "identity": _plain(identity),
        "position": asdict(position),
        **tensors,
    }
    with replacing(path) as part, open(part, "wb") as file:  # a path would be named in the archive
        torch.save(content, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read a resume point; its "position" comes back as a `Position`.

    Raises:
        UserInputError: the file is damaged or not a resume point.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return {**content, "position": Position(**content["position"])}
    except Exception as err:  # torch raises RuntimeError, EOFError, UnpicklingError, …
        reason = (str(err).splitlines() or [""])[0] or type(err).__name__
        raise UserInputError(
            f"resume point {path} cannot be read ({reason}); expected one that training wrote, so "
            "give --fresh to begin anew"
        ) from err


def check_same_run(folder: Path, *, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun with other settings, data or weights.

    Raises:
        UserInputError: names what differs.
    """
    before, now = _flat(found), _flat(_plain(asked))
    differing = [name for name in before | now if before.get(name) != now.get(name)]
    if differing:
        told = "; ".join(
            f"{name} is {reprlib.repr(now.get(name))}, was {reprlib.repr(before.get(name))}"
            for name in differing[:3]
        )
        raise UserInputError(
            f"{folder} holds another run ({told}); expected the same settings to go on with it, so "
            "give another folder with -o/--output, or --fresh to discard that run"
        )


def _plain(value: Mapping[str, Any]) -> Any:
    """The value as JSON gives it back: tuples become lists, so that it compares equal."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as err:
        raise UserInputError(f"save_meta must hold JSON values only: {err}") from err


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = [_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
    return {name: v for part in parts for name, v in part.items()}
