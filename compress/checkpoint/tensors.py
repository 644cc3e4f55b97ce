"""From what a file says about its tensors to the tensors, with all sizes checked in between."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.checkpoint.plain_values import (
    MalformedError,
    StorageRecord,
    TensorRecord,
    UnreadableTensor,
)
from compress.errors import UserInputError

__all__ = ["MAX_GIB", "MAX_TENSORS", "StoredTensors", "read_tensors", "sha256_of_tensors"]

MAX_GIB = 16.0
MAX_TENSORS = 50_000
GIB = 1 << 30
FLOAT32_BYTES = 4


class StoredTensors(Protocol):
    """A file whose tensors can be read one storage at a time."""

    content: Any

    def nbytes(self, storage: StorageRecord) -> int:
        """Return how many bytes the file holds for a storage."""

    def bytes_of(self, storage: StorageRecord) -> Tensor:
        """Return them as uint8."""

    def check_rest(self, read: set[str]) -> None:
        """Compare the checksums of what was not read."""


def read_tensors(
    state: Mapping[str, Any], file: StoredTensors, *, what: str, max_gib: float
) -> "OrderedDict[str, Tensor]":
    """Read the tensors of a state_dict.

    Args:
        state: records by name; a tensor that is there already is kept as it is.
        file: where their values stand.
        what: names the file in messages.
        max_gib: the most that all of them may take as float32.

    Raises:
        UserInputError: they are more than that, or one claims more than the file holds.
        MalformedError: the values in the file are damaged.
    """
    _check_total(state, what, max_gib)
    records = {name: value for name, value in state.items() if isinstance(value, TensorRecord)}
    for name, record in records.items():
        _check_record(name, record, file, what)
    _check_views(records, what)
    blocks: dict[StorageRecord, Tensor] = {}
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    views: dict[TensorRecord, Tensor] = {}  # tied weights stay one tensor
    for name, value in state.items():
        if isinstance(value, TensorRecord):
            if value not in views:
                views[value] = _view(value, file, blocks)
            tensors[name] = views[value]
        else:
            tensors[name] = value
    file.check_rest({storage.key for storage in blocks})
    return tensors


def sha256_of_tensors(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types, shapes and bytes, the same for every kind of file.

    Tensors count in the order of their names; bytes as they lie in memory once contiguous.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{len(name)}:{name} {kind} {list(tensor.shape)}\n".encode())
        # A tensor with one axis at least, as torch cannot see a single value as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_total(state: Mapping[str, Any], what: str, max_gib: float) -> None:
    if len(state) > MAX_TENSORS:
        raise UserInputError(
            f"{what} has {len(state):,} tensors; expected at most {MAX_TENSORS:,}, so it is no "
            "network that can be handled here"
        )
    for name, value in state.items():
        if isinstance(value, UnreadableTensor) or (isinstance(value, Tensor) and value.is_meta):
            why = getattr(value, "why", "on the meta device, without data")
            raise UserInputError(_refusal(what, name, why))
    total = sum(_float32_bytes(value) for value in state.values())
    if total > max_gib * GIB:
        raise UserInputError(
            f"the tensors of {what} take {total / GIB:.1f} GiB as float32; expected at most "
            f"{max_gib:g}, so raise it with --max-gib if the file is what you think it is"
        )


def _refusal(what: str, name: str, why: str) -> str:
    if why == "quantised":
        return (
            f"{what} holds quantised weights ({name}); expected those of the float network, as "
            "quantising comes last: give the checkpoint from before it"
        )
    return (
        f"{name} of {what} is {why}; expected a plain tensor with its values, so save the "
        "state_dict() of the network with its weights on the CPU"
    )


def _float32_bytes(value: TensorRecord | Tensor) -> int:
    wide = FLOAT32_BYTES if value.dtype.is_floating_point else value.dtype.itemsize
    return math.prod(value.shape) * wide


def _check_record(name: str, record: TensorRecord, file: StoredTensors, what: str) -> None:
    storage, held = record.storage, file.nbytes(record.storage)
    if storage.nbytes != held:
        raise MalformedError(f"{name} claims {storage.nbytes:,} bytes and {held:,} are there")
    values, count = held // record.dtype.itemsize, math.prod(record.shape)
    if len(record.stride) != len(record.shape):
        raise MalformedError(f"{name} has {len(record.shape)} sides and other strides")
    last = record.offset + sum(
        (side - 1) * step for side, step in zip(record.shape, record.stride, strict=True)
    )
    if count and last >= values:
        raise MalformedError(f"{name} reads behind the end of its values")
    if count > values:
        raise UserInputError(
            f"{name} of {what} has {count:,} values by its shape, but the file holds {values:,}; "
            "expected a tensor that is stored whole, not expanded: save it after .contiguous()"
        )
    if max(record.shape, default=0) > 1 << 40:
        raise MalformedError(f"{name} has the shape {record.shape}")


def _check_views(records: Mapping[str, TensorRecord], what: str) -> None:
    """Thousands of views of one storage would take its size each, once they are float32."""
    claimed: dict[StorageRecord, int] = {}
    for record in set(records.values()):
        size = math.prod(record.shape) * record.dtype.itemsize
        claimed[record.storage] = claimed.get(record.storage, 0) + size
    for storage, size in claimed.items():
        if size > 2 * storage.nbytes:  # a whole and its parts may be there side by side
            raise UserInputError(
                f"tensors of {what} that overlap claim {size:,} bytes of {storage.nbytes:,}; "
                "expected tensors of their own: save the network after .contiguous()"
            )


def _view(record: TensorRecord, file: StoredTensors, blocks: dict[StorageRecord, Tensor]) -> Tensor:
    if record.storage not in blocks:
        blocks[record.storage] = file.bytes_of(record.storage)
    values = blocks[record.storage].view(record.dtype)
    return values.as_strided(record.shape, record.stride, record.offset)
