"""Multiply-adds and parameters of a network, in two conventions that are never mixed.

`macs`: every multiply-add of a convolution or linear layer counts once, for one image; bias,
normalisation, activation and pooling count nothing. Modules with arithmetic of their own tell it
through a method `own_macs(inputs, output) -> int`, or through an entry of `MAC_RULES`.

`flops_log_convention`: what published slimming logs print as "FLOPs". Multiply-adds as well (not
twice that), plus one operation per output of a convolution with bias, two per element of a
BatchNorm, and prod(in / out) + 1 per output of adaptive average pooling. Counted by thop 0.1.1 with
`custom_ops` that restore these two rules, which later versions of thop changed.

Worked example, Conv2d(3, 4, 3, padding=1) with bias on an 8x8 image: 4*8*8 outputs, 3*3*3
multiply-adds each, so 6,912 macs, and 6,912 + 256 in the convention of the log.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from compress.measure._meta_copy import Forward, on_copy
from compress.optional import require

__all__ = [
    "MAC_RULES",
    "MacRule",
    "ModelCounts",
    "count",
    "count_macs",
    "count_params",
    "log_flops_line",
    "macs_by_layer",
    "macs_rules",
]

MacRule = Callable[[nn.Module, tuple[Any, ...], Any], int]


@dataclass(frozen=True, kw_only=True)
class ModelCounts:
    """What one image costs.

    Attributes:
        macs: multiply-adds of convolutions, linear layers and modules that tell their own.
        flops_log_convention: operations by the counting rule of the log; see the module.
        params: elements of all parameters.
        output_shape: shape of the first tensor that the network returns, batch of one included.
        uncounted: names of layer types that hold parameters and for which no rule exists, sorted;
            their multiply-adds are missing in `macs`.
    """

    macs: int
    flops_log_convention: int
    params: int
    output_shape: tuple[int, ...]
    uncounted: tuple[str, ...]


def count(model: nn.Module, image_shape: tuple[int, int, int]) -> ModelCounts:
    """Count multiply-adds, log-convention FLOPs and parameters for one image (C, H, W).

    The model is neither run nor changed: its mode, gradients, hooks and buffers stay as they are.

    Raises:
        UnsupportedModelError: the network cannot be run on an image of this shape.
        ToolchainError: thop is not installed.

    >>> count(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), (3, 8, 8)).macs
    6912
    """
    macs, output_shape = on_copy(model, image_shape, _macs_and_shape)
    return ModelCounts(
        macs=macs,
        flops_log_convention=on_copy(model, image_shape, _thop_flops),
        params=count_params(model),
        output_shape=output_shape,
        uncounted=_uncounted(model),
    )


def count_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds for one image (C, H, W); milliseconds, for searches.

    Raises:
        UnsupportedModelError: the network cannot be run on an image of this shape.
    """
    macs, _ = on_copy(model, image_shape, _macs_and_shape)
    return macs


def macs_by_layer(
    model: nn.Module, image_shape: tuple[int, int, int], run: Forward | None = None
) -> dict[str, int]:
    """Return the multiply-adds of every layer that has some, by name, for one image (C, H, W).

    Args:
        model: left as it is.
        image_shape: (C, H, W).
        run: `run(copy, image)` runs the copy of the network in another way than by its forward.

    Raises:
        UnsupportedModelError: the network cannot be run on an image of this shape.
    """
    return on_copy(model, image_shape, lambda twin, image: _run_counted(twin, image, run)[0])


def macs_rules(model: nn.Module) -> dict[str, Callable[..., int]]:
    """Return for every layer with multiply-adds, by name, what counts a call of it.

    A rule takes the module, its inputs and its output, and counts those of all images together.
    """
    rules = {name: _rule_for(module) for name, module in model.named_modules()}
    return {n: rule for n, rule in rules.items() if rule is not None and rule is not _no_macs}


