"""A network whose complex tensors are pairs of real ones.

torch's exporter knows few operators on complex tensors: it fails at a complex einsum, at a slice
that is assigned to, at a number with an imaginary part. So a network that holds complex tensors is
traced to the operators of torch, these are run once more with `Pair` in place of every complex
tensor, and that run is what is exported. A network without complex tensors is left alone.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import UnsupportedModelError
from compress.export.real_form import transforms
from compress.export.real_form.rules import MOVES, RULES, on_each_part
from compress.export.real_form.transforms import inverse_framing
from compress.export.real_form.values import Block, Pair, Placed, Stacked, dense

__all__ = ["RealForm", "real_form"]

WHOLE = 1 << 62  # a slice up to here goes to the end
PLACES = ("layout", "device", "pin_memory", "memory_format", "non_blocking", "copy")
SMALLEST_ENVELOPE = 1e-11  # as torch.istft asks


def real_form(program: torch.export.ExportedProgram) -> "RealForm | None":
    """Return a traced network in real numbers; None where it has no complex tensors.

    Args:
        program: of a network whose parameters ask for no gradients.

    Raises:
        UnsupportedModelError: an operator has no form on pairs; the message names its module.
    """
    if not any(_is_complex(node.meta.get("val")) for node in program.graph.nodes):
        return None
    table = torch.export.default_decompositions()
    kept = {op: table[op] for op in list(table) if op.name().startswith("aten::fft_")}
    return RealForm(program.run_decompositions(kept))


class RealForm(nn.Module):
    """The network: real inputs to real outputs, by the graph of a program.

    Args:
        program: decomposed as far as transforms go.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.traced = program.module(check_guards=False)
        for name, tensor in [*self.traced.named_parameters(), *self.traced.named_buffers()]:
            if tensor.is_complex():
                self._divide_(name, tensor)
        for node in self.traced.graph.nodes:
            if node.op == "call_function" and _name(node.target) == "istft":
                self._lay_out_envelope_(node)

    def forward(self, x: Tensor) -> Any:
        """Run the graph on pairs."""
        found = _OnPairs(self).run(x)
        if isinstance(found, list | tuple) and len(found) == 1:
            found = found[0]
        _expect_real(found)
        return found

    def constant(self, target: str) -> Tensor | Pair:
        """Return a parameter or buffer of the graph."""
        name = target.replace(".", "__")
        if hasattr(self, f"{name}__real"):
            return Pair(getattr(self, f"{name}__real"), getattr(self, f"{name}__imaginary"))
        found: Any = self.traced
        for part in target.split("."):
            found = getattr(found, part)
        return found

    def _divide_(self, target: str, tensor: Tensor) -> None:
        """Store a complex parameter as two real ones."""
        name, value = target.replace(".", "__"), tensor.detach()
        self.register_buffer(f"{name}__real", value.real.contiguous())
        self.register_buffer(f"{name}__imaginary", value.imag.contiguous())
        parent, _, child = target.rpartition(".")
        setattr(self.traced.get_submodule(parent), child, None)

    def _lay_out_envelope_(self, node: fx.Node) -> None:
        """Compute what an inverse short-time transform is divided by, which no input changes."""
        given = inverse_framing(node.args, node.kwargs)
        frames = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
        if not isinstance(frames, int):
            raise NotImplementedError("an inverse short-time transform of any number of frames")
        window = self._value(given.window)
        envelope = transforms.overlap_envelope(window, given.n_fft, given.hop, frames)
        first, stop = given.span(frames)
        if not envelope[first:stop].abs().min() > SMALLEST_ENVELOPE:
            raise NotImplementedError("an inverse short-time transform whose windows leave gaps")
        self.register_buffer(f"{node.name}__envelope", envelope)

    def _value(self, node: Any) -> Any:
        """Return the value of a node that hangs on no input."""
        if not isinstance(node, fx.Node):
            return node
        if node.op == "get_attr":
            return self.constant(str(node.target))
        if node.op != "call_function":
            raise NotImplementedError("an inverse short-time transform with a computed window")
        args: Any = fx.map_arg(node.args, self._value)
        kwargs: Any = fx.map_arg(node.kwargs, self._value)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class _OnPairs(fx.Interpreter):
    """Runs a graph with pairs in place of complex tensors."""

    def __init__(self, network: RealForm) -> None:
        super().__init__(network.traced, garbage_collect_values=False)
        self.network = network

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; what has no form on pairs is told with the module that it comes from."""
        try:
            if n.op == "call_function":
                return self._called(n, *self.fetch_args_kwargs_from_env(n))
            return super().run_node(n)
        except NotImplementedError as err:
            raise _unsupported(n, str(err)) from err

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a parameter, a pair where it is complex."""
        return self.network.constant(str(target))

    def _called(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if not (_holds_complex((args, kwargs)) or _is_complex(node.meta.get("val"))):
            return target(*args, **kwargs)
        name = _name(target)
        found = _in_zeros(name, args)
        if found is not None:
            return found
        if name == "select" and isinstance(args[0], Stacked):
            return _selected(*args)
        args, kwargs = _plain((args, kwargs))
        if name == "istft":
            envelope = getattr(self.network, f"{node.name}__envelope")
            return transforms.inverse_short_time(inverse_framing(args, kwargs), args[0], envelope)
        if name in RULES:
            return RULES[name](*args, **{k: v for k, v in kwargs.items() if k not in PLACES})
        if name == "getitem":
            return args[0][args[1]]
        if name in MOVES:
            return on_each_part(target, *args, **kwargs)
        raise NotImplementedError(f"torch's operator {name} on complex tensors")


def _in_zeros(name: str, args: Any) -> Any:
    """Slice zeros with blocks, or put blocks into them; None where that must be done on tensors."""
    if name == "copy" and isinstance(args[0], Placed):
        source = args[1]
        if isinstance(source, Placed) or tuple(source.shape) != tuple(args[0].shape):
            return source if isinstance(source, Placed) else None
        block = Block((0,) * len(source.shape), source)
        return Placed(args[0].shape, args[0].dtype, (block,))
    if name == "slice" and isinstance(args[0], Placed):
        axis, start, stop, step = _bounds(args[0], *args[1:])
        return args[0].sliced(axis, start, stop) if step == 1 else None
    if name == "slice_scatter" and isinstance(args[0], Placed):
        axis, start, stop, step = _bounds(args[0], *args[2:])
        source = args[1]
        if isinstance(source, Pair):
            block = Block((0,) * len(source.shape), source)
            source = Placed(tuple(source.shape), args[0].dtype, (block,))
        return args[0].filled(axis, start, stop, source) if step == 1 else None
    return None


def _bounds(
    value: Placed, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> tuple[int, int, Any, int]:
    axis %= len(value.shape)
    n = value.shape[axis]
    start = 0 if start is None else start
    if start < 0:
        start = start + n
    if stop is None or (isinstance(stop, int) and stop >= WHOLE):
        return axis, start, n, step
    return axis, start, stop + n if stop < 0 else min(stop, n), step


def _selected(x: Stacked, axis: int, index: int) -> Any:
    if axis in (-1, len(x.pair.shape)):
        return x.pair.whole_imaginary if index % 2 else x.pair.real
    return torch.select(x.tensor(), axis, index)


def _plain(value: Any) -> Any:
    """Return arguments with zeros written; stacked parts only where nothing reads them apart."""
    if isinstance(value, Placed):
        return dense(value)
    if isinstance(value, Stacked):
        return value.tensor()
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _holds_complex(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_complex, value))
    if isinstance(value, dict):
        return any(map(_holds_complex, value.values()))
    return isinstance(value, Pair | Placed | Stacked | complex)


def _is_complex(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_complex, value))
    return isinstance(value, Tensor) and value.is_complex()


def _expect_real(value: Any) -> None:
    if _holds_complex(value):
        raise UnsupportedModelError(
            "the network gives a complex tensor, which no ONNX runtime passes on; expected real "
            "outputs, so return torch.view_as_real of it, or real and imaginary part"
        )


def _name(target: Any) -> str:
    """Return the name of an operator of torch, without its overload."""
    return str(getattr(target, "__name__", target)).partition(".")[0].removeprefix("aten::")


def _unsupported(node: fx.Node, what: str) -> UnsupportedModelError:
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    where = f" in module {modules[-1]}" if modules else ""
    return UnsupportedModelError(
        f"the network computes {what}{where} (node {node.name}), which has no form in real numbers "
        "here; write that step with real and imaginary part, then export again"
    )
