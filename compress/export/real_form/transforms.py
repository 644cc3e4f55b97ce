"""Transforms of pairs, written as the DFT and STFT of ONNX, which `compress.export.fourier` lowers.

torch's normalisations are numbers: 0 does nothing, 1 divides by √n, 2 divides by n, n the product
of all lengths. ONNX divides an inverse transform by its length itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.errors import UnsupportedModelError
from compress.export.real_form.values import Pair

__all__ = ["InverseFraming", "complex_to_complex", "complex_to_real", "inverse_framing"]
__all__ += ["inverse_short_time", "overlap_envelope", "real_to_complex", "short_time"]

OPSET = 18  # that the nodes are written in
ISTFT_ARGUMENTS = (
    "x",
    "n_fft",
    "hop_length",
    "win_length",
    "window",
    "center",
    "normalized",
    "onesided",
    "length",
    "return_complex",
)


def complex_to_complex(x: Pair, axes: Sequence[int], normalisation: int, forward: bool) -> Pair:
    """Return what `aten._fft_c2c` does."""
    count = math.prod(int(x.shape[axis]) for axis in axes)
    for axis in axes:
        x = _dft(x, axis, inverse=not forward)
    return _scaled(x, _factor(normalisation, count) * (1 if forward else count))


def real_to_complex(x: Tensor, axes: Sequence[int], normalisation: int, onesided: bool) -> Pair:
    """Return what `aten._fft_r2c` does: the last axis first, halved if `onesided`."""
    count = math.prod(int(x.shape[axis]) for axis in axes)
    found = _dft(Pair(x), axes[-1], inverse=False, onesided=onesided)
    for axis in axes[:-1]:
        found = _dft(found, axis, inverse=False)
    return _scaled(found, _factor(normalisation, count))


def complex_to_real(x: Pair, axes: Sequence[int], normalisation: int, length: int) -> Tensor:
    """Return what `aten._fft_c2r` does: the last axis last, from a half spectrum."""
    count = length * math.prod(int(x.shape[axis]) for axis in axes[:-1])
    for axis in axes[:-1]:
        x = _dft(x, axis, inverse=True)
    shape = [*x.shape, 1]
    axis = axes[-1] % len(x.shape)
    shape[axis] = length
    found = torch.onnx.ops.symbolic(
        "DFT",
        (_stacked(x), torch.tensor(length)),
        {"axis": axis, "inverse": 1, "onesided": 1},
        dtype=x.real.dtype,
        shape=shape,
        version=OPSET,
    )
    return found.squeeze(-1) * (_factor(normalisation, count) * count)


def short_time(
    signal: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Pair:
    """Return what `aten.stft` does: (B, bins, frames) of a signal (B, samples), not padded.

    Raises:
        NotImplementedError: the frames are aligned to the window.
    """
    if align_to_window:
        raise NotImplementedError("a short-time transform aligned to its window")
    if signal.dim() == 1:
        one = short_time(signal[None], n_fft, hop_length, win_length, window, normalized, onesided)
        return Pair(one.real[0], one.whole_imaginary[0])
    hop = hop_length or n_fft // 4
    whole = torch.ones(win_length or n_fft) if window is None else window
    bins = n_fft // 2 + 1 if onesided is not False else n_fft
    frames = (signal.shape[-1] - n_fft) // hop + 1
    found = torch.onnx.ops.symbolic(
        "STFT",
        (signal.unsqueeze(-1), torch.tensor(hop), _centred(whole, n_fft), torch.tensor(n_fft)),
        {"onesided": int(onesided is not False)},
        dtype=signal.dtype,
        shape=(signal.shape[0], frames, bins, 2),
        version=OPSET,
    ).transpose(1, 2)
    pair = Pair(found.select(-1, 0), found.select(-1, 1))
    return _scaled(pair, n_fft**-0.5 if normalized else 1.0)


@dataclass(frozen=True, kw_only=True)
class InverseFraming:
    """The arguments of an inverse short-time transform: see `torch.istft`."""

    n_fft: int
    hop: int
    window: Any
    center: bool
    normalized: bool
    length: int | None

    def span(self, frames: int) -> tuple[int, int]:
        """Return the first sample that is given, and the one behind the last."""
        whole = self.n_fft + self.hop * (frames - 1)
        cut = self.n_fft // 2 if self.center else 0
        if self.length is None:
            return cut, whole - cut
        return cut, min(whole, cut + self.length)


def inverse_framing(args: Sequence[Any], kwargs: Mapping[str, Any]) -> InverseFraming:
    """Return the arguments of an `aten.istft`.

    Raises:
        NotImplementedError: it gives a complex signal, or more samples than its frames hold.
    """
    given = dict(zip(ISTFT_ARGUMENTS, args, strict=False)) | dict(kwargs)
    if given.get("onesided") is False or given.get("return_complex"):
        raise NotImplementedError("an inverse short-time transform to a complex signal")
    n_fft, window = int(given["n_fft"]), given.get("window")
    win_length = int(given.get("win_length") or n_fft)
    if window is None and win_length != n_fft:
        window = torch.ones(win_length)
    return InverseFraming(
        n_fft=n_fft,
        hop=int(given.get("hop_length") or n_fft // 4),
        window=window,
        center=bool(given.get("center", True)),
        normalized=bool(given.get("normalized", False)),
        length=given.get("length"),
    )


def inverse_short_time(given: InverseFraming, x: Pair, envelope: Tensor) -> Tensor:
    """Return the signal (B, samples) of a one-sided short-time transform (B, bins, frames).

    Args:
        given: how the frames lie.
        x: the transform; without its batch for one signal.
        envelope: what `overlap_envelope` gives.
    """
    if len(x.shape) == 2:
        many = Pair(x.real[None], None if x.imaginary is None else x.imaginary[None])
        return inverse_short_time(given, many, envelope)[0]
    n_fft, hop, count = given.n_fft, given.hop, int(x.shape[-1])
    factor = (n_fft**0.5 if given.normalized else 1.0) / n_fft
    frames = complex_to_real(x, [1], 0, n_fft) * factor
    if given.window is not None:
        frames = frames * _centred(given.window, n_fft)[:, None]
    size = (1, n_fft + hop * (count - 1))
    wave = F.fold(frames, output_size=size, kernel_size=(1, n_fft), stride=(1, hop))[:, 0, 0]
    first, stop = given.span(count)
    found = wave[:, first:stop] * (1 / envelope)[first:stop]
    missing = 0 if given.length is None else given.length - (stop - first)
    return F.pad(found, (0, missing)) if missing else found


def overlap_envelope(window: Tensor | None, n_fft: int, hop: int, frames: int) -> Tensor:
    """Return the sum of squared windows at every sample (n_fft + hop * (frames - 1))."""
    whole = torch.ones(n_fft) if window is None else _centred(window, n_fft)
    square = whole.square()[None, :, None].expand(1, n_fft, frames)
    size = (1, n_fft + hop * (frames - 1))
    return F.fold(square, output_size=size, kernel_size=(1, n_fft), stride=(1, hop))[0, 0, 0]


def _dft(x: Pair, axis: int, *, inverse: bool, onesided: bool = False) -> Pair:
    axis %= len(x.shape)
    n = x.shape[axis]
    if not isinstance(n, int):
        raise UnsupportedModelError(
            f"a Fourier transform runs along axis {axis}, whose length is the batch; expected one "
            "of fixed length, so export with a batch of one, or move the transform"
        )
    shape = [*x.shape, 2]
    if onesided:
        shape[axis] = n // 2 + 1
    found = torch.onnx.ops.symbolic(
        "DFT",
        (_stacked(x), torch.tensor(n)),
        {"axis": axis, "inverse": int(inverse), "onesided": int(onesided)},
        dtype=x.real.dtype,
        shape=shape,
        version=OPSET,
    )
    return Pair(found.select(-1, 0), found.select(-1, 1))


def _stacked(x: Pair) -> Tensor:
    if x.imaginary is None:
        return x.real.unsqueeze(-1)
    return torch.stack((x.real, x.imaginary), dim=-1)


def _scaled(x: Pair, factor: float) -> Pair:
    if factor == 1.0:
        return x
    return Pair(x.real * factor, None if x.imaginary is None else x.imaginary * factor)


def _factor(normalisation: int, count: int) -> float:
    return {0: 1.0, 1: count**-0.5, 2: 1 / count}[normalisation]


def _centred(window: Tensor, n_fft: int) -> Tensor:
    missing = n_fft - window.shape[0]
    return F.pad(window, (missing // 2, missing - missing // 2)) if missing else window
