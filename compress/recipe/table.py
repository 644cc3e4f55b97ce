"""The table that a chain of slimming ends with: every network's size, accuracy and latency."""

from typing import Any

from torch import Tensor

from compress.checkpoint import load
from compress.export.onnx_file import onnx_session, session_runner
from compress.measure.latency import Subject, measure_latency
from compress.measure.macs import count
from compress.measure.versions import hardware, versions
from compress.recipe.engine import Context, Outcome

__all__ = ["compare_networks", "table_text"]

SCHEMA = "compress.comparison/1"


def compare_networks(context: Context, image: Tensor, *, seconds: float) -> dict[str, Any]:
    """Count all networks, and time them in turn, as torch modules and as ONNX files.

    Args:
        context: of a "compare" task, whose options name the networks and their tasks.
        image: (1, C, H, W) float32, what is timed.
        seconds: how long to time.
    """
    options = context.task.options
    models = {
        network: load(context.inputs[newest].path("checkpoint"))
        for network, newest in options["newest"].items()
    }
    outcomes = {
        network: {kind: context.inputs[name] for kind, name in tasks.items()}
        for network, tasks in options["history"].items()
    }
    subjects: dict[str, Subject] = {}
    for network, model in models.items():
        subjects[f"{network}/torch"] = (model, image)
        if "export" in outcomes[network]:
            session = onnx_session(outcomes[network]["export"].path("onnx"))
            subjects[f"{network}/onnx"] = session_runner(session, image)
    times = measure_latency(subjects, max_seconds=seconds)
    shape = (image.shape[1], image.shape[2], image.shape[3])
    rows = []
    for network, model in models.items():
        counts = count(model, shape)
        latency = {
            kind: times[f"{network}/{kind}"].to_dict()
            for kind in ("torch", "onnx")
            if f"{network}/{kind}" in times
        }
        row = {"network": network, "macs": counts.macs, "params": counts.params}
        rows.append({**row, "latency_ms": latency, **_history(outcomes[network], outcomes)})
    return {"schema": SCHEMA, "rows": rows, "versions": versions(), "hardware": hardware()}


def _history(
    own: dict[str, Outcome], all_outcomes: dict[str, dict[str, Outcome]]
) -> dict[str, Any]:
    """What the tasks of one network said about it."""
    trained = next(o["train"].figures for o in all_outcomes.values() if "train" in o)
    slim = own["slim"].figures if "slim" in own else {}
    finetuned = own["finetune"].figures if "finetune" in own else {}
    return {
        "ratio": slim.get("ratio"),
        "true_pruned_ratio": slim.get("true_pruned_ratio"),
        "threshold": slim.get("threshold"),
        "acc1_before": trained["test"]["acc1"],
        "acc1_slimmed": slim.get("test", {}).get("acc1"),
        "acc1_finetuned": finetuned.get("test", {}).get("acc1"),
        "test_images": trained["test"]["count"],
    }


# Heading, and what stands below it for a row.
_COLUMNS = (
    ("ratio", lambda row: _number(row["ratio"], "g")),
    ("true ratio", lambda row: _number(row["true_pruned_ratio"], ".4f")),
    ("threshold", lambda row: _number(row["threshold"], ".3g")),
    ("MACs", lambda row: f"{row['macs'] / 1e6:.2f} M"),
    ("params", lambda row: f"{row['params'] / 1e3:.1f} k"),
    ("acc before", lambda row: _number(row["acc1_before"], ".2f")),
    ("slimmed", lambda row: _number(row["acc1_slimmed"], ".2f")),
    ("fine-tuned", lambda row: _number(row["acc1_finetuned"], ".2f")),
    ("torch ms", lambda row: _latency(row, "torch")),
    ("ONNX ms", lambda row: _latency(row, "onnx")),
)


def table_text(table: dict[str, Any]) -> str:
    """Return the table for a console: accuracy in per cent, latency as the median of batch 1."""
    cells = [[heading for heading, _ in _COLUMNS]]
    cells += [[cell(row) for _, cell in _COLUMNS] for row in table["rows"]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    torch_latency = table["rows"][0]["latency_ms"]["torch"]
    note = (
        f"accuracy in % of {table['rows'][0]['test_images']} test images; latency: median of "
        f"{torch_latency['iterations']} runs in turn, batch 1, {torch_latency['threads']} threads, "
        f"{table['hardware']['cpu']}"
    )
    return "\n".join([*lines, note])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _latency(row: dict[str, Any], kind: str) -> str:
    return f"{row['latency_ms'][kind]['median']:.3f}" if kind in row["latency_ms"] else "-"
