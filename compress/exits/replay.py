"""The replay table: what every exit says of every image, from one pass over a split.

Exits, thresholds and subsets of exits are then tried out on the table, without running the network
again. Decisions are those of `WithExits.forward_early`: an image leaves at the first exit with
sigmoid(gate) >= threshold, and a gate that is not a number never fires. A table that was filled
image by image holds the very numbers that the early return computes, because it is filled by the
same calls on tensors of the same shapes; in larger batches torch sums in another order, which can
move a score by about 1e-7 across a threshold that lies so near.

A file with a table may come from a stranger. It holds no pickles, its arrays are stored without
compression and claim no more than the file holds, so that none is larger in memory than the file on
disk, and everything is checked before a figure is computed from it.
"""

import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.image_data import Split
from compress.errors import CompressError, UserInputError
from compress.files import check_readable, replacing
from compress.measure.accuracy import evaluation_mode
from compress.measure.exit_macs import exit_check_macs, macs_per_exit
from compress.models.with_exits import WithExits
from compress.progress import progress_bar
from compress.runtime.decision import first_exit
from compress.runtime.exit_spelling import Position, check_order, joined, last_position, position_of
from compress.runtime.thresholds import check_thresholds

__all__ = [
    "ReplayTable",
    "Source",
    "decide",
    "exit_numbers",
    "fill_replay",
    "load_replay",
    "save_replay",
]

FORMAT = "compress.replay/2"
FORMATS = ("compress.replay/1", FORMAT)  # the first knew numbers of blocks alone
TYPES = {"logits": "f4", "scores": "f4", "labels": "i8", "macs": "i8", "check_macs": "i8"}
MAX_MEMBERS = 16
MAX_MACS = 1 << 53


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a table was computed from.

    Attributes:
        data: name of the data set.
        split: name of the split.
        data_sha256: identity of the data set.
        checkpoint_sha256: of the file of the network.
    """

    data: str
    split: str
    data_sha256: str
    checkpoint_sha256: str


@dataclass(frozen=True, kw_only=True)
class ReplayTable:
    """What every exit says of every image.

    Attributes:
        logits: (N, E+1, K) float32; the final head last.
        scores: (N, E) float32, sigmoid of the gates.
        labels: (N,) int64.
        positions: where each exit stands, a block (0-based) or a module, in the order of the
            network.
        depth: blocks of the network, 0 where it is not counted in blocks.
        macs: (E+1,) int64, multiply-adds of an image that leaves at each exit, all heads and gates
            on its way included.
        check_macs: (E,) int64, those of the head and the gate of each exit alone.
        source: what it was computed from.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    positions: tuple[Position, ...]
    depth: int
    macs: NDArray[np.int64]
    check_macs: NDArray[np.int64]
    source: Source

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def exits(self) -> int:
        """E, the exits before the final head."""
        return len(self.positions)

    @property
    def last(self) -> Position:
        """What the final head is called, see `compress.runtime.exit_spelling`."""
        return last_position(self.depth)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N, E+1), whether each exit is right; of equal logits the first class counts."""
        right: NDArray[np.bool_] = self.logits.argmax(axis=2) == self.labels[:, None]
        return right & ~np.isnan(self.logits).any(axis=2)  # argmax takes NaN for the largest

    def subset(self, positions: Sequence[Position] | None) -> NDArray[np.int64]:
        """Return the numbers of the exits at these positions; None is all, () is none.

        Raises:
            UserInputError: as `exit_numbers`.
        """
        chosen = self.positions if positions is None else positions
        if not chosen:
            return np.array([], dtype=np.int64)
        return np.array(exit_numbers(chosen, self.positions), dtype=np.int64)

    def macs_of(self, exits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (E+1,) multiply-adds per exit when only `exits` are checked on the way.

        What stands at an exit that is not checked means nothing.
        """
        skipped = np.ones(self.exits, dtype=bool)
        skipped[exits] = False
        saved = np.concatenate([np.cumsum(self.check_macs * skipped), [0]])
        saved[-1] = saved[-2]
        return self.macs - saved


