"""Training curves from metrics.jsonl, widths and γ from slimming."""

import itertools
from typing import Any

from compress.report.facts import Curve, Epoch, Histogram, Layer, Slim
from compress.report.task_files import TaskFiles
from compress.report.values import (
    count_in,
    list_in,
    number_in,
    object_in,
    text_in,
)

__all__ = ["read_curves", "read_slim"]

METRICS = "metrics.jsonl"
PICTURE = "gamma.svg"
MAX_PICTURE = 1 << 20
PHASES = {"": "", "warmup": " (warm-up)"}  # folders in which a task trains


def read_curves(task: TaskFiles) -> list[Curve]:
    """Return a curve for each phase of training of a task."""
    found = []
    for folder, words in PHASES.items():
        lines = (
            task.read_lines(f"{folder}/{METRICS}".lstrip("/")) if _is_there(task, folder) else []
        )
        epochs = tuple(epoch for line in lines if (epoch := _epoch(line)))
        if epochs:
            found.append(Curve(name=f"{task.network}{words}", kind=task.kind, epochs=epochs))
    return found


def read_slim(task: TaskFiles) -> Slim:
    """Return widths and γ of a task that slimmed, or trained for slimming."""
    report = task.report
    gamma = object_in(task.figures, "gamma") or object_in(report, "gamma")
    layers = [_layer(each) for each in list_in(report, "layers")]
    return Slim(
        network=task.network,
        threshold=number_in(task.figures, "threshold"),
        layers=tuple(each for each in layers if each is not None),
        histogram=_histogram(object_in(gamma, "histogram")),
        picture=_picture(task),
        share_below_1pct=number_in(gamma, "share_below_1pct"),
    )


def _is_there(task: TaskFiles, folder: str) -> bool:
    return (task.folder / folder / METRICS).is_file()


def _epoch(line: dict[str, Any]) -> Epoch | None:
    number = number_in(line, "epoch")
    if number is None:
        return None
    return Epoch(
        epoch=number,
        train_loss=number_in(line, "train_loss"),
        validation_loss=number_in(line, "validation_loss"),
        acc1=number_in(line, "acc1"),
    )


def _layer(value: Any) -> Layer | None:
    name, before, after = (
        text_in(value, "name"),
        count_in(value, "before"),
        count_in(value, "after"),
    )
    if before is None or after is None or before < 1 or after > before:
        return None
    return Layer(name=name, before=before, after=after)


def _histogram(value: dict[str, Any]) -> Histogram | None:
    """Return a histogram whose edges ascend and whose counts are as many as the gaps."""
    edges = [number_in(each) for each in list_in(value, "edges")]
    counts = [count_in(each) for each in list_in(value, "counts")]
    whole_edges = tuple(each for each in edges if each is not None)
    whole_counts = tuple(each for each in counts if each is not None)
    ascending = all(a < b for a, b in itertools.pairwise(whole_edges))
    if not (len(edges) == len(whole_edges) == len(counts) + 1 and ascending and counts):
        return None
    return Histogram(edges=whole_edges, counts=whole_counts) if None not in counts else None


def _picture(task: TaskFiles) -> bytes:
    path = task.folder / PICTURE
    try:
        return path.read_bytes() if path.stat().st_size <= MAX_PICTURE else b""
    except OSError:
        return b""