def count_params(model: nn.Module) -> int:
    """Return the elements of all parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def log_flops_line(counts: ModelCounts) -> str:
    """Return the two console lines of the log, such as "FLOPs= 15.507270656G".

    The figures are `str(x / 1e9)` and `str(x / 1e6)`, without a fixed number of digits.
    """
    return f"FLOPs= {counts.flops_log_convention / 1e9}G\nparams= {counts.params / 1e6}M"


def _conv_macs(module: Any, inputs: tuple[Any, ...], output: Tensor) -> int:
    taps = math.prod(module.weight.shape[1:])  # Cin/groups * kernel
    return output.numel() * taps


def _conv_transpose_macs(module: Any, inputs: tuple[Any, ...], output: Tensor) -> int:
    taps = math.prod(module.weight.shape[1:])  # Cout/groups * kernel
    return inputs[0].numel() * taps


def _linear_macs(module: nn.Linear, inputs: tuple[Any, ...], output: Tensor) -> int:
    return output.numel() * module.in_features


def _attention_macs(module: nn.MultiheadAttention, inputs: tuple[Any, ...], output: Any) -> int:
    """Count the four projections, as those of an attention made of linear layers."""
    tokens = output[0].numel()
    key, value = inputs[1:3] if len(inputs) > 2 else (output[0], output[0])
    return (2 * tokens + key.numel() + value.numel()) * module.embed_dim


def _no_macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    return 0


# Rules by type; a subclass takes the rule of its nearest base. Extend it for layers of your own.
MAC_RULES: dict[type[nn.Module], Callable[..., int]] = {
    nn.Conv1d: _conv_macs,
    nn.Conv2d: _conv_macs,
    nn.Conv3d: _conv_macs,
    nn.ConvTranspose1d: _conv_transpose_macs,
    nn.ConvTranspose2d: _conv_transpose_macs,
    nn.ConvTranspose3d: _conv_transpose_macs,
    nn.Linear: _linear_macs,
    nn.MultiheadAttention: _attention_macs,
    nn.modules.batchnorm._BatchNorm: _no_macs,
    nn.modules.instancenorm._InstanceNorm: _no_macs,
    nn.GroupNorm: _no_macs,
    nn.LayerNorm: _no_macs,
    nn.RMSNorm: _no_macs,
    nn.PReLU: _no_macs,
    nn.Embedding: _no_macs,
}


def _rule_for(module: nn.Module) -> Callable[..., int] | None:
    if callable(getattr(module, "own_macs", None)):
        return _tell_own_macs
    return next((MAC_RULES[base] for base in type(module).__mro__ if base in MAC_RULES), None)


def _tell_own_macs(module: Any, inputs: tuple[Any, ...], output: Any) -> int:
    return module.own_macs(inputs, output)


def _macs_and_shape(twin: nn.Module, image: Tensor) -> tuple[int, tuple[int, ...]]:
    by_layer, output = _run_counted(twin, image)
    return sum(by_layer.values()), _first_shape(output)


def _run_counted(
    twin: nn.Module, image: Tensor, run: Forward | None = None
) -> tuple[dict[str, int], Any]:
    by_layer: dict[str, int] = {}

    def counting(name: str, rule: Callable[..., int]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            by_layer[name] = by_layer.get(name, 0) + rule(module, inputs, output)

        return hook

    for name, rule in macs_rules(twin).items():
        twin.get_submodule(name).register_forward_hook(counting(name, rule))
    return by_layer, run(twin, image) if run else twin(image)


def _first_shape(output: Any) -> tuple[int, ...]:
    return next((tuple(tensor.shape) for tensor in _tensors(output)), ())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _uncounted(model: nn.Module) -> tuple[str, ...]:
    return tuple(sorted({type(m).__name__ for m in model.modules() if _is_uncounted(m)}))


def _is_uncounted(module: nn.Module) -> bool:
    if _rule_for(module) is not None:
        return False
    if isinstance(module, nn.MultiheadAttention):  # reads its linear layer without calling it
        return True
    is_leaf = next(module.children(), None) is None
    return is_leaf and next(module.parameters(), None) is not None


def _thop_flops(twin: nn.Module, image: Tensor) -> int:
    _unshare_(twin)
    flops, _ = _thop().profile(twin, inputs=(image,), custom_ops=_custom_ops(twin), verbose=False)
    return int(flops)


def _thop() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # thop imports distutils, which is deprecated
        return require("thop", "counting FLOPs by the rule of the log")


def _unshare_(twin: nn.Module) -> None:
    """Give every name a module of its own: thop counts a module once for each name it has."""
    seen: set[int] = set()
    for name, module in list(twin.named_modules(remove_duplicate=False)):
        if id(module) in seen:
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, copy.deepcopy(module))
        seen.add(id(module))


def _custom_ops(twin: nn.Module) -> dict[type[nn.Module], Callable[..., None]]:
    """Thop looks rules up by exact type, so the rule of a base is named for each type in use."""
    ops: dict[type[nn.Module], Callable[..., None]] = {}
    for module in twin.modules():
        if callable(getattr(module, "own_macs", None)):
            ops[type(module)] = _thop_op(_tell_own_macs)
        elif isinstance(module, nn.modules.conv._ConvNd):
            ops[type(module)] = _thop_op(_log_conv)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            ops[type(module)] = _thop_op(_log_batchnorm)
    return ops


def _thop_op(rule: Callable[..., int]) -> Callable[..., None]:
    def op(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        module.total_ops += rule(module, inputs, output)  # a buffer that thop put there

    return op


def _log_conv(module: Any, inputs: tuple[Any, ...], output: Tensor) -> int:
    taps = module.in_channels // module.groups * math.prod(module.kernel_size)
    return output.numel() * (taps + (module.bias is not None))


def _log_batchnorm(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    return 2 * inputs[0].numel()