def decide(
    table: ReplayTable,
    thresholds: float | Sequence[float],
    *,
    exits: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the exit (N,) that each image takes, E for the final head.

    Args:
        table: of N images.
        thresholds: one for all exits, or one for each of `exits`, in [0, 1].
        exits: numbers of the exits that are checked, ascending; all by default.

    Raises:
        UserInputError: a threshold is out of range, or there are not as many as exits.
    """
    exits = np.arange(table.exits) if exits is None else exits
    bars = check_thresholds(thresholds, len(exits))
    return first_exit(table.scores, bars, exits)


def exit_numbers(chosen: Sequence[Position], positions: Sequence[Position]) -> list[int]:
    """Return the numbers of the exits at the positions `chosen`.

    Args:
        chosen: in the order of the network; thresholds that are given one for each stand in this
            order.
        positions: where the network has exits, in its order.

    Raises:
        UserInputError: there is no exit at a position, none is chosen, one is named twice, or
            they are out of order.
    """
    wanted = list(chosen)
    known = [position for position in positions if position in wanted]
    if not wanted or known != wanted:
        raise UserInputError(
            f"--exits is {joined(wanted)}; expected some of {joined(positions)}, each once, in "
            "this order: where this network has exits"
        )
    return [list(positions).index(position) for position in wanted]


@torch.inference_mode()
def fill_replay(
    model: WithExits,
    split: Split,
    normalize: Callable[[Tensor], Tensor],
    source: Source,
    *,
    batch_size: int = 128,
    device: str = "cpu",
    progress: bool = True,
) -> ReplayTable:
    """Run all exits on all images of a split, once.

    Args:
        model: moved to `device`; its mode is kept.
        split: at least one image.
        normalize: from the split's uint8 images to the network's input.
        source: what is run on what.
        batch_size: 1 gives the very decisions of the early return; see the module.
        device: where to run.
        progress: show a bar on stderr.

    Raises:
        UserInputError: the split is empty, or `batch_size` is below 1.
        CompressError: the final head gives NaN or infinity.
    """
    if batch_size < 1:
        raise UserInputError(f"--batch-size is {batch_size}; expected at least 1")
    if len(split) == 0:
        raise UserInputError(
            f"the {source.split} split of {source.data} is empty; expected at least one image"
        )
    model.to(device)
    parts, total, shape = [], -(-len(split) // batch_size), (0, 0, 0)
    with evaluation_mode(model), progress_bar(total, "replay", unit="batch", show=progress) as bar:
        for images, labels in split.batches(batch_size):
            inputs = normalize(images.to(device))
            shape = (inputs.shape[1], inputs.shape[2], inputs.shape[3])
            logits, scores = _all_exits(model, inputs)
            parts.append((logits.cpu(), scores.cpu(), labels))
            bar.update()
    logits, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    _check_final(logits[:, -1])
    return ReplayTable(
        logits=logits.numpy(),
        scores=scores.numpy(),
        labels=labels.numpy(),
        positions=model.positions,
        depth=model.depth,
        macs=np.array(macs_per_exit(model, shape), dtype=np.int64),
        check_macs=np.array(exit_check_macs(model, shape), dtype=np.int64),
        source=source,
    )


def _all_exits(model: WithExits, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (B, E+1, K) and scores (B, E): `forward_early` that never leaves.

    Each gate has its sigmoid alone, as there: torch rounds that of one value otherwise than that of
    a vector.
    """
    logits, gates = model.every_exit(images)
    scores = [torch.sigmoid(gate) for gate in gates]
    return torch.stack(logits, dim=1).float(), torch.stack(scores, dim=1).float()


def _check_final(logits: Tensor) -> None:
    """An early exit whose gate is not a number never fires, but nothing stands behind the last."""
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise CompressError(
            f"the network gives NaN or infinity for {broken} of {len(logits)} images; check its "
            "weights and the normalisation, or train with a lower learning rate"
        )


def save_replay(table: ReplayTable, path: Path) -> None:
    """Write a table as .npz, whole or not at all."""
    head = {
        "format": FORMAT,
        "positions": table.positions,
        "depth": table.depth,
        "source": asdict(table.source),
    }
    arrays = {name: getattr(table, name) for name in TYPES}
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, head=np.array(json.dumps(head)), **arrays)


