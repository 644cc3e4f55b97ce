"""Pooled features of all exits, computed once and kept on disk.

With a frozen backbone and fixed views, what the heads of a network with exits read never changes.
Here it is computed once a split, and training reads it in place of images. One `.npy` file a split
holds (N, F) float16, what all heads read of an image one behind the other; beside it an index names
the key (sha256 of the backbone and of the data) and the sha256 of every block of rows.

A block counts only where the index names it and its content agrees, so whatever a kill, a full disk
or a stranger left behind is computed again, block by block, and a cache of another backbone or of
other data is replaced whole. Files are mapped, never unpickled.
"""

import fcntl
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.prefetch import LabelledSplit, prefetched
from compress.errors import CompressError, UserInputError
from compress.files import move_aside, replacing, write_json
from compress.measure.accuracy import evaluation_mode
from compress.models.with_exits import WithExits
from compress.progress import progress_bar
from compress.training.batches import TrainingData

__all__ = [
    "FeatureData",
    "FeatureSplit",
    "backbone_sha256",
    "cached_features",
    "feature_shapes",
    "tensors_sha256",
]

logger = logging.getLogger(__name__)

FORMAT = "compress.features/2"
BLOCK_ROWS = 1024  # images between two records in the index
DTYPE = np.dtype("<f2")

Features = NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class FeatureSplit:
    """Cached features in place of images, as a `LabelledSplit`.

    Attributes:
        features: (N, F) float16, mapped from the disk.
        labels: (N,) int64.
    """

    features: Features
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return the features at `indices` (B,), float16."""
        return torch.from_numpy(self.features[indices.numpy()])


@dataclass(frozen=True, kw_only=True)
class FeatureData:
    """A data set of features, as `TrainingData`; name, classes and sha256 are those of the images.

    Attributes:
        name: kind of data.
        classes: the name of each label.
        splits: features by split.
        preprocessing: of the images.
        sha256: identity of the images.
        shapes: of what each head reads of an image; together they have F values.
    """

    name: str
    classes: Sequence[str]
    splits: Mapping[str, FeatureSplit]
    preprocessing: Any
    sha256: str
    shapes: tuple[tuple[int, ...], ...]

    def normalize(self, images: Tensor) -> Tensor:
        """Return the features in float32."""
        return images.float()

    def all_exits(self, model: WithExits, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward_all` returns for the images of these features (B, F)."""
        parts = features.split([math.prod(shape) for shape in self.shapes], dim=1)
        pairs = zip(parts, self.shapes, strict=True)
        return model.from_head_inputs([part.reshape(-1, *shape) for part, shape in pairs])


def cached_features(
    model: WithExits,
    data: TrainingData,
    folder: Path,
    *,
    splits: Sequence[str] = ("train", "validation"),
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    workers: int = 1,
    progress: bool = True,
) -> FeatureData:
    """Return the features of a data set, computing what the folder does not hold yet.

    A computation that was killed goes on behind the last whole block.

    Args:
        model: is run in eval mode on `device` and left there; heads and gates do not count.
        data: the images.
        folder: of the cache; several backbones and data sets may share it.
        splits: which to return.
        batch_size: images at a time.
        device: where to compute.
        workers: threads that load images ahead.
        progress: show a bar on stderr.

    Raises:
        UserInputError: the folder cannot be written, or a split is empty.
        CompressError: a feature is not finite in float16.
    """
    backbone = backbone_sha256(model)
    model.to(device)
    found: dict[str, FeatureSplit] = {}
    shapes = feature_shapes(model, data)
    for name in splits:
        split = data.splits[name]
        if len(split) == 0:
            raise UserInputError(
                f"the data {data.name} have no images in the split {name!r}; expected at least one"
            )
        key = _digest(FORMAT, backbone, data.sha256, name)
        shape = (len(split), sum(map(math.prod, shapes)))
        with _locked(folder):
            cache = _Cache(Path(folder) / f"{name}-{key[:16]}.npy", key, shape)
            with progress_bar(shape[0], f"features {name}", unit="image", show=progress) as bar:
                for start, stop in cache.blocks():
                    if not cache.holds(start, stop):
                        rows = torch.arange(start, stop).split(batch_size)
                        cache.put(start, _computed(model, data, split, rows, workers))
                    bar.update(stop - start)
        found[name] = FeatureSplit(features=cache.read_only(), labels=split.labels)
    return FeatureData(
        name=data.name,
        classes=data.classes,
        splits=found,
        preprocessing=data.preprocessing,
        sha256=data.sha256,
        shapes=shapes,
    )


