"""Rules for nodes that compute with the values of complex tensors, part by part.

A product with a number is kept as a gain, and one with a window becomes part of the transform next
to it. Everything else elementwise is done on each part, so that no pair has to be put together.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import Scale
from compress.export.fourier.context import Context
from compress.export.fourier.waves import Form, View, Wave
from compress.export.fourier.writer import Shape

if TYPE_CHECKING:
    import onnx

__all__ = ["ELEMENTWISE", "elementwise", "norm", "overlap_added"]

ELEMENTWISE_NAMES = """
    Abs Add Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual
    HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Min Mish Mul Neg Not And Or Pow
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Sub Tanh
    ThresholdedRelu Where Xor IsNaN Mod
"""
ELEMENTWISE = frozenset(ELEMENTWISE_NAMES.split())


def elementwise(context: Context, node: "onnx.NodeProto") -> bool:
    """Any elementwise operator: a gain, a window, or the same on each part."""
    if node.op_type in ("Mul", "Div", "Neg") and (_gain(context, node) or _window(context, node)):
        return True
    views = [context.views.get(name) for name in node.input]
    first = next((view for view in views if view is not None), None)
    if first is None or first.at is None:
        return False
    if any(v and (v.at != first.at or v.rank != first.rank) for v in views):
        return False
    pair = any(view is not None and view.form is Form.PAIR for view in views)
    pair = pair or any(_is_pair(context, name, first) for name in node.input)
    names = []
    for component in (0, 1) if pair else (0,):
        operands = [_operand(context, name, component, first) for name in node.input]
        if any(operand is False for operand in operands):
            return False
        names.append(_emitted(context, node, [str(operand) for operand in operands]))
    wave = Wave(
        real=names[0],
        imaginary=names[1] if pair else None,
        base=context.writer.shape(names[0]),
    )
    context.show(node.output[0], wave, Form.PAIR if pair else Form.REAL, first.at)
    return True


def norm(context: Context, node: "onnx.NodeProto") -> bool:
    """ReduceL2, ReduceSumSquare and ReduceSum of a pair over its parts: magnitude, power, sum."""
    view = context.views.get(node.input[0])
    attributes = context.attributes(node)
    axes = attributes.get("axes")
    if len(node.input) > 1:
        axes = context.known.integers(node.input[1])
    if view is None or view.form is not Form.PAIR or axes is None:
        return False
    if [axis % view.rank for axis in axes] != [view.at]:
        return False
    parts: list[str] = [part for part in context.products.parts(view.wave) if part is not None]
    if not parts:
        return False
    emit, shape = context.writer.emit, context.writer.shape(parts[0])
    if node.op_type != "ReduceSum":
        parts = [emit("Mul", [part, part], shape, "square") for part in parts]
    total = parts[0] if len(parts) == 1 else context.writer.add(parts[0], parts[1], "sum")
    if node.op_type == "ReduceL2":
        total = emit("Sqrt", [total], shape, "magnitude")
    at = view.at if attributes.get("keepdims", 1) else None
    if at is None:
        context.aliases[node.output[0]] = total
    else:
        context.show(node.output[0], Wave(real=total, imaginary=None, base=shape), Form.REAL, at)
    return True


def overlap_added(context: Context, node: "onnx.NodeProto") -> bool:
    """Overlap-add of frames of one channel (Col2Im): a transposed convolution with the transform.

    The frames are not written: their transform and window are the kernel.
    """
    view = context.views.get(node.input[0])
    size = context.known.integers(node.input[1])
    block = context.known.integers(node.input[2])
    attributes = context.attributes(node)
    given = attributes.get("strides", [1, 1])
    plain = not any(attributes.get("pads", [])) and set(attributes.get("dilations", [1])) == {1}
    if size is None or block is None or len(block) != 2 or block[0] != 1 or not plain:
        return False
    name = node.input[0]
    shape = view.wave.shape if view else context.writer.facts.shapes.get(name)
    if shape is None or len(shape) != 3 or shape[1] != block[1] or size[0] != 1:
        return False
    if view is None:
        view = View(
            wave=Wave(real=context.tensor(name), imaginary=None, base=shape), form=Form.REAL
        )
    if view.at is not None:
        return False
    wave = _added(context, view, given[1])
    whole = context.writer.unsqueezed(wave, 2, "row")
    last = context.writer.shape(whole)[-1]
    if last is not None and last != size[1]:
        whole = context.writer.padded(whole, 0, size[1] - last, 3, "padded")
    context.aliases[node.output[0]] = whole
    return True


def _added(context: Context, view: View, hop: int) -> str:
    """Write the sum (B, 1, samples) of frames (B, length, count) that start every `hop` samples."""
    wave, writer = view.wave, context.writer
    last = wave.steps[-1] if wave.steps else None
    fused = last is not None and last.axis == 1 and last.map.n * last.map.size <= 1 << 22
    if last is not None and fused:
        inner = replace(wave, steps=wave.steps[:-1], gain=1.0)
        matrices = last.map.blocks.row(view.component)
    else:
        inner, matrices = wave, (np.eye(wave.shape[1] or 0), None)
    total: str | None = None
    for which, matrix in enumerate(matrices):
        part = None if matrix is None else context.products.part(inner, which)
        if matrix is None or part is None:
            continue
        kernel = (matrix.T * (wave.gain if fused else 1.0))[:, None]  # (values, 1, length)
        weight = writer.constant(kernel.astype(writer.dtype(part)), "kernel")
        batch, _, count = writer.shape(part)
        length = None if count is None else (count - 1) * hop + kernel.shape[2]
        term = writer.emit(
            "ConvTranspose", [part, weight], (batch, 1, length), "added", strides=[hop]
        )
        total = term if total is None else writer.add(total, term, "sum")
    if total is None:
        raise writer.fail("the frames are zero")
    return total


def _gain(context: Context, node: "onnx.NodeProto") -> bool:
    """Take a product with one number."""
    if node.op_type == "Neg":
        view, gain = context.views.get(node.input[0]), -1.0
    else:
        names = list(node.input)
        if node.op_type == "Mul" and context.views.get(names[0]) is None:
            names.reverse()
        view, value = context.views.get(names[0]), context.known.array(names[1])
        if value is None or value.size != 1 or (view is not None and value.ndim > view.rank):
            return False
        number = float(value.reshape(-1)[0])
        gain = number if node.op_type == "Mul" else 1 / number if number else float("nan")
    if view is None or not np.isfinite(gain):
        return False
    context.views[node.output[0]] = replace(view, wave=view.wave.times(gain))
    return True


def _window(context: Context, node: "onnx.NodeProto") -> bool:
    """Take a product with constants along the axis of the last map of a real tensor."""
    names = list(node.input)
    if node.op_type == "Mul" and context.views.get(names[0]) is None:
        names.reverse()
    view = context.views.get(names[0])
    value = context.known.array(names[1]) if len(names) > 1 else None
    if view is None or value is None or view.at is not None or not view.wave.steps:
        return False
    axis = view.wave.steps[-1].axis
    sizes = [1] * (view.rank - value.ndim) + list(value.shape)
    if len(sizes) != view.rank or any(n != 1 for i, n in enumerate(sizes) if i != axis):
        return False
    if sizes[axis] != view.wave.shape[axis]:
        return False
    weights: NDArray[Any] = value.reshape(-1).astype(np.float64)
    if node.op_type == "Div":
        if not weights.all():
            return False
        weights = 1 / weights
    wave = view.wave.after(axis, Scale(values=tuple(map(float, weights))))
    context.views[node.output[0]] = replace(view, wave=wave)
    return True


def _is_pair(context: Context, name: str, like: View) -> bool:
    """Whether a tensor that is no view has two entries along the axis of the parts."""
    if not name or context.views.get(name) is not None:
        return False
    shape = context.writer.facts.shapes.get(name)
    place = None if shape is None else (like.at or 0) - (like.rank - len(shape))
    return shape is not None and place is not None and place >= 0 and shape[place] == 2


def _operand(context: Context, name: str, component: int, like: View) -> str | bool:
    """Return what stands in for an operand on one part; False where nothing does."""
    if not name:
        return ""
    view = context.views.get(name)
    if view is not None:
        return context.part(view, component if view.form is Form.PAIR else view.component)
    shape = context.writer.facts.shapes.get(name)
    if shape is None:
        return False
    name = context.tensor(name)
    place = (like.at or 0) - (like.rank - len(shape))
    if place < 0:  # it reaches only axes on the right of the parts
        return name
    value = context.known.array(name)
    if shape[place] == 1:
        if value is not None:
            return context.writer.constant(value.squeeze(place), "part")
        return context.writer.squeezed(name, place, "part")
    if shape[place] != 2:
        return False
    if value is not None:
        return context.writer.constant(value.take(component, place), "part")
    index = context.writer.constant(np.array(component, np.int64), "index")
    rest = (*shape[:place], *shape[place + 1 :])
    return context.writer.emit("Gather", [name, index], rest, "part", axis=place)


def _emitted(context: Context, node: "onnx.NodeProto", operands: Sequence[str]) -> str:
    facts = context.writer.facts
    shapes = [facts.shapes.get(name, ()) for name in operands if name]
    kind = node.output[0] if node.output[0] in facts.types else None
    return context.writer.emit(
        node.op_type,
        list(operands),
        _broadcast(shapes),
        node.op_type.lower(),
        like=kind,
        **context.attributes(node),
    )


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    sizes = []
    for column in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1):
        fixed = [n for n in column if n not in (1, None)]
        sizes.append(fixed[0] if fixed else None if None in column else 1)
    return tuple(sizes[::-1])