def load_replay(path: Path) -> ReplayTable:
    """Read a table that `save_replay` wrote.

    Raises:
        UserInputError: the file is missing, damaged, or not such a table.
    """
    check_readable(path, "replay table")
    try:
        table = _read(path)
        _check(table)
    except Exception as err:  # zipfile, zlib, json and numpy raise a dozen kinds
        raise UserInputError(
            f"replay table {path} cannot be used ({' '.join(str(err).split())[:200]}); it is "
            "damaged or of another kind, so remove it and make it again with "
            "python -m compress.evaluate --replay"
        ) from err
    return table


def _read(path: Path) -> ReplayTable:
    _check_sizes(path)
    with np.load(path, allow_pickle=False) as file:
        head = json.loads(str(file["head"]))
        arrays = {name: _array(file, name) for name in TYPES}
    if head["format"] not in FORMATS:
        raise ValueError(f"format {head['format']!r:.60}, not {FORMAT}")
    return ReplayTable(
        positions=tuple(position_of(position) for position in head["positions"]),
        depth=int(head["depth"]),
        source=Source(**{name: str(text) for name, text in head["source"].items()}),
        **arrays,
    )


def _check_sizes(path: Path) -> None:
    """Raise ValueError where an array claims more than the file holds, before it is allocated."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS or len({m.filename for m in members}) < len(members):
            raise ValueError("arrays that repeat themselves, or too many")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("compressed, which could hide any size")
            with archive.open(member) as file:
                held = _claimed_bytes(file)
            if held != member.file_size or held > size:
                raise ValueError(f"{member.filename} claims {held} bytes of {member.file_size}")


def _claimed_bytes(file: Any) -> int:
    """Return how long a .npy file is by its own header."""
    version = np.lib.format.read_magic(file)
    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = readers[version](file)
    return int(file.tell() + math.prod(shape) * dtype.itemsize)


def _array(file: Any, name: str) -> Any:
    array = file[name]
    if array.dtype != np.dtype(TYPES[name]):
        raise ValueError(f"{name} is of type {array.dtype}, not {np.dtype(TYPES[name])}")
    return array


def _check(table: ReplayTable) -> None:
    _check_shapes(table)
    labels, scores, macs = table.labels, table.scores, table.macs
    if not 0 <= labels.min() <= labels.max() < table.logits.shape[2]:
        raise ValueError("labels beyond the classes")
    if ((scores < 0) | (scores > 1)).any():  # NaN passes: such a gate never fires
        raise ValueError("scores outside [0, 1]")
    if not np.isfinite(table.logits[:, -1]).all():
        raise ValueError("final logits that are not numbers")
    rising = (np.diff(macs) > 0).all() and macs[0] > 0 and macs[-1] < MAX_MACS
    if not rising or (table.check_macs < 0).any() or table.check_macs.sum() >= macs[-1]:
        raise ValueError("multiply-adds that do not rise from exit to exit")


def _check_shapes(table: ReplayTable) -> None:
    images, exits = len(table.labels), len(table.positions)
    wanted = {
        "logits": (images, exits + 1, table.logits.shape[-1]),
        "scores": (images, exits),
        "labels": (images,),
        "macs": (exits + 1,),
        "check_macs": (exits,),
    }
    for name, shape in wanted.items():
        found = getattr(table, name).shape
        if found != shape or 0 in shape:
            raise ValueError(f"{name} has shape {found}, not {shape}")
    check_order(table.positions, table.depth)
