"""The replay table: what every exit says of every image, from one pass over a split.

Exits, thresholds and subsets of exits are then tried out on the table, without running the network
again. Decisions are those of `GFNetDynn.forward_early`: an image leaves at the first exit with
sigmoid(gate) >= threshold, and a gate that is not a number never fires. A table that was filled
image by image holds the very numbers that the early return computes; in larger batches torch sums
in another order, which can move a gate by about 1e-7 across a threshold that lies so near.
"""

import itertools
import json
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
from compress.errors import UserInputError
from compress.files import check_readable, replacing
from compress.measure.exit_macs import exit_check_macs, macs_per_exit
from compress.models.early_exit import GFNetDynn, check_thresholds
from compress.optional import require
from compress.training.accuracy import evaluation_mode

__all__ = ["ReplayTable", "Source", "decide", "fill_replay", "load_replay", "save_replay"]

MAX_VALUES = 2**31  # of one array: 8 GB of float32, far above any real table


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
        positions: block of each exit, 0-based, ascending.
        depth: blocks of the network.
        macs: (E+1,) int64, multiply-adds of an image that leaves at each exit, all heads and gates
            on its way included.
        check_macs: (E,) int64, those of the head and the gate of each exit alone.
        source: what it was computed from.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    positions: tuple[int, ...]
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
    def correct(self) -> NDArray[np.bool_]:
        """(N, E+1), whether each exit is right; of equal logits the first class counts."""
        found: NDArray[np.bool_] = self.logits.argmax(axis=2) == self.labels[:, None]
        return found

    def subset(self, positions: Sequence[int] | None) -> NDArray[np.int64]:
        """Return the numbers of the exits behind these blocks; None is all.

        Raises:
            UserInputError: the network has no exit behind a block, or one is named twice.
        """
        if positions is None:
            return np.arange(self.exits)
        unknown = [p for p in positions if p not in self.positions]
        if unknown or len(set(positions)) != len(positions):
            raise UserInputError(
                f"--exits is {','.join(map(str, positions))}; expected some of "
                f"{','.join(map(str, self.positions))}, each once: the blocks behind which this "
                "network has a trained exit"
            )
        return np.array([self.positions.index(p) for p in sorted(positions)], dtype=np.int64)

    def macs_of(self, exits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (E+1,) multiply-adds per exit when only `exits` are checked on the way."""
        skipped = np.ones(self.exits, dtype=bool)
        skipped[exits] = False
        saved = np.concatenate([np.cumsum(self.check_macs * skipped), [0]])
        saved[-1] = saved[-2] if self.exits else 0
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
    bars = np.array(check_thresholds(thresholds, len(exits)), dtype=np.float64)
    fires = np.zeros((len(table), table.exits + 1), dtype=bool)
    fires[:, -1] = True
    # In float64, as `.item() >= threshold` compares: 0.8 is another number in float32.
    fires[:, exits] = table.scores[:, exits].astype(np.float64) >= bars
    return fires.argmax(axis=1)


@torch.inference_mode()
def fill_replay(
    model: GFNetDynn,
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
        UserInputError: the split is empty.
    """
    if len(split) == 0:
        raise UserInputError(
            f"the {source.split} split of {source.data} is empty; expected at least one image"
        )
    tqdm = require("tqdm", "progress bars").tqdm
    model.to(device)
    logits, gates, labels = [], [], []
    total = -(-len(split) // batch_size)
    with (
        evaluation_mode(model),
        tqdm(total=total, desc="replay", unit="batch", leave=False, disable=not progress) as bar,
    ):
        for images, truth in split.batches(batch_size):
            all_logits, all_gates = model.forward_all(normalize(images.to(device)))
            logits.append(all_logits.cpu())
            gates.append(torch.sigmoid(all_gates).cpu())
            labels.append(truth)
            bar.update()
    return ReplayTable(
        logits=torch.cat(logits).numpy(),
        scores=torch.cat(gates).numpy(),
        labels=torch.cat(labels).numpy(),
        positions=tuple(model.config["exits"]),
        depth=len(model.blocks),
        macs=np.array(macs_per_exit(model), dtype=np.int64),
        check_macs=np.array(exit_check_macs(model), dtype=np.int64),
        source=source,
    )


ARRAYS = ("logits", "scores", "labels", "macs", "check_macs")
TYPES = {"logits": "f4", "scores": "f4", "labels": "i8", "macs": "i8", "check_macs": "i8"}


def save_replay(table: ReplayTable, path: Path) -> None:
    """Write a table as .npz, whole or not at all."""
    head = {
        "positions": table.positions,
        "depth": table.depth,
        "source": asdict(table.source),
        "format": "compress.replay/1",
    }
    arrays = {name: getattr(table, name) for name in ARRAYS}
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, head=np.array(json.dumps(head)), **arrays)


def load_replay(path: Path) -> ReplayTable:
    """Read a table that `save_replay` wrote.

    Raises:
        UserInputError: the file is missing, damaged, or not such a table.
    """
    check_readable(path, "replay table")
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            arrays = {name: _array(file, name) for name in ARRAYS}
        table = ReplayTable(
            positions=tuple(int(p) for p in head["positions"]),
            depth=int(head["depth"]),
            source=Source(**head["source"]),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as err:
        raise UserInputError(
            f"replay table {path} cannot be read ({err}); make it again with "
            "python -m compress.evaluate --replay"
        ) from err
    _check(table, path)
    return table


def _array(file: Any, name: str) -> Any:
    array = file[name]
    if array.dtype != np.dtype(TYPES[name]) or array.size > MAX_VALUES:
        raise ValueError(f"{name} is {array.dtype} {array.shape}")
    return array


def _check(table: ReplayTable, path: Path) -> None:
    images, exits = len(table.labels), len(table.positions)
    shapes_fit = (
        table.logits.ndim == 3
        and table.logits.shape[:2] == (images, exits + 1)
        and table.scores.shape == (images, exits)
        and table.labels.shape == (images,)
        and table.macs.shape == (exits + 1,)
        and table.check_macs.shape == (exits,)
        and images > 0
    )
    in_order = [*table.positions, table.depth - 1]
    values_fit = (
        shapes_fit
        and all(a < b for a, b in itertools.pairwise(in_order))
        and 0 <= table.labels.min() <= table.labels.max() < table.logits.shape[2]
        and bool((np.diff(table.macs) > 0).all())
        and not bool(((table.scores < 0) | (table.scores > 1)).any())
    )
    if not values_fit:
        raise UserInputError(
            f"replay table {path} does not fit together ({images} images, {exits} exits, logits "
            f"{table.logits.shape}); it is damaged, so make it again"
        )
