"""Rules for nodes that move values of complex tensors: they are absorbed, or done on the parts.

Each rule returns whether it took the node; where it did not, its inputs are written out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from compress.export.fourier.axis_map import Rows
from compress.export.fourier.context import Context
from compress.export.fourier.waves import Form, View, Wave, permuted
from compress.export.fourier.writer import Shape

if TYPE_CHECKING:
    import onnx

__all__ = ["concat", "gather", "identity", "pad", "reshape", "slice_", "split", "squeeze"]
__all__ += ["transpose", "unsqueeze"]


def identity(context: Context, node: "onnx.NodeProto") -> bool:
    """Identity: the same wave."""
    context.views[node.output[0]] = context.views[node.input[0]]
    return True


def slice_(context: Context, node: "onnx.NodeProto") -> bool:
    """Slice: one of the parts, or rows of a map."""
    view = context.views.get(node.input[0])
    given = [context.known.integers(name) if name else None for name in node.input[1:]]
    if view is None or any(v is None for v, n in zip(given, node.input[1:], strict=True) if n):
        return False
    starts, stops = given[0] or [], given[1] or []
    axes = given[2] if len(given) > 2 and given[2] is not None else list(range(len(starts)))
    steps = given[3] if len(given) > 3 and given[3] is not None else [1] * len(starts)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        taken = _taken(view, axis % view.rank, slice(start, _stop(stop, step), step))
        if taken is None:
            return False
        view = taken
    context.views[node.output[0]] = view
    return True


def gather(context: Context, node: "onnx.NodeProto") -> bool:
    """Gather of constant places: one of the parts, or rows of a map."""
    places = context.known.array(node.input[1])
    view = context.views.get(node.input[0])
    if view is None and places is not None and places.ndim == 1:
        view = _started(context, node)
    if view is None or places is None or places.ndim > 1:
        return False
    axis = context.attributes(node).get("axis", 0) % view.rank
    n = _length(view, axis)
    if n is None:
        return False
    chosen = [int(place) % n for place in places.reshape(-1)]
    if axis == view.at:
        shown = _parts(view, chosen)
        if shown is None or (shown.form is Form.PAIR and places.ndim == 0):
            return False
        at = view.at if places.ndim else None
        context.views[node.output[0]] = View(wave=shown.wave, form=shown.form, at=at)
        return True
    if places.ndim == 0:
        return False
    context.views[node.output[0]] = _rows(view, axis, Rows(places=tuple(chosen)))
    return True


def split(context: Context, node: "onnx.NodeProto") -> bool:
    """Split of a pair into its parts."""
    view = context.views.get(node.input[0])
    axis = context.attributes(node).get("axis", 0)
    if view is None or axis % view.rank != view.at or view.form is not Form.PAIR:
        return False
    if len(node.output) != 2:
        return False
    for name, form in zip(node.output, (Form.REAL, Form.IMAGINARY), strict=True):
        context.show(name, view.wave, form, view.at)
    return True


def squeeze(context: Context, node: "onnx.NodeProto") -> bool:
    """Squeeze of the axis of the parts."""
    view = context.views.get(node.input[0])
    axes = context.known.integers(node.input[1]) if len(node.input) > 1 else None
    if view is None or axes is None or view.form is Form.PAIR or view.at is None:
        return False
    if [axis % view.rank for axis in axes] != [view.at]:
        return False
    context.show(node.output[0], view.wave, view.form, None)
    return True


def unsqueeze(context: Context, node: "onnx.NodeProto") -> bool:
    """Unsqueeze behind all axes: a real tensor becomes a part of a complex one."""
    name, axes = node.input[0], context.known.integers(node.input[1])
    view = context.views.get(name)
    shape = view.wave.shape if view else context.writer.facts.shapes.get(name)
    if axes is None or len(axes) != 1 or shape is None or (view and view.at is not None):
        return False
    if node.output[0] not in context.feeds_transforms or axes[0] % (len(shape) + 1) != len(shape):
        return False
    if view is None:
        wave = Wave(real=context.tensor(name), imaginary=None, base=shape)
        view = View(wave=wave, form=Form.REAL)
    context.show(node.output[0], view.wave, view.form, len(shape))
    return True


def concat(context: Context, node: "onnx.NodeProto") -> bool:
    """Concat: two parts become a pair; zeros become rows; pairs are concatenated part by part."""
    views = [context.views.get(name) for name in node.input]
    first = next((view for view in views if view is not None), None)
    if first is None or first.at is None:
        return False
    axis = context.attributes(node)["axis"] % first.rank
    if any(v is not None and (v.at != first.at or v.rank != first.rank) for v in views):
        return False
    if axis == first.at:
        return _paired(context, node, first)
    return _zeros_around(context, node, axis) or _concatenated(context, node, axis)


def pad(context: Context, node: "onnx.NodeProto") -> bool:
    """Pad with zeros: rows of a map."""
    view = context.views.get(node.input[0]) or _started(context, node)
    pads = context.known.integers(node.input[1])
    attributes = context.attributes(node)
    value = context.known.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if view is None or pads is None or attributes.get("mode", b"constant") != b"constant":
        return False
    if (len(node.input) > 2 and node.input[2] and value is None) or (
        value is not None and value.any()
    ):
        return False
    axes = list(range(view.rank))
    if len(node.input) > 3 and node.input[3]:
        axes = [axis % view.rank for axis in context.known.integers(node.input[3]) or []]
    for axis, before, behind in zip(axes, pads, pads[len(pads) // 2 :], strict=False):
        if before == behind == 0:
            continue
        n = _length(view, axis)
        if axis == view.at or n is None or before < 0 or behind < 0:
            return False
        places = (*[-1] * before, *range(n), *[-1] * behind)
        view = _rows(view, axis, Rows(places=places))
    context.views[node.output[0]] = view
    return True


def transpose(context: Context, node: "onnx.NodeProto") -> bool:
    """Transpose of the parts; their axis may go anywhere."""
    view = context.views.get(node.input[0])
    if view is None or view.at is None:
        return False
    order = list(context.attributes(node).get("perm", range(view.rank)[::-1]))
    inner = [view.axis_of_wave(axis) for axis in order if axis != view.at]
    axes = [axis for axis in inner if axis is not None]
    parts = context.products.parts(view.wave)
    real, imaginary = (
        None if part is None else context.writer.transpose(part, axes, "turned") for part in parts
    )
    base = permuted(view.wave.shape, axes)
    wave = Wave(real=real, imaginary=imaginary, base=base)
    context.show(node.output[0], wave, view.form, order.index(view.at))
    return True


def reshape(context: Context, node: "onnx.NodeProto") -> bool:
    """Reshape of the parts, where their axis stays the last one."""
    view, sizes = context.views.get(node.input[0]), context.known.integers(node.input[1])
    new = context.writer.facts.shapes.get(node.output[0])
    if view is None or sizes is None or view.at != view.rank - 1 or new is None:
        return False
    if sizes[-1] != (2 if view.form is Form.PAIR else 1):
        return False
    shape = context.writer.constant(np.array(sizes[:-1], np.int64), "shape")

    def reshaped(part: str | None) -> str | None:
        if part is None:
            return None
        allowzero = {k: v for k, v in context.attributes(node).items() if v}
        return context.writer.emit("Reshape", [part, shape], new[:-1], "reshaped", **allowzero)

    real, imaginary = (reshaped(part) for part in context.products.parts(view.wave))
    wave = Wave(real=real, imaginary=imaginary, base=new[:-1])
    context.show(node.output[0], wave, view.form, len(new) - 1)
    return True


def _started(context: Context, node: "onnx.NodeProto") -> View | None:
    """Return a real tensor as a view, where a transform hangs on what a node makes of it."""
    name = node.input[0]
    shape = context.writer.facts.shapes.get(name)
    is_float = context.writer.facts.types.get(name) in ("float32", "float16", "float64")
    if shape is None or not is_float or node.output[0] not in context.feeds_transforms:
        return None
    wave = Wave(real=context.tensor(name), imaginary=None, base=shape)
    return View(wave=wave, form=Form.REAL)


def _stop(stop: int, step: int) -> int | None:
    """Return the end of a slice as Python has it; ONNX says None by a very small number."""
    return None if step < 0 and stop < -(1 << 30) else stop


def _length(view: View, axis: int) -> int | None:
    inner = view.axis_of_wave(axis)
    if inner is None:
        return 2 if view.form is Form.PAIR else 1
    return view.wave.shape[inner]


def _taken(view: View, axis: int, part: slice) -> View | None:
    n = _length(view, axis)
    if n is None:
        everything = part.start == 0 and part.step == 1 and (part.stop or 0) >= (1 << 31) - 1
        return view if everything else None
    places = range(n)[part]
    if axis == view.at:
        return _parts(view, list(places))
    if places == range(n):
        return view
    return _rows(view, axis, Rows(places=tuple(places)))


def _parts(view: View, places: Sequence[int]) -> View | None:
    """Return a view of chosen parts of a view; None where they are neither one nor the pair."""
    if view.form is not Form.PAIR:
        return view if list(places) == [0] else None
    forms = {(0, 1): Form.PAIR, (0,): Form.REAL, (1,): Form.IMAGINARY}
    form = forms.get(tuple(places))
    return None if form is None else View(wave=view.wave, form=form, at=view.at)


def _rows(view: View, axis: int, rows: Rows) -> View:
    inner = view.axis_of_wave(axis)
    assert inner is not None
    return View(wave=view.wave.after(inner, rows), form=view.form, at=view.at)


def _paired(context: Context, node: "onnx.NodeProto", first: View) -> bool:
    if len(node.input) != 2:
        return False
    views = [context.views.get(name) for name in node.input]
    if any(view is not None and view.form is Form.PAIR for view in views):
        return False
    real, imaginary = views
    both = real is not None and imaginary is not None and real.wave == imaginary.wave
    if both and real.form is Form.REAL and imaginary.form is Form.IMAGINARY:  # type: ignore[union-attr]
        context.show(node.output[0], real.wave, Form.PAIR, first.at)  # type: ignore[union-attr]
        return True
    if real and imaginary and _moved_alike(real, imaginary):
        wave = replace(real.wave, imaginary=imaginary.wave.real)
        context.show(node.output[0], wave, Form.PAIR, first.at)
        return True
    parts = [_part_of(context, name, first) for name in node.input]
    shapes: list[Shape] = [context.writer.shape(part) for part in parts if part is not None]
    if not shapes:
        return False
    wave = Wave(real=parts[0], imaginary=parts[1], base=shapes[0])
    context.show(node.output[0], wave, Form.PAIR, first.at)
    return True


def _moved_alike(real: View, imaginary: View) -> bool:
    """Whether two real tensors are still to be moved in the same way."""
    waves = (real.wave, imaginary.wave)
    return (
        real.form is imaginary.form is Form.REAL
        and all(wave.imaginary is None and wave.is_real for wave in waves)
        and replace(waves[0], real=None) == replace(waves[1], real=None)
    )


def _part_of(context: Context, name: str, like: View) -> str | None:
    """Write a tensor with one part as that part."""
    view = context.views.get(name)
    if view is not None:
        return context.single(view)
    value = context.known.array(name)
    if value is not None and not value.any():
        return None
    return context.writer.squeezed(context.tensor(name), like.at or 0, "part")


def _zeros_around(context: Context, node: "onnx.NodeProto", axis: int) -> bool:
    """Take a Concat of one view with constant zeros as a padding."""
    views = [context.views.get(name) for name in node.input]
    place = next(i for i, view in enumerate(views) if view is not None)
    view = views[place]
    sizes = []
    for i, name in enumerate(node.input):
        value = context.known.array(name) if i != place else None
        if i != place and (value is None or value.any()):
            return False
        sizes.append(0 if value is None else value.shape[axis])
    assert view is not None
    n = _length(view, axis)
    if n is None:
        return False
    places = (*[-1] * sum(sizes[:place]), *range(n), *[-1] * sum(sizes[place:]))
    context.views[node.output[0]] = _rows(view, axis, Rows(places=places))
    return True


def _concatenated(context: Context, node: "onnx.NodeProto", axis: int) -> bool:
    views = [context.views.get(name) for name in node.input]
    shown = [view for view in views if view is not None]
    if len(shown) != len(views) or any(view.form is not shown[0].form for view in shown):
        return False
    inner = shown[0].axis_of_wave(axis)
    assert inner is not None
    if shown[0].form is not Form.PAIR:
        parts = [context.part(view, view.component) for view in shown]
        name = context.writer.concatenated(parts, inner, "joined")
        wave = Wave(real=name, imaginary=None, base=context.writer.shape(name))
        context.show(node.output[0], wave, Form.REAL, shown[0].at)
        return True
    real, imaginary = (
        context.writer.concatenated([context.part(v, which) for v in shown], inner, "joined")
        for which in (0, 1)
    )
    wave = Wave(real=real, imaginary=imaginary, base=context.writer.shape(real))
    context.show(node.output[0], wave, Form.PAIR, shown[0].at)
    return True
