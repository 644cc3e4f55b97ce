"""How well the files of a bundle agree with the torch network, segment by segment and as a chain.

A segment is fed what torch gives to it, so its error is its own; the chain is fed images and hands
its own hidden states on, so its error is what the device will see. Nothing leaves early here:
decisions are compared afterwards, from the gates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import AccuracyError
from compress.export.network_outputs import LOGITS
from compress.export.output_error import output_error, output_errors, worst_output
from compress.export.segments import SegmentModule
from compress.runtime.decision import first_exit

__all__ = ["TOLERANCES", "BundleParity", "check_parity", "measure_parity"]

# Relative error of the outputs of an image. float32 sums in another order stay far below the first;
# int8 has no such bound, so its classes are compared; further outputs have the looser one below.
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2, "int8": float("inf")}
LEAST_AGREEMENT = 0.9  # of classes with int8
INT8_FURTHER = 0.25
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class BundleParity:
    """How well a bundle agrees with the torch network in float32.

    Attributes:
        worst_relative_error: over images, exits and further outputs, |files - torch| / |torch| in
            the 2-norm, the segments run as a chain.
        worst_gate_error: largest difference of a gate's probability.
        top1_agreement: share of images with the same class, at the exit that torch takes; None
            where the network has no logits.
        exit_agreement: share of images that leave at the same exit.
        segment_errors: relative error of each segment alone, of its worst output and image.
        images: how many were compared.
        images_name: what they are.
        output_errors: error of each output of the last segment in the chain, of its worst image;
            of whole numbers the share that differs.
    """

    worst_relative_error: float
    worst_gate_error: float
    top1_agreement: float | None
    exit_agreement: float
    segment_errors: tuple[float, ...]
    images: int
    images_name: str
    output_errors: Mapping[str, float] = field(default_factory=dict)

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
    errors = output_errors(chained[-1], wanted[-1])
    exit_errors = [
        output_error(c["logits"], w["logits"])
        for c, w in zip(chained[:-1], wanted[:-1], strict=True)
    ]
    gates = [(c["gate"], w["gate"]) for c, w in zip(chained, wanted, strict=True) if "gate" in w]
    return BundleParity(
        worst_relative_error=_worst([*exit_errors, *errors.values()]),
        worst_gate_error=_worst(np.abs(found - there).max() for found, there in gates),
        top1_agreement=_agreement(chained, wanted, exits),
        exit_agreement=float((_exits(chained, thresholds) == exits).mean()),
        segment_errors=tuple(
            _worst(output_error(s[name], w[name]) for name in w if name != "gate")
            for s, w in zip(single, wanted, strict=True)
        ),
        images=len(images),
        images_name=images_name,
        output_errors=errors,
    )


def check_parity(parity: BundleParity, precision: str, *, tolerance: float | None = None) -> None:
    """Raise AccuracyError where the chain is outside its tolerance; name the first segment that is.

    Args:
        parity: as measured.
        precision: "fp32", "fp16" or "int8".
        tolerance: largest relative error of an output of an image; None takes that of the
            precision.
    """
    bar = TOLERANCES[precision] if tolerance is None else tolerance
    further = {name: e for name, e in parity.output_errors.items() if name != LOGITS}
    further_bar = INT8_FURTHER if np.isinf(bar) else bar
    if not _worst(further.values()) <= further_bar:
        bar = further_bar
    agreement = parity.top1_agreement
    agrees = precision != "int8" or agreement is None or agreement >= LEAST_AGREEMENT
    if parity.worst_relative_error <= bar and agrees:  # NaN fails
        return
    worst = int(np.argmax([np.inf if np.isnan(e) else e for e in parity.segment_errors]))
    outside = [i for i, error in enumerate(parity.segment_errors) if not error <= bar]
    first = outside[0] if outside else worst
    wanted = f"at most {bar:g}" if agrees else f"{LEAST_AGREEMENT:.0%} of classes to agree"
    raise AccuracyError(
        f"the exported chain differs from torch by {parity.worst_relative_error:.2g} relative "
        f"({_told(parity, further)}) on {parity.images_name}; expected "
        f"{wanted}. segment_{first} diverges first, by {parity.segment_errors[first]:.2g}; nothing "
        "was kept, so export with --precision fp32, or allow it with --tolerance"
    )


def _told(parity: BundleParity, further: Mapping[str, float]) -> str:
    """Return what agrees and what does not, where there are further outputs the worst of all."""
    said = []
    if parity.top1_agreement is not None:
        said.append(f"{parity.top1_agreement:.1%} of classes agree")
    if further:
        name = worst_output(parity.output_errors)
        said.append(f"worst is its output {name}, by {parity.output_errors[name]:.2g}")
    return ", ".join(said)


def _agreement(
    found: Sequence[Outputs], wanted: Sequence[Outputs], exits: NDArray[np.int64]
) -> float | None:
    """Return the share of images with the same class at these exits; None without classes."""
    if LOGITS not in wanted[-1]:
        return None
    rows = np.arange(len(exits))
    classes = (np.stack([s[LOGITS] for s in run])[exits, rows].argmax(1) for run in (found, wanted))
    return float(np.equal(*classes).mean())


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
    """Per segment, the outputs of all batches, in float32 unless they are whole numbers."""
    return [
        {name: _in_float32(np.concatenate([r[i][name] for r in runs])) for name in first}
        for i, first in enumerate(runs[0])
    ]


def _exits(run: Sequence[Outputs], thresholds: Sequence[float]) -> NDArray[np.int64]:
    images = len(next(iter(run[0].values())))
    gates = [s["gate"] for s, _ in zip(run, thresholds, strict=False)]
    return first_exit(np.array(gates).reshape(len(thresholds), images).T, thresholds)


def _in_float32(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _worst(errors: Iterable[float]) -> float:
    """The largest, 0 of none; NaN where one is NaN, which Python's `max` would pass over."""
    return float(np.max([0.0, *errors]))
