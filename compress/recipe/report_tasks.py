"""Tasks that measure and tell: benchmark and report."""

from typing import Any

from compress.benchmark.job import BenchmarkJob, SubjectSpec, benchmark
from compress.data.image_data import ImageData
from compress.files import write_json
from compress.planning.plan import read_plan
from compress.recipe.engine import Context, Outcome
from compress.recipe.networks import opening_of
from compress.recipe.schema import Recipe
from compress.report.collect import collect
from compress.report.write import write_report

__all__ = ["benchmark_networks", "report_run"]


def benchmark_networks(
    context: Context, recipe: Recipe, data: ImageData, progress: bool
) -> dict[str, Any]:
    """Measure every network in turn, as torch runs it and, where there is one, as its bundle."""
    options = context.task.options
    subjects: list[SubjectSpec] = []
    for network, tasks in options["history"].items():
        own = {kind: context.inputs[name] for kind, name in tasks.items()}
        checkpoint = context.inputs[options["newest"][network]].path("checkpoint")
        exits = _exits_of(own)
        if exits is not None:
            opening = opening_of(context, network)
            subjects.append(SubjectSpec(path=checkpoint, name=network, opening=opening, **exits))
        if "export" in own and "bundle" in own["export"].figures:
            bundle = own["export"].path("bundle")
            subjects.append(SubjectSpec(path=bundle, name=f"{network} (bundle)"))
    report = benchmark(
        BenchmarkJob(
            subjects=tuple(subjects),
            data=data,
            images=options["images"],
            seconds=options["seconds"],
            idle_seconds=options["idle_seconds"],
            memory=options["memory"],
        )
    )
    figures = report.to_dict()
    write_json(context.folder / "benchmark.json", figures)
    return figures


def _exits_of(own: dict[str, Outcome]) -> dict[str, Any] | None:
    """At which exits and thresholds a network is deployed; None where a plan found none that pay.

    Such a network is deployed without heads and gates, which its checkpoint still has.
    """
    if "plan" in own:
        plan = read_plan(own["plan"].path("plan"))
        return {"exits": plan.exits, "thresholds": plan.thresholds} if plan.exits else None
    if "evaluate" in own:
        return {"thresholds": own["evaluate"].figures["threshold"]}
    return {}


def report_run(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    """Write the report of everything that the run has made so far."""
    depth = len(context.task.name.split("/"))
    run_dir = context.folder.parents[depth - 1]
    files = write_report([collect(run_dir)], context.folder)
    return {"html": files.html.name, "card": files.card.name}
