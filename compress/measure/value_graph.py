"""Which value a network computes from which, found by running it once on shapes alone.

A value is what one operation gives; operations that write into a tensor make a new value of
everything that shares its memory, also where that was a constant before. Values that hang on
parameters and constants alone are none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ValueGraph"]

IMAGE = 0


@dataclass(kw_only=True)
class ValueGraph:
    """Values in the order in which they were computed, the image first.

    Attributes:
        reads: for each value the values that it was computed from.
        bytes_of: for each value its bytes for the images that were run.
    """

    reads: list[tuple[int, ...]] = field(default_factory=list)
    bytes_of: list[int] = field(default_factory=list)
    _held: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    _written: dict[int, int] = field(default_factory=dict)

    @contextmanager
    def following(self, image: Tensor) -> Iterator[None]:
        """Follow what is computed from an image inside the block."""
        self._add(image, ())
        with _Following(self):
            yield

    def value_of(self, tensor: Tensor) -> int | None:
        """Return the value that a tensor holds now; None where it hangs on no image."""
        held = self._held.get(id(tensor))
        return self._written.get(_memory(tensor)) if held is None else held[1]

    def ancestors(self, values: Sequence[int]) -> set[int]:
        """Return these values and all that they are computed from."""
        found, pending = set(values), list(values)
        while pending:
            for value in self.reads[pending.pop()]:
                if value not in found:
                    found.add(value)
                    pending.append(value)
        return found

    def crossing(self, before: set[int], useful: set[int]) -> list[int]:
        """Return the values of `before` that a useful value outside of it reads, in order."""
        return sorted({v for value in useful - before for v in self.reads[value] if v in before})

    def note(self, inputs: Any, outputs: Any, *, writes: bool) -> None:
        """Note one operation."""
        known: dict[int, None] = {}
        for leaf in tree_leaves(inputs):
            value = self.value_of(leaf) if isinstance(leaf, Tensor) else None
            if value is not None:
                known[value] = None
                # Of a tensor that was written in part, the part made the value.
                self.bytes_of[value] = max(self.bytes_of[value], _bytes(leaf))
        if not known:
            return
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                value = self._add(leaf, tuple(known))
                if writes:
                    self._renew(leaf, value)

    def _add(self, tensor: Tensor, reads: tuple[int, ...]) -> int:
        self.reads.append(reads)
        self.bytes_of.append(_bytes(tensor))
        # Held, so that no other tensor gets the same id while the network runs.
        self._held[id(tensor)] = (tensor, len(self.reads) - 1)
        return len(self.reads) - 1

    def _renew(self, written: Tensor, value: int) -> None:
        memory = _memory(written)
        # A constant that is written into is not held: whoever shares its memory reads it from here.
        # What was written is held, so that its memory is no other's while the network runs.
        self._written[memory] = value
        for key, (tensor, _) in self._held.items():
            if _memory(tensor) == memory:
                self._held[key] = (tensor, value)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Following(TorchDispatchMode):
    def __init__(self, graph: ValueGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        writes = any(a.alias_info is not None and a.alias_info.is_write
                     for a in func._schema.arguments)  # fmt: skip
        self.graph.note((args, kwargs), outputs, writes=writes)
        return outputs
