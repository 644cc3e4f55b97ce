"""How well the files of a bundle agree with the torch network, segment by segment and as a chain.

A segment is fed what torch gives to it, so its error is its own; the chain is fed images and hands
its own hidden states on, so its error is what the device will see. Nothing leaves early here:
decisions are compared afterwards, from the gates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import AccuracyError
from compress.export.segments import SegmentModule

__all__ = ["TOLERANCES", "BundleParity", "check_parity", "measure_parity"]

# Relative error of the logits of an image. float32 sums in another order stay far below the first;
# int8 has no such bound, so its classes are compared.
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2, "int8": float("inf")}
LEAST_AGREEMENT = 0.9  # of classes with int8
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class BundleParity:
    """How well a bundle agrees with the torch network in float32.

    Attributes:
        worst_relative_error: over images and exits, |files - torch| / |torch| of the logits in the
            2-norm, the segments run as a chain.
        worst_gate_error: largest difference of a gate's probability.
        top1_agreement: share of images with the same class, at the exit that torch takes.
        exit_agreement: share of images that leave at the same exit.
        segment_errors: relative error of each segment alone, of its worst output and image.
        images: how many were compared.
        images_name: what they are.
    """

    worst_relative_error: float
    worst_gate_error: float
    top1_agreement: float
    exit_agreement: float
    segment_errors: tuple[float, ...]
    images: int
    images_name: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "segment_errors": list(self.segment_errors)}


@torch.inference_mode()
def measure_parity(
    reference: Sequence[SegmentModule],
    sessions: Sequence[Any],
    images: Tensor,
    thresholds: Sequence[float],
    *,
    batch: int,
    images_name: str,
) -> BundleParity:
    """Compare the files of a bundle with the torch network.

    Args:
        reference: segments of the network in float32.
        sessions: of the files, in the same order.
        images: (N, C, H, W) float32.
        thresholds: of the exits.
        batch: images at a time, at most as many as the files take.
        images_name: what they are.
    """
    torch_runs: list[list[Outputs]] = []  # per batch, per segment
    alone: list[list[Outputs]] = []
    chain: list[list[Outputs]] = []
    for part in images.split(batch):
        inputs, outputs = _run_torch(reference, part)
        torch_runs.append(outputs)
        alone.append([_run(s, x) for s, x in zip(sessions, inputs, strict=True)])
        chain.append(_run_chain(sessions, inputs[0]))
    wanted, single, chained = (_joined(runs) for runs in (torch_runs, alone, chain))
    exits = _exits(wanted, thresholds)
    rows = np.arange(len(images))
    logits, logits_torch = (np.stack([s["logits"] for s in run]) for run in (chained, wanted))
    gates = [(c["gate"], w["gate"]) for c, w in zip(chained, wanted, strict=True) if "gate" in w]
    same = logits[exits, rows].argmax(1) == logits_torch[exits, rows].argmax(1)
    return BundleParity(
        worst_relative_error=_worst(
            _relative_error(c["logits"], w["logits"]) for c, w in zip(chained, wanted, strict=True)
        ),
        worst_gate_error=_worst(np.abs(found - there).max() for found, there in gates),
        top1_agreement=float(same.mean()),
        exit_agreement=float((_exits(chained, thresholds) == exits).mean()),
        segment_errors=tuple(
            _worst(_relative_error(s[name], w[name]) for name in w if name != "gate")
            for s, w in zip(single, wanted, strict=True)
        ),
        images=len(images),
        images_name=images_name,
    )


def check_parity(parity: BundleParity, precision: str, *, tolerance: float | None = None) -> None:
    """Raise AccuracyError where the chain is outside its tolerance; name the first segment that is.

    Args:
        parity: as measured.
        precision: "fp32", "fp16" or "int8".
        tolerance: largest relative error of the logits of an image; None takes that of the
            precision.
    """
    bar = TOLERANCES[precision] if tolerance is None else tolerance
    agrees = precision != "int8" or parity.top1_agreement >= LEAST_AGREEMENT
    if parity.worst_relative_error <= bar and agrees:  # NaN fails
        return
    worst = int(np.argmax([np.inf if np.isnan(e) else e for e in parity.segment_errors]))
    outside = [i for i, error in enumerate(parity.segment_errors) if not error <= bar]
    first = outside[0] if outside else worst
    wanted = f"at most {bar:g}" if agrees else f"{LEAST_AGREEMENT:.0%} of classes to agree"
    raise AccuracyError(
        f"the exported chain differs from torch by {parity.worst_relative_error:.2g} relative "
        f"({parity.top1_agreement:.1%} of classes agree) on {parity.images_name}; expected "
        f"{wanted}. segment_{first} diverges first, by {parity.segment_errors[first]:.2g}; nothing "
        "was kept, so export with --precision fp32, or allow it with --tolerance"
    )


def _run_torch(
    segments: Sequence[SegmentModule], images: Tensor
) -> tuple[list[NDArray[Any]], list[Outputs]]:
    """Return what each segment takes, and what it gives."""
    x, inputs, outputs = images, [], []
    for segment in segments:
        inputs.append(x.numpy())
        found = segment(x)
        values = found if isinstance(found, tuple) else (found,)
        names = [spec.name for spec in segment.specs.outputs]
        outputs.append({name: v.numpy() for name, v in zip(names, values, strict=True)})
        x = values[0]
    return inputs, outputs


def _run(session: Any, x: NDArray[Any]) -> Outputs:
    (taken,) = session.get_inputs()
    dtype = np.float16 if taken.type == "tensor(float16)" else np.float32
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {taken.name: x.astype(dtype)}), strict=True))


def _run_chain(sessions: Sequence[Any], images: NDArray[Any]) -> list[Outputs]:
    x, outputs = images, []
    for session in sessions:
        outputs.append(_run(session, x))
        x = outputs[-1].get("hidden", x)
    return outputs


def _joined(runs: list[list[Outputs]]) -> list[Outputs]:
    """Per segment, the outputs of all batches in float32."""
    return [
        {name: np.concatenate([r[i][name] for r in runs]).astype(np.float32) for name in first}
        for i, first in enumerate(runs[0])
    ]


def _exits(run: Sequence[Outputs], thresholds: Sequence[float]) -> NDArray[np.int64]:
    fires = [s["gate"].astype(np.float64) >= t for s, t in zip(run, thresholds, strict=False)]
    return np.stack([*fires, np.ones(len(run[0]["logits"]), dtype=bool)]).argmax(axis=0)


def _worst(errors: Iterable[float]) -> float:
    """The largest, 0 of none; NaN where one is NaN, which Python's `max` would pass over."""
    return float(np.max([0.0, *errors]))


def _relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Worst over the images; in the 2-norm, so that an entry near zero does not count for much."""
    flat = (len(wanted), -1)
    difference = np.linalg.norm((found - wanted).reshape(flat), axis=1)
    return float((difference / np.linalg.norm(wanted.reshape(flat), axis=1)).max())
