"""The work of each kind of task: one library call, its files in the task's folder, its figures."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint import save
from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import ImageData
from compress.files import sha256_of, write_json, write_text
from compress.measure.accuracy import evaluate_accuracy
from compress.models.channel_kinds import resolve_kinds, with_scales
from compress.opened import check_classes, open_checkpoint
from compress.recipe.engine import Context, Work
from compress.recipe.exit_tasks import evaluate_exits, plan_task
from compress.recipe.export_tasks import dispatch_bundle, export_network
from compress.recipe.networks import network_of, opened_start, opening_of, pretrained
from compress.recipe.report_tasks import benchmark_networks, report_run
from compress.recipe.schema import Recipe
from compress.recipe.table import compare_networks, table_text
from compress.slimming.candidates import Mending
from compress.slimming.job import SlimJob, slim_checkpoint
from compress.slimming.slim import SlimOptions
from compress.slimming.sparsity import gamma_sparsity, save_gamma_histogram
from compress.training.batches import first_image
from compress.training.config import TrainingConfig
from compress.training.distillation import distillation
from compress.training.distillation_config import DistillationConfig
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_start import network_with_exits
from compress.training.exit_training import train_exits
from compress.training.loop import fit
from compress.training.objectives import Objective, objective_of
from compress.training.teacher import teacher_from
from compress.training.transfer import build_student

__all__ = ["WORK", "work_of"]

TIMED_IMAGES = 64  # whose real exits decide how long an image takes on average


def work_of(recipe: Recipe, data: ImageData, *, progress: bool = True) -> dict[str, Work]:
    """Return the work functions of all kinds of task, bound to the data of a recipe."""

    def bound(work: Callable[..., dict[str, Any]]) -> Work:
        return lambda context: work(context, recipe, data, progress)

    return {kind: bound(work) for kind, work in WORK.items()}


def _start(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    """Take over a trained network, with what was found out of its images and classes."""
    network = opened_start(context.task.options, recipe)
    check_classes(network.model, data, known=network.classes)
    meta = {
        **network.checkpoint.meta,
        "preprocessing": data.preprocessing.to_dict(),
        "classes": list(data.classes),
        "source_sha256": network.checkpoint.sha256,
    }
    save(network.model, context.folder / "start.pth", meta=meta)
    test = _test_accuracy(network.model, data, progress)
    return {"checkpoint": "start.pth", "network": network.display_name, "test": test}


def _accuracy(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    """Count how often a network without exits is right on test data."""
    model = network_of(context, context.only_input.path("checkpoint"))
    return {"test": _test_accuracy(model, data, progress)}


def _train(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    options = context.task.options
    if options.get("start") is None:
        return _fit(context, recipe, data, _new_network(context, recipe, data), progress)
    torch.manual_seed(recipe.seed)  # of a new head
    model = pretrained(options, recipe, classes=len(data.classes))
    return _fit(context, recipe, data, model, progress)


def _distil(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    options = context.task.options
    source = context.only_input.path("checkpoint")
    settings = DistillationConfig(
        **{name: options[name] for name in ("kind", "alpha", "temperature")}
    )
    teacher = teacher_from(open_checkpoint(source), data)
    objective = distillation(teacher, settings, label_smoothing=options["label_smoothing"])
    model = _new_network(context, recipe, data)
    return _fit(context, recipe, data, model, progress, objective=objective)


def _new_network(context: Context, recipe: Recipe, data: ImageData) -> nn.Module:
    settings = dict(context.task.options["model"])
    spec = f"{settings.pop('arch')}:{json.dumps(settings)}"
    torch.manual_seed(recipe.seed)  # of the first weights
    side = data.preprocessing.size
    return build_student(spec, num_classes=len(data.classes), image_size=side)


def _finetune(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    model = network_of(context, context.only_input.path("checkpoint"))
    return _fit(context, recipe, data, model, progress)


def _fit(
    context: Context,
    recipe: Recipe,
    data: ImageData,
    model: nn.Module,
    progress: bool,
    *,
    objective: Objective | None = None,
) -> dict[str, Any]:
    config = TrainingConfig(seed=recipe.seed, **_settings(context, TrainingConfig))
    result = fit(
        model,
        data,
        objective_of(config, objective),
        config,
        context.folder,
        augment=_augment(context, data),
        progress=progress,
        save_meta={"origin": _origin(context)},
    )
    figures = {
        "checkpoint": result.best.name,
        "epochs": result.epochs_run,
        "test": _test_accuracy(model, data, progress),
    }
    if config.sparsity_lambda > 0:
        save_gamma_histogram(model, context.folder / "gamma.svg")
        sparsity = gamma_sparsity(model)
        figures["gamma"] = sparsity.to_dict() if sparsity else None
    return figures


def _exits(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    network = network_of(context, context.only_input.path("checkpoint"))
    options = context.task.options
    model = network_with_exits(
        network, options["positions"], first_image(data), head=options["head"], seed=recipe.seed
    )
    config = ExitTrainingConfig(seed=recipe.seed, **_settings(context, ExitTrainingConfig))
    result = train_exits(
        model,
        data,
        config,
        context.folder,
        augment=_augment(context, data),
        progress=progress,
        save_meta={"origin": _origin(context)},
    )
    best = result.best.relative_to(context.folder)
    return {
        "checkpoint": str(best),
        "positions": list(model.positions),
        "validation": dict(result.metrics),
    }


def _augment(context: Context, data: ImageData) -> Augment | None:
    config = AugmentConfig(**context.task.options["augment"])
    if config == AugmentConfig():
        return None  # fixed views, which a cache of features needs
    return Augment(config, len(data.classes), data.preprocessing)


def _origin(context: Context) -> dict[str, str]:
    """What the weights come from: the sha256 of every checkpoint that was read."""
    return {name: sha256_of(outcome.path("checkpoint")) for name, outcome in context.inputs.items()}


def _settings(context: Context, config: type[TrainingConfig]) -> dict[str, Any]:
    names = {field.name for field in fields(config)} - {"seed"}
    found = {name: value for name, value in context.task.options.items() if name in names}
    return {**found, "milestones": tuple(found["milestones"])}


def _slim(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    options = context.task.options
    source = context.only_input
    job = SlimJob(
        checkpoint=source.path("checkpoint"),
        opening=opening_of(context),
        ratios=(options["ratio"],),
        options=SlimOptions(
            round_to=options["round_to"],
            min_channels=options["min_channels"],
            ignore=tuple(options["ignore"]),
            absorb=options["absorb"],
            groups=tuple(options["groups"]),
        ),
        output=context.folder / "slim.pth",
        force=True,  # what an interrupted run of this task left
        latency=False,  # all networks are timed in turn at the end
        images=data,
        mending=_mending(options),
        seed=recipe.seed,
    )
    (report,) = slim_checkpoint(job)
    told = report.to_dict()
    write_json(context.folder / "slim.report.json", _portable(told))
    original = network_of(context, job.checkpoint)
    scaled = with_scales(original, resolve_kinds(original, options["groups"]))
    save_gamma_histogram(scaled, context.folder / "gamma.svg", threshold=told["threshold"])
    return {
        "checkpoint": "slim.pth",
        "ratio": options["ratio"],
        "true_pruned_ratio": told["true_pruned_ratio"],
        "threshold": told["threshold"],
        "absorption": told["absorption"],
        "made_by": told["made_by"],
        "test": _test_accuracy(report.result.model, data, progress),
    }


def _mending(options: Mapping[str, Any]) -> Mending | None:
    if options["images"] == 0:
        return None
    return Mending(images=options["images"], repair=options["repair"])


def _portable(report: dict[str, Any]) -> dict[str, Any]:
    """Name files without their folders: a run may be moved."""
    source = {**report["source"], "path": Path(report["source"]["path"]).name}
    return {**report, "source": source, "output": Path(report["output"]).name}


def _compare(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    test = data.splits["test"]
    images = data.normalize(test.images(torch.arange(min(TIMED_IMAGES, len(test)))))
    table = compare_networks(context, images, seconds=context.task.options["seconds"])
    write_json(context.folder / "table.json", table)
    write_text(context.folder / "table.txt", table_text(table) + "\n")
    return {"table": "table.txt"}


def _test_accuracy(model: torch.nn.Module, data: ImageData, progress: bool) -> dict[str, Any]:
    found = evaluate_accuracy(model, data.splits["test"], data.normalize, progress=progress)
    return found.to_dict()


# What each kind of task does, from its context, the recipe, the data, and whether to show bars.
WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "start": _start,
    "train": _train,
    "slim": _slim,
    "finetune": _finetune,
    "distil": _distil,
    "exits": _exits,
    "plan": plan_task,
    "evaluate": evaluate_exits,
    "accuracy": _accuracy,
    "export": export_network,
    "dispatch": dispatch_bundle,
    "compare": _compare,
    "benchmark": benchmark_networks,
    "report": report_run,
}
