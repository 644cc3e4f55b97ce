"""Read and write checkpoints, our own and every foreign layout that is accepted.

A checkpoint of ours is a plain dict that `torch.load(weights_only=True)` opens anywhere:
`format`, `arch` (a registered name), `config` (keyword arguments that rebuild the module, widths
included), `state_dict` and `meta` (how it came to be, JSON values only). A `.safetensors` file
carries the same, the non-tensors as one JSON string in its metadata.

Foreign files: a bare state_dict; the same under `model`, `state_dict` or `net`; names behind
`module.` or `model.`; an `argparse.Namespace` or numpy scalars beside the weights. Architecture,
widths and class count are then inferred from names and shapes.
"""

import argparse
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.files import check_readable, replacing, sha256_of
from compress.models import build, infer
from compress.models.factory import FACTORY_ARCH, build_from_factory
from compress.optional import require

__all__ = ["FORMAT", "Checkpoint", "load", "model_from_checkpoint", "read_checkpoint", "save"]

logger = logging.getLogger(__name__)

FORMAT = "compress.checkpoint/1"
METADATA_KEY = "compress"  # of a .safetensors file
WEIGHT_KEYS = ("state_dict", "model", "net", "model_state_dict")
PREFIXES = ("module.", "model.")
# What stands beside the weights in checkpoints of others and is harmless to rebuild.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        state_dict: tensors by name, prefixes removed.
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


def load(
    path: str | Path,
    *,
    factory: str | None = None,
    unsafe_pickle: bool = False,
    exits: Sequence[int] | None = None,
) -> nn.Module:
    """Rebuild the network of a checkpoint, in eval mode, in float32, on the CPU.

    Args:
        path: a `.pth`, `.pt` or `.safetensors` file, ours or foreign.
        factory: "package.module:function" that builds a network which is not one of ours. Code is
            never imported because a file says so.
        unsafe_pickle: unpickle whole modules too. This runs code from the file.
        exits: blocks behind which the heads of a foreign early-exit checkpoint stand, 0-based; its
            names hold relative numbers only.

    Raises:
        UserInputError: the file is missing, damaged, a whole-module pickle, or does not fit.
        UnsupportedModelError: its architecture is not known.
    """
    checkpoint = read_checkpoint(path, factory=factory, unsafe_pickle=unsafe_pickle, exits=exits)
    return model_from_checkpoint(checkpoint)


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
    head = {"format": FORMAT, "arch": arch, "config": config, "meta": dict(meta or {})}
    try:
        head_json = json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as err:
        raise UserInputError(f"meta of {path} must hold JSON values only: {err}") from err
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with replacing(path, wanted=sum(tensor.nbytes for tensor in state.values())) as part:
        if path.suffix == ".safetensors":
            writer = require("safetensors.torch", "writing .safetensors files")
            whole = {name: tensor.contiguous() for name, tensor in state.items()}
            writer.save_file(whole, part, metadata={METADATA_KEY: head_json})
        else:
            with open(part, "wb") as file:  # else the archive would name its temporary file
                torch.save({**json.loads(head_json), "state_dict": state}, file)
    return path


def read_checkpoint(
    path: str | Path,
    *,
    factory: str | None = None,
    unsafe_pickle: bool = False,
    exits: Sequence[int] | None = None,
) -> Checkpoint:
    """Read a checkpoint without building its network; the arguments are those of `load`."""
    path = check_readable(Path(path), "checkpoint")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        content = _read_torch(path, unsafe_pickle)
    sha256 = sha256_of(path)
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        return _our_checkpoint(content, path, factory, sha256)
    state = _foreign_state(content, path)
    arch, config = (FACTORY_ARCH, {"factory": factory}) if factory else infer(state, exits=exits)
    return Checkpoint(
        state_dict=state, arch=arch, config=config, meta=_foreign_meta(content), sha256=sha256
    )


