"""The work of each kind of task: one library call, its files in the task's folder, its figures."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint import load
from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.export.onnx_file import onnx_from_module
from compress.files import sha256_of, write_json, write_text
from compress.models import build
from compress.models.channel_kinds import resolve_kinds, with_scales
from compress.recipe.engine import Context, Work
from compress.recipe.schema import Recipe
from compress.recipe.table import compare_networks, table_text
from compress.slimming.job import SlimJob, slim_checkpoint
from compress.slimming.slim import SlimOptions
from compress.slimming.sparsity import gamma_sparsity, save_gamma_histogram
from compress.training.accuracy import evaluate_accuracy
from compress.training.config import TrainingConfig
from compress.training.loop import fit
from compress.training.objectives import objective_of

__all__ = ["work_of"]

PARITY_IMAGES = 32


def work_of(recipe: Recipe, data: ImageData, *, progress: bool = True) -> dict[str, Work]:
    """Return the work functions of all kinds of task, bound to the data of a recipe."""

    def bound(work: Callable[..., dict[str, Any]]) -> Work:
        return lambda context: work(context, recipe, data, progress)

    return {
        "train": bound(_train),
        "slim": bound(_slim),
        "finetune": bound(_finetune),
        "export": bound(_export),
        "compare": bound(_compare),
    }


def _train(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)  # of the first weights
    config = {"num_classes": len(data.classes), **context.task.options["model"]}
    arch = config.pop("arch")
    model = build(arch, config)
    if config["num_classes"] != len(data.classes):
        raise UserInputError(
            f"model has num_classes {config['num_classes']}, but {data.name} has "
            f"{len(data.classes)} classes; leave num_classes out"
        )
    return _fit(context, recipe, data, model, progress, origin=arch)


def _finetune(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    source = context.only_input.path("checkpoint")
    return _fit(context, recipe, data, load(source), progress, origin=sha256_of(source))


def _fit(
    context: Context,
    recipe: Recipe,
    data: ImageData,
    model: torch.nn.Module,
    progress: bool,
    *,
    origin: str,
) -> dict[str, Any]:
    options = context.task.options
    config = TrainingConfig(seed=recipe.seed, **_training_options(options))
    augment = AugmentConfig(**options["augment"])
    result = fit(
        model,
        data,
        objective_of(config),
        config,
        context.folder,
        augment=Augment(augment, len(data.classes), data.preprocessing),
        progress=progress,
        save_meta={"origin": origin},
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


def _training_options(options: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(TrainingConfig)} - {"seed"}
    found = {name: value for name, value in options.items() if name in names}
    return {**found, "milestones": tuple(found["milestones"])}


def _slim(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    options = context.task.options
    source = context.only_input
    job = SlimJob(
        checkpoint=source.path("checkpoint"),
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
        image_size=data.preprocessing.image_size,
        images=data,
        seed=recipe.seed,
    )
    (report,) = slim_checkpoint(job)
    told = report.to_dict()
    write_json(context.folder / "slim.report.json", _portable(told))
    original = load(job.checkpoint)
    scaled = with_scales(original, resolve_kinds(original, options["groups"]))
    save_gamma_histogram(scaled, context.folder / "gamma.svg", threshold=told["threshold"])
    return {
        "checkpoint": "slim.pth",
        "ratio": options["ratio"],
        "true_pruned_ratio": told["true_pruned_ratio"],
        "threshold": told["threshold"],
        "absorption": told["absorption"],
        "test": _test_accuracy(report.result.model, data, progress),
    }


def _portable(report: dict[str, Any]) -> dict[str, Any]:
    """Name files without their folders: a run may be moved."""
    source = {**report["source"], "path": Path(report["source"]["path"]).name}
    return {**report, "source": source, "output": Path(report["output"]).name}


def _export(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    model = load(context.only_input.path("checkpoint"))
    split = data.splits["calibration"]
    images = data.normalize(split.images(torch.arange(min(PARITY_IMAGES, len(split)))))
    export = onnx_from_module(model, images, context.folder / "model.onnx")
    return {"onnx": "model.onnx", "opset": export.opset, "parity": asdict(export.parity)}


def _compare(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    image = data.normalize(data.splits["test"].images(torch.arange(1)))
    table = compare_networks(context, image, seconds=context.task.options["seconds"])
    write_json(context.folder / "table.json", table)
    write_text(context.folder / "table.txt", table_text(table) + "\n")
    return {"table": "table.txt"}


def _test_accuracy(model: torch.nn.Module, data: ImageData, progress: bool) -> dict[str, Any]:
    found = evaluate_accuracy(model, data.splits["test"], data.normalize, progress=progress)
    return found.to_dict()
