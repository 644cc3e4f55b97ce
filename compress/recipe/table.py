"""The table that a chain ends with: every network's size, accuracy, multiply-adds and latency.

A chain that slims gets one row per ratio; any other gets one per network, as the published logs of
early-exit networks end. With exits the time depends on the image, so there all networks are timed
over the same images, one by one, each leaving where its gate says; what is told is the time of an
image on average, as the median over many such rounds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.export.onnx_file import onnx_session, session_runner
from compress.measure.latency import Latency, Subject, measure_latency
from compress.measure.macs import count
from compress.measure.versions import hardware, versions
from compress.models.with_exits import WithExits
from compress.planning.plan import read_plan
from compress.recipe.engine import Context, Outcome
from compress.recipe.networks import network_of
from compress.recipe.plan import BASELINE, BEGINNINGS
from compress.runtime.dispatcher import Dispatcher

__all__ = ["compare_networks", "table_text"]

RUNTIMES = ("torch", "onnx", "bundle")
SCHEMA = "compress.comparison/1"
Row = dict[str, Any]


def compare_networks(context: Context, images: Tensor, *, seconds: float) -> dict[str, Any]:
    """Count all networks, and time them in turn, as torch modules and as ONNX files.

    Args:
        context: of a "compare" task, whose options name the networks and their tasks.
        images: (N, C, H, W) float32, what is timed, one at a time.
        seconds: how long to time.
    """
    options = context.task.options
    models = {
        network: network_of(context, context.inputs[newest].path("checkpoint"), network)
        for network, newest in options["newest"].items()
    }
    outcomes = {
        network: {kind: context.inputs[name] for kind, name in tasks.items()}
        for network, tasks in options["history"].items()
    }
    dynamic = any("evaluate" in tasks for tasks in outcomes.values())
    timed = images if dynamic else images[:1]
    subjects: dict[str, Subject] = {}
    for network, model in models.items():
        subjects[f"{network}/torch"] = _one_by_one(model, timed, outcomes[network])
        subjects |= _exported(network, timed, outcomes[network])
    times = measure_latency(subjects, max_seconds=seconds, min_iterations=5)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    rows: list[Row] = []
    for network, model in models.items():
        counts = count(model, shape)
        latency = {
            kind: _per_image(times[f"{network}/{kind}"], len(timed))
            for kind in RUNTIMES
            if f"{network}/{kind}" in times
        }
        size = {"network": network, "macs": counts.macs, "params": counts.params}
        rows.append({**size, "latency_ms": latency, **_history(outcomes[network], outcomes)})
    return {"schema": SCHEMA, "rows": rows, "versions": versions(), "hardware": hardware()}


def _one_by_one(
    model: nn.Module, images: Tensor, own: dict[str, Outcome]
) -> Callable[[], list[Any]]:
    """Return a function that runs the network on every image by itself."""
    single = images.split(1)
    if not isinstance(model, WithExits) or "evaluate" not in own:
        return lambda: [model(image) for image in single]
    if "plan" in own:
        plan = read_plan(own["plan"].path("plan"))
        if not plan.exits:  # no exit pays
            return lambda: [model(image) for image in single]
        planned = model.with_positions(plan.exits)
        return lambda: [planned.forward_early(image, plan.thresholds) for image in single]
    threshold = own["evaluate"].figures["threshold"]
    return lambda: [model.forward_early(image, threshold) for image in single]


def _exported(network: str, images: Tensor, own: dict[str, Outcome]) -> dict[str, Subject]:
    """What runs the exported form of a network on every image by itself, by its name."""
    if "export" not in own:
        return {}
    if "onnx" in own["export"].figures:
        session = onnx_session(own["export"].path("onnx"))
        single = [session_runner(session, image) for image in images.split(1)]
        return {f"{network}/onnx": lambda: [run() for run in single]}
    threads = torch.get_num_threads()  # as the torch network beside it
    dispatcher = Dispatcher(own["export"].path("bundle"), "onnxruntime", threads=threads)
    arrays = list(images.numpy())
    return {f"{network}/bundle": lambda: [dispatcher.run(image) for image in arrays]}


def _per_image(latency: Latency, images: int) -> dict[str, float | int]:
    """The figures of a round divided by its images; counts stay what they are."""
    counts = ("iterations", "threads")
    return {
        name: value if name in counts else value / images
        for name, value in latency.to_dict().items()
    }


def _history(own: dict[str, Outcome], all_outcomes: dict[str, dict[str, Outcome]]) -> Row:
    """What the tasks of one network said about it."""
    began = all_outcomes[BASELINE]
    trained = next(began[kind] for kind in BEGINNINGS if kind in began).figures
    slim = own["slim"].figures if "slim" in own else {}
    finetuned = own["finetune"].figures if "finetune" in own else {}
    row: Row = {
        "ratio": slim.get("ratio"),
        "true_pruned_ratio": slim.get("true_pruned_ratio"),
        "threshold": slim.get("threshold"),
        "acc1_before": trained["test"]["acc1"],
        "acc1_slimmed": slim.get("test", {}).get("acc1"),
        "acc1_finetuned": finetuned.get("test", {}).get("acc1"),
        "test_images": trained["test"]["count"],
    }
    kinds = ("evaluate", "finetune", "slim", "distil", *BEGINNINGS)
    made_by = next((own[kind] for kind in kinds if kind in own), None)
    if made_by is not None:
        row["acc1"] = made_by.figures["test"]["acc1"]
    if "evaluate" in own:
        row["exit_threshold"] = own["evaluate"].figures["threshold"]
        row["planned"] = "plan" in own
        row["expected_macs"] = own["evaluate"].figures["test"]["expected_macs"]
    return row


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _macs(row: Row) -> float:
    """Multiply-adds of an image, on average where it may leave early."""
    return float(row["expected_macs"] if "expected_macs" in row else row["macs"])


def _exit_threshold(row: Row) -> str:
    """One for all exits; a plan has one for each, which its file tells."""
    return "planned" if row.get("planned") else _number(row.get("exit_threshold"), "g")


def _latency(row: Row, kind: str) -> str:
    if kind not in row["latency_ms"]:
        return "-"
    return f"{row['latency_ms'][kind]['median']:.3f}"


# Heading, and what stands below it for a row of the table.
Column = tuple[str, Callable[[Row, Row], str]]
SIZE: tuple[Column, ...] = (
    ("MACs", lambda row, _: f"{_macs(row) / 1e6:.2f} M"),
    ("params", lambda row, _: f"{row['params'] / 1e3:.1f} k"),
)
TIMES: tuple[Column, ...] = (
    ("torch ms", lambda row, _: _latency(row, "torch")),
    ("ONNX ms", lambda row, _: _latency(row, "onnx")),
)
SLIMMING: tuple[Column, ...] = (
    ("ratio", lambda row, _: _number(row["ratio"], "g")),
    ("true ratio", lambda row, _: _number(row["true_pruned_ratio"], ".4f")),
    ("threshold", lambda row, _: _number(row["threshold"], ".3g")),
    *SIZE,
    ("acc before", lambda row, _: _number(row["acc1_before"], ".2f")),
    ("slimmed", lambda row, _: _number(row["acc1_slimmed"], ".2f")),
    ("fine-tuned", lambda row, _: _number(row["acc1_finetuned"], ".2f")),
    *TIMES,
)
NETWORKS: tuple[Column, ...] = (
    ("network", lambda row, _: row["network"]),
    ("params", SIZE[1][1]),
    ("acc@1", lambda row, _: _number(row.get("acc1"), ".2f")),
    ("threshold", lambda row, _: _exit_threshold(row)),
    ("MACs", SIZE[0][1]),
    ("of base", lambda row, base: f"{_macs(row) / base['macs']:.1%}"),
    TIMES[0],
    ("bundle ms", lambda row, _: _latency(row, "bundle")),
)


def table_text(table: dict[str, Any]) -> str:
    """Return the table for a console: accuracy in per cent, latency of one image."""
    rows = table["rows"]
    base = next(row for row in rows if row["network"] == BASELINE)
    columns = SLIMMING if any(row["ratio"] is not None for row in rows) else NETWORKS
    cells = [[heading for heading, _ in columns]]
    cells += [[cell(row, base) for _, cell in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, _note(table, dynamic=any("expected_macs" in row for row in rows))])


def _note(table: dict[str, Any], *, dynamic: bool) -> str:
    latency = table["rows"][0]["latency_ms"]["torch"]
    note = (
        f"accuracy in % of {table['rows'][0]['test_images']} test images; latency: median of "
        f"{latency['iterations']} runs in turn, batch 1, {latency['threads']} threads, "
        f"{table['hardware']['cpu']}"
    )
    return note + "; MACs and latency of an image on average" if dynamic else note
