"""What a checkpoint holds, as the rest of the toolkit sees it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        state_dict: tensors by name, prefixes removed; with a factory as the file has them, until
            the network tells its own names. `_metadata` hangs on it as on torch's.
        arch: registered name of the architecture.
        config: keyword arguments that rebuild it.
        meta: how the checkpoint came to be; JSON values.
        sha256: of the file.
    """

    state_dict: dict[str, Tensor]
    arch: str
    config: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