def model_from_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """Build the network of a checkpoint in eval mode; its float tensors become float32.

    The module takes over the tensors of the checkpoint where their type fits: nothing is copied.
    """
    if checkpoint.arch == FACTORY_ARCH:
        model = build_from_factory(checkpoint.config["factory"], checkpoint.state_dict)
    else:
        with torch.device("meta"):  # no memory, and no time spent on weights that are replaced
            model = build(checkpoint.arch, checkpoint.config)
    state = {name: _as_float32(tensor) for name, tensor in checkpoint.state_dict.items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as err:
        raise UserInputError(
            f"the tensors do not fit architecture {checkpoint.arch!r} as inferred or recorded: "
            f"{_first_lines(err)}"
        ) from err
    return model.eval()


def _read_torch(path: Path, unsafe_pickle: bool) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        if "GLOBAL" not in str(err) and "allowlist" not in str(err):
            raise _unreadable(path, err) from err
        if not unsafe_pickle:
            raise UserInputError(
                f"checkpoint {path} is a pickle that would run code ({_blocked_global(err)}); "
                "expected a state_dict, so save model.state_dict() instead of the model, or add "
                "--unsafe-pickle if you trust where the file comes from"
            ) from err
        return _read_pickle(path)
    except Exception as err:  # torch raises RuntimeError, EOFError, KeyError, ValueError, …
        raise _unreadable(path, err) from err


def _read_pickle(path: Path) -> Any:
    logger.warning("unpickling %s: this runs code from the file", path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as err:
        raise _unreadable(path, err) from err
    return content.state_dict() if isinstance(content, nn.Module) else content


def _read_safetensors(path: Path) -> Any:
    reader = require("safetensors", "reading .safetensors files")
    try:
        with reader.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            head = (file.metadata() or {}).get(METADATA_KEY)
        return {**json.loads(head), "state_dict": state} if head else state
    except Exception as err:  # SafetensorError, JSONDecodeError, OSError
        raise _unreadable(path, err) from err


def _our_checkpoint(
    content: Mapping[str, Any], path: Path, factory: str | None, sha256: str
) -> Checkpoint:
    arch, config, state = content.get("arch"), content.get("config"), content.get("state_dict")
    if not isinstance(arch, str) or not isinstance(config, dict) or not _is_state(state):
        raise UserInputError(
            f"checkpoint {path} says {FORMAT} but lacks arch, config or state_dict; it is damaged"
        )
    if arch == FACTORY_ARCH:
        recorded = config.get("factory")
        if factory is None:
            raise UserInputError(
                f"the network of {path} is built by {recorded}; code is not run because a file "
                f"names it, so give --model {recorded} if you trust it"
            )
        config = {**config, "factory": factory}
    return Checkpoint(
        state_dict=dict(state),  # type: ignore[arg-type]
        arch=arch,
        config=config,
        meta=content.get("meta") or {},
        sha256=sha256,
    )


def _foreign_state(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not _is_state(content):
        content = next((content[k] for k in WEIGHT_KEYS if _is_state(content.get(k))), content)
    if not _is_state(content):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
        raise UserInputError(
            f"checkpoint {path} holds no weights: found {type(content).__name__} ({found}); "
            f"expected a state_dict, alone or under one of {', '.join(WEIGHT_KEYS)}"
        )
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _foreign_meta(content: Any) -> dict[str, Any]:
    """The plain numbers and words that stood beside the weights, such as `acc` and `epoch`."""
    if not isinstance(content, Mapping):
        return {}
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in content.items()}
    kept = {k: v for k, v in plain.items() if isinstance(v, bool | int | float | str)}
    return {"source": kept} if kept else {}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _unreadable(path: Path, err: Exception) -> UserInputError:
    return UserInputError(
        f"checkpoint {path} cannot be read ({_first_lines(err)}); expected a file written by "
        "torch.save or safetensors, so it may be truncated or of another kind: fetch it again"
    )


def _first_lines(err: Exception, limit: int = 200) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= limit else text[:limit] + "…"


def _blocked_global(err: Exception) -> str:
    words = str(err).split("GLOBAL ")
    return words[1].split()[0] if len(words) > 1 else "not only tensors"
