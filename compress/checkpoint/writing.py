"""Write a checkpoint of ours; whole or not at all."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint.layouts import versions_of
from compress.checkpoint.own_layout import FORMAT
from compress.checkpoint.safetensors_file import METADATA_KEY
from compress.checkpoint.tensors import sha256_of_tensors
from compress.errors import UnsupportedModelError, UserInputError
from compress.files import replacing
from compress.optional import require

__all__ = ["save"]


def save(
    model: nn.Module, path: str | Path, *, meta: Mapping[str, Any] | None = None, force: bool = True
) -> Path:
    """Write a network with everything that rebuilds it; whole or not at all.

    Args:
        model: one of `compress.models`, or one that a factory built (`compress.load(factory=…)`).
        path: ends in `.safetensors` for that format; any other name is a torch file.
        meta: JSON values that say how the network came to be.
        force: replace an existing file.

    Raises:
        UnsupportedModelError: the module does not tell its `arch` and `config`.
        UserInputError: `meta` is not JSON, or the file cannot be written.
    """
    path = Path(path)
    arch, config = getattr(model, "arch", None), getattr(model, "config", None)
    if not isinstance(arch, str) or not isinstance(config, dict):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no `arch` and `config` to rebuild it from; expected a "
            "model of compress.models, or one built through a factory"
        )
    if path.exists() and not force:
        raise UserInputError(f"output {path} exists; choose another name, or replace it with force")
    own = model.state_dict()
    state = OrderedDict((name, _whole(tensor.detach().cpu())) for name, tensor in own.items())
    versions = versions_of(own)
    head = {
        "format": FORMAT,
        "arch": arch,
        "config": config,
        "meta": dict(meta or {}),
        "tensors_sha256": sha256_of_tensors(state),
    }
    try:
        head = json.loads(json.dumps(head, allow_nan=False))
    except (TypeError, ValueError) as err:
        raise UserInputError(f"meta of {path} must hold JSON values only: {err}") from err
    with replacing(path, wanted=sum(tensor.nbytes for tensor in state.values())) as part:
        if path.suffix == ".safetensors":
            _save_safetensors(state, head, versions, part)
        else:
            state._metadata = versions  # type: ignore[attr-defined]  # where torch keeps them
            with open(part, "wb") as file:  # else the archive would name its temporary file
                torch.save({**head, "state_dict": state}, file)
    return path


def _save_safetensors(
    state: Mapping[str, torch.Tensor],
    head: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, Any]],
    part: Path,
) -> None:
    writer = require("safetensors.torch", "writing .safetensors files")
    numbers = {name: facts["version"] for name, facts in versions.items()}
    text = json.dumps({**head, "versions": numbers})
    seen: set[int] = set()
    apart: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():  # the format has no tied weights: each is written by itself
        address = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if address in seen else tensor.contiguous()
        seen.add(address)
    writer.save_file(apart, part, metadata={METADATA_KEY: text})


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose values are all in memory, as an expanded one is refused on reading."""
    held = tensor.untyped_storage().nbytes()
    return tensor.contiguous() if held < tensor.numel() * tensor.itemsize else tensor
