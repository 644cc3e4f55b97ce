"""How well the files of a bundle agree with the torch network, segment by segment and as a chain.

The chain is fed images and hands its own values on, so its error is what the device will see. A
segment alone is fed what the float32 segments before it hand on, so its error is its own: of its
results against torch, of what it hands on against its own float32 form, as what crosses has no name
in torch. Nothing leaves early here: decisions are compared afterwards, from the gates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import AccuracyError
from compress.export.chain import Tensors, joined, run_chain, run_segment
from compress.export.network_outputs import LOGITS
from compress.export.output_error import output_error, output_errors, worst_output
from compress.export.whole_network import WholeNetwork
from compress.runtime.decision import first_exit

__all__ = ["TOLERANCES", "BundleParity", "check_parity", "measure_parity"]

# Relative error of the outputs of an image. float32 sums in another order stay far below the first;
# int8 has no such bound, so its classes are compared; further outputs have the looser one below.
TOLERANCES = {"fp32": 1e-3, "fp16": 3e-2, "int8": float("inf")}
LEAST_AGREEMENT = 0.9  # of classes with int8
INT8_FURTHER = 0.25


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
    network: WholeNetwork,
    sessions: Sequence[Any],
    in_float: Sequence[Any] | None,
    images: Tensor,
    thresholds: Sequence[float],
    *,
    outputs: Sequence[str],
    batch: int,
    images_name: str,
) -> BundleParity:
    """Compare the files of a bundle with the torch network.

    Args:
        network: in float32.
        sessions: of the files, in order.
        in_float: of the same segments computed in float32; None where the files are that.
        images: (N, C, H, W) float32.
        thresholds: of the exits.
        outputs: of the last segment; earlier ones give logits and gate, and what crosses.
        batch: images at a time, at most as many as the files take.
        images_name: what they are.
    """
    torch_runs: list[list[Tensors]] = []  # per batch, per segment
    float_runs: list[list[Tensors]] = []
    alone: list[list[Tensors]] = []
    chain: list[list[Tensors]] = []
    for part in images.split(batch):
        torch_runs.append(_run_torch(network, part, outputs))
        chain.append([given for _, given in run_chain(sessions, part.numpy())])
        if in_float is None:  # each file was fed what the float32 ones before it gave
            float_runs.append(chain[-1])
            alone.append(chain[-1])
            continue
        fed = run_chain(in_float, part.numpy())
        float_runs.append([given for _, given in fed])
        alone.append([run_segment(s, taken) for s, (taken, _) in zip(sessions, fed, strict=True)])
    wanted, floats, single, chained = map(joined, (torch_runs, float_runs, alone, chain))
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
            _own_error(s, {**f, **w}) for s, f, w in zip(single, floats, wanted, strict=True)
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
    found: Sequence[Tensors], wanted: Sequence[Tensors], exits: NDArray[np.int64]
) -> float | None:
    """Return the share of images with the same class at these exits; None without classes."""
    if LOGITS not in wanted[-1]:
        return None
    rows = np.arange(len(exits))
    classes = (np.stack([s[LOGITS] for s in run])[exits, rows].argmax(1) for run in (found, wanted))
    return float(np.equal(*classes).mean())


def _run_torch(network: WholeNetwork, images: Tensor, outputs: Sequence[str]) -> list[Tensors]:
    """Return the results of each segment."""
    found = network(images)
    values = [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]
    count = len(values) - len(outputs)
    gated = [{"logits": values[i], "gate": values[i + 1]} for i in range(0, count, 2)]
    return [*gated, dict(zip(outputs, values[count:], strict=True))]


def _own_error(found: Tensors, wanted: Mapping[str, NDArray[Any]]) -> float:
    """Return the worst error of what a segment alone gives, apart from its gate."""
    return _worst(output_error(found[name], wanted[name]) for name in wanted if name != "gate")


def _exits(run: Sequence[Tensors], thresholds: Sequence[float]) -> NDArray[np.int64]:
    images = len(next(iter(run[0].values())))
    gates = [s["gate"] for s, _ in zip(run, thresholds, strict=False)]
    return first_exit(np.array(gates).reshape(len(thresholds), images).T, thresholds)


def _worst(errors: Iterable[float]) -> float:
    """The largest, 0 of none; NaN where one is NaN, which Python's `max` would pass over."""
    return float(np.max([0.0, *errors]))
