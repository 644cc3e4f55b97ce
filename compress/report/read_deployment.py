"""What exporting, dispatching and benchmarking told."""

from typing import Any

from compress.report.facts import Dispatch, Energy, Operation, Parity, Profile
from compress.report.task_files import TaskFiles
from compress.report.values import count_in, list_in, number_in, object_in, plain, text_in

__all__ = ["read_dispatch", "read_energy", "read_parity", "read_profiles"]


def read_parity(task: TaskFiles) -> Parity | None:
    """Return how an exported network agrees with torch; None where it was not compared."""
    figures = task.figures
    parity = object_in(figures, "parity")
    if not parity:
        return None
    segments = count_in(figures, "segments")
    return Parity(
        network=task.network,
        form="ONNX file" if "onnx" in figures else "bundle",
        opset=count_in(figures, "opset"),
        segments=1 if segments is None else segments,
        images=count_in(parity, "images"),
        worst_relative_error=number_in(parity, "worst_relative_error"),
        # Without gates there is nothing to compare, though a report says 0 and 1.
        worst_gate_error=number_in(parity, "worst_gate_error") if (segments or 1) > 1 else None,
        top1_agreement=number_in(parity, "top1_agreement"),
        exit_agreement=number_in(parity, "exit_agreement") if (segments or 1) > 1 else None,
        size_bytes=count_in(figures, "size_bytes"),
    )


def read_dispatch(task: TaskFiles) -> Dispatch | None:
    """Return how many decisions of a bundle are torch's; None where they were not compared."""
    images, same = count_in(task.figures, "images"), count_in(task.figures, "same_decisions")
    if not images or same is None or same > images:
        return None
    counts = [count_in(each) for each in list_in(task.figures, "exit_counts")]
    return Dispatch(
        network=task.network,
        images=images,
        same=same,
        acc1=number_in(task.figures, "acc1"),
        exit_counts=tuple(each for each in counts if each is not None),
    )


def read_profiles(figures: dict[str, Any]) -> list[Profile]:
    """Return the profiles that a benchmark made, each with its lines."""
    found = []
    for name, value in object_in(figures, "profiles").items():
        rows = list_in(value, "rows") or list_in(value, "operations")
        operations = tuple(_operation(row) for row in rows if text_in(row, "name"))
        if operations:
            found.append(Profile(network=plain(str(name)), operations=operations))
    return found


def read_energy(figures: dict[str, Any]) -> Energy | None:
    """Return why a benchmark has no energy; None where it has, or never looked."""
    reason = text_in(figures, "energy_reason") or text_in(figures, "energy", "reason")
    return Energy(reason=reason) if reason else None


def _operation(row: Any) -> Operation:
    total_ms, per_hit_ms, share = (
        number_in(row, key) for key in ("total_ms", "per_hit_ms", "share")
    )
    return Operation(
        name=text_in(row, "name"),
        hits=count_in(row, "hits"),
        total_ms=total_ms,
        per_hit_ms=per_hit_ms,
        share=share,
    )