def feature_shapes(model: WithExits, data: TrainingData) -> tuple[tuple[int, ...], ...]:
    """Return the shape of what each head reads of an image of these data, the final one's last."""
    split = next(split for split in data.splits.values() if len(split))
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.inference_mode():
        one = data.normalize(split.images(torch.zeros(1, dtype=torch.int64)).to(device))
        return tuple(tuple(each.shape[1:]) for each in model.head_inputs(one))


def backbone_sha256(model: WithExits) -> str:
    """Return the sha256 of all that decides what heads read: tensors, sizes, exit positions."""
    settings, tensors = model.head_inputs_identity()
    return _digest(json.dumps(settings, sort_keys=True), tensors_sha256(tensors))


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of named tensors: names, types, shapes and content, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {content.dtype} {content.shape}".encode())
        digest.update(hashlib.sha256(content.data).digest())
    return digest.hexdigest()


class _Cache:
    """One file of features and its index, under the lock of its folder."""

    def __init__(self, path: Path, key: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.index_path = path.with_suffix(".json")
        self.head = {"format": FORMAT, "key": key, "shape": list(shape), "rows": BLOCK_ROWS}
        self.sums = self._read_index()
        self.array = self._open(shape)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Give the first row of every block and the row behind its last."""
        for start in range(0, len(self.array), BLOCK_ROWS):
            yield start, min(start + BLOCK_ROWS, len(self.array))

    def holds(self, start: int, stop: int) -> bool:
        """Whether the rows are those that were put there."""
        recorded = self.sums.get(str(start))
        if recorded is None:
            return False
        whole = recorded == _sha256(self.array[start:stop])
        if not whole:
            logger.warning("%s: rows %d to %d are damaged, computed again", self.path, start, stop)
        return whole

    def put(self, start: int, rows: Features) -> None:
        """Write a block, then the index, so that the index never names what is not there."""
        self.array[start : start + len(rows)] = rows
        self.array.flush()
        self.sums[str(start)] = _sha256(rows)
        write_json(self.index_path, {**self.head, "blocks": self.sums})

    def read_only(self) -> Features:
        """Map the file anew, so that nothing can change it."""
        self.array.flush()
        return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))

    def _read_index(self) -> dict[str, str]:
        try:
            content = json.loads(self.index_path.read_text(encoding="utf-8"))
            sums: dict[str, str] = dict(content.pop("blocks"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
            logger.warning("%s is damaged (%s), made again", self.index_path, err)
            return {}
        return sums if content == self.head else {}

    def _open(self, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float16]]:
        if self.path.exists():
            try:
                array = np.lib.format.open_memmap(self.path, mode="r+")
                if array.shape == shape and array.dtype == DTYPE and array.flags.c_contiguous:
                    return array
                reason = f"{array.dtype} {array.shape}"
            except (ValueError, OSError, EOFError) as err:
                reason = str(err)
            aside = move_aside(self.path)
            logger.warning(
                "%s is no cache of these features (%s): kept as %s, made again",
                self.path, reason, aside.name,
            )  # fmt: skip
        self.sums = {}
        return _allocated(self.path, shape)


def _allocated(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float16]]:
    """Make the file with all its space: a page that a full disk does not take kills the process."""
    wanted = math.prod(shape) * DTYPE.itemsize
    with replacing(path, wanted=wanted) as part:
        np.lib.format.open_memmap(part, mode="w+", dtype=DTYPE, shape=shape)
        with open(part, "r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    return np.lib.format.open_memmap(path, mode="r+")


def _computed(
    model: WithExits,
    data: TrainingData,
    split: LabelledSplit,
    chunks: Sequence[Tensor],
    workers: int,
) -> Features:
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.inference_mode():
        parts = [
            _flat(model.head_inputs(data.normalize(images.to(device))))
            for images in prefetched(split.images, chunks, workers=workers)
        ]
    features = torch.cat(parts)
    if not features.isfinite().all():
        raise CompressError(
            f"the network gives features on {data.name} that are NaN or beyond the range of "
            "float16; check its weights, or train without the cache (cache_features: false)"
        )
    return features.numpy()


def _flat(inputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten(1).half() for each in inputs], dim=1).cpu()


def _sha256(rows: Features) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes off the folder; they find the features done when their turn comes."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = open(Path(folder) / ".lock", "a")  # noqa: SIM115 - closed below, errors told here
    except OSError as err:
        raise UserInputError(
            f"the cache folder {folder} cannot be written ({err.strerror}); give another one"
        ) from err
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
