"""Rules for the transforms themselves: DFT and STFT, of opset 17 and of opset 20."""

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.export.fourier.axis_map import AxisMap, Dft, Part, Rows, Scale
from compress.export.fourier.context import Context
from compress.export.fourier.plan import form_of
from compress.export.fourier.waves import Form, Wave

if TYPE_CHECKING:
    import onnx

__all__ = ["dft", "stft"]

INVERSE_WAY_OUT = "give the transform a fixed length, or export with fixed sizes but the batch"


def dft(context: Context, node: "onnx.NodeProto") -> bool:
    """DFT: forward or inverse, whole or half, of any constant length along any constant axis."""
    attributes = context.attributes(node)
    inverse, onesided = attributes.get("inverse", 0), attributes.get("onesided", 0)
    wave = _complex(context, node.input[0])
    axis = _axis(context, node, attributes, len(wave.base) + 1)
    n = wave.shape[axis]
    length = _dft_length(context, node, n, half=bool(inverse and onesided))
    if n is None:
        raise context.writer.fail(
            f"it transforms axis {axis}, whose length is not constant", remedy=INVERSE_WAY_OUT
        )
    if inverse and onesided:
        wave = wave.after(axis, Rows.mirrored(n, length), Dft(length=length, inverse=True), Part())
        context.show(node.output[0], wave, Form.REAL, len(wave.base))
        return True
    if length != n:
        wave = wave.after(axis, Rows.first(length, n))
    wave = wave.after(axis, Dft(length=length, inverse=bool(inverse)))
    if onesided:
        wave = wave.after(axis, Rows.first(length // 2 + 1, length))
    context.show(node.output[0], wave, Form.PAIR, len(wave.base))
    return True


def stft(context: Context, node: "onnx.NodeProto") -> bool:
    """STFT: a convolution with the windowed transform, or the transform of frames, if faster."""
    signal = _complex(context, node.input[0])
    hop, length, window = _framing(context, node, signal)
    onesided = context.attributes(node).get("onesided", 1) and signal.imaginary is None
    bins = length // 2 + 1 if onesided else length
    samples = signal.shape[1]
    count = None if samples is None else (samples - length) // hop + 1
    axis_map = AxisMap(length).then(Scale(values=tuple(map(float, window))))
    axis_map = axis_map.then(Dft(length=length, inverse=False)).then(Rows.first(bins, length))
    signals = (count or 1) * prod(n for n in signal.base[:1] if n is not None)
    form = form_of(axis_map, signals, real_in=signal.imaginary is None)
    if form != "direct" and count is not None and signal.imaginary is None:
        wave = _framed(context, signal, hop, length, count)
        wave = wave.after(2, *axis_map.factors)
    else:
        wave = _convolved(context, signal, hop, axis_map, count)
    context.show(node.output[0], wave, Form.PAIR, 3)
    return True


def _complex(context: Context, name: str) -> Wave:
    """Return a tensor with parts on its last axis, as ONNX has them, as a wave."""
    view, writer = context.views.get(name), context.writer
    if view is not None and view.at == view.rank - 1:
        if view.form is Form.PAIR or (view.form is Form.REAL and view.wave.is_real):
            return view.wave
        return Wave(real=context.part(view, view.component), imaginary=None, base=view.wave.shape)
    name = context.tensor(name)
    shape = writer.shape(name)
    if shape[-1] == 1:
        return Wave(real=writer.squeezed(name, -1, "real"), imaginary=None, base=shape[:-1])
    if shape[-1] != 2:
        raise writer.fail(
            f"its input {name} has shape {list(shape)}; expected 1 or 2 as its last size, which "
            "are real and imaginary part"
        )
    parts = []
    for component, label in enumerate(("real", "imaginary")):
        index = writer.constant(np.array(component, np.int64), "index")
        axis = len(shape) - 1
        parts.append(writer.emit("Gather", [name, index], shape[:-1], label, axis=axis))
    return Wave(real=parts[0], imaginary=parts[1], base=shape[:-1])


def _axis(context: Context, node: "onnx.NodeProto", attributes: dict[str, Any], rank: int) -> int:
    """Return the axis of a DFT, from the front."""
    axis: int | None = attributes.get("axis", 1)  # opset 17
    if "axis" not in attributes and context.writer.opset >= 20:
        axis = -2
        if len(node.input) > 2 and node.input[2]:
            axis = context.known.integer(node.input[2])
    if axis is None:
        raise context.writer.fail(
            f"its axis {node.input[2]} is computed",
            remedy="name the axis as a number in the network, and export it again",
        )
    if not -rank <= axis < rank or axis % rank == rank - 1:
        raise context.writer.fail(
            f"its axis is {axis} of {rank}; expected one of the signal, not that of the parts"
        )
    return axis % rank


def _dft_length(context: Context, node: "onnx.NodeProto", n: int | None, *, half: bool) -> int:
    name = node.input[1] if len(node.input) > 1 else ""
    length = context.known.integer(name) if name else None
    if not name and n is not None:
        length = 2 * (n - 1) if half else n
    if length is None or length < 1:
        what = (
            f"its length {name} is computed" if name else "the length of its axis is not constant"
        )
        what = what if length is None else f"its length is {length}"
        raise context.writer.fail(what, remedy=INVERSE_WAY_OUT)
    return length


def _framing(
    context: Context, node: "onnx.NodeProto", signal: Wave
) -> tuple[int, int, NDArray[np.float64]]:
    """Return hop, frame length and window of an STFT."""
    names = [*node.input, "", "", ""]
    hop = context.known.integer(names[1])
    window = context.known.array(names[2]) if names[2] else None
    length = context.known.integer(names[3]) if names[3] else None
    if names[2] and window is None:
        raise context.writer.fail(
            f"its window {names[2]} is computed from the input",
            remedy="make the window a buffer of the network, and export it again",
        )
    if length is None and not names[3]:
        length = len(window) if window is not None else signal.shape[1]
    if hop is None or length is None:
        what = "step" if hop is None else "length"
        raise context.writer.fail(
            f"its frame {what} is not constant",
            remedy="name it as a number in the network, and export it again",
        )
    if window is None:
        window = np.ones(length)
    if len(window) != length:
        raise context.writer.fail(f"its window has {len(window)} values for frames of {length}")
    return hop, length, window.astype(np.float64)


def _framed(context: Context, signal: Wave, hop: int, length: int, count: int) -> Wave:
    """Write the frames (B, count, length) of a signal (B, samples)."""
    writer = context.writer
    name = context.products.part(signal, 0)
    assert name is not None
    places = np.arange(count)[:, None] * hop + np.arange(length)
    shape = (*writer.shape(name)[:1], count, length)
    index = writer.constant(places.astype(np.int64), "places")
    frames = writer.emit("Gather", [name, index], shape, "frames", axis=1)
    return Wave(real=frames, imaginary=None, base=shape)


def _convolved(
    context: Context, signal: Wave, hop: int, axis_map: AxisMap, count: int | None
) -> Wave:
    """Write the transform of every frame as a convolution; the wave is (B, count, bins)."""
    writer, blocks = context.writer, axis_map.blocks
    rows = [
        context.writer.unsqueezed(part, 1, "row")
        for part in context.products.parts(signal)
        if part is not None
    ]
    x = rows[0] if len(rows) == 1 else writer.concatenated(rows, 1, "rows")
    parts = []
    for component in (0, 1):
        kernels = blocks.row(component)[: len(rows)]
        zeros = np.zeros((axis_map.size, axis_map.n))
        kernel = np.stack([zeros if k is None else k for k in kernels], axis=1)
        weight = writer.constant(kernel.astype(writer.dtype(x)), "kernel")
        shape = (writer.shape(x)[0], axis_map.size, count)
        found = writer.emit("Conv", [x, weight], shape, "bins", strides=[hop])
        parts.append(writer.transpose(found, [0, 2, 1], "frames"))
    return Wave(real=parts[0], imaginary=parts[1], base=writer.shape(parts[0]))
