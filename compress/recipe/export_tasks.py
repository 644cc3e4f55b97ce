"""Tasks that take a network to another runtime, and prove that it decides there as it did here."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.data.image_data import ImageData
from compress.errors import AccuracyError
from compress.export.export_job import ExportJob, export_checkpoint
from compress.export.onnx_file import onnx_from_module
from compress.files import replacing, write_json
from compress.models.outputs import logits_of
from compress.models.with_exits import WithExits
from compress.optional import require
from compress.recipe.engine import Context
from compress.recipe.networks import network_of, opening_of
from compress.recipe.schema import Recipe
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import Manifest

__all__ = ["dispatch_bundle", "export_network"]

PARITY_IMAGES = 32
SAMPLES = 16
BATCH = 64  # images that are held at a time
FOUND = ("exits", "classes")
LEAST_AGREEMENT = {"fp32": 0.99, "fp16": 0.95, "int8": 0.8}  # of decisions with torch's


def export_network(
    context: Context, recipe: Recipe, data: ImageData, progress: bool
) -> dict[str, Any]:
    """Write the network as one ONNX file, or as a bundle of segments."""
    if context.task.options["format"] == "bundle":
        return _bundle(context, recipe, data, progress)
    model = network_of(context, context.network.path("checkpoint"))
    split = data.splits["calibration"]
    images = data.normalize(split.images(torch.arange(min(PARITY_IMAGES, len(split)))))
    export = onnx_from_module(model, images, context.folder / "model.onnx")
    return {"onnx": "model.onnx", "opset": export.opset, "parity": asdict(export.parity)}


def _bundle(context: Context, recipe: Recipe, data: ImageData, progress: bool) -> dict[str, Any]:
    options, evaluated = context.task.options, context.of("evaluate")
    planned = context.of("plan")
    report = export_checkpoint(
        ExportJob(
            checkpoint=context.network.path("checkpoint"),
            opening=opening_of(context),
            output=context.folder / "bundle",
            split_exits=planned is not None or evaluated is not None,
            plan=None if planned is None else planned.path("plan"),
            thresholds=None if evaluated is None else evaluated.figures["threshold"],
            target=options["target"],
            precision=options["precision"],
            max_batch=options["batch"],
            builder="none",
            data=data,
            force=True,  # what an interrupted run of this task left
            seed=recipe.seed,
            progress=progress,
        )
    )
    told = {**report.to_dict(), "bundle": "bundle"}
    write_json(context.folder / "export.report.json", told)
    return {
        "bundle": "bundle",
        "opset": report.manifest.opset,
        "segments": len(report.manifest.segments),
        "thresholds": report.manifest.thresholds,
        "parity": report.parity.to_dict(),
        "size_bytes": sum(report.sizes),
    }


def dispatch_bundle(
    context: Context, recipe: Recipe, data: ImageData, progress: bool
) -> dict[str, Any]:
    """Dispatch the test images one by one, and compare every decision with torch's early return.

    Raises:
        AccuracyError: too many images leave elsewhere, or as another class.
    """
    exported = context.of("export")
    if exported is None or "bundle" not in exported.figures:
        raise AccuracyError("there is no bundle to dispatch; expected export with format: bundle")
    model = network_of(context, context.network.path("checkpoint"))
    decisions: list[tuple[NDArray[np.int64], ...]] = []
    with Dispatcher(exported.path("bundle"), "onnxruntime") as dispatcher:
        manifest = dispatcher.manifest
        for pixels, labels in data.splits["test"].batches(BATCH):
            images = data.normalize(pixels)
            found = [dispatcher.run(image) for image in images.numpy()]
            exits, classes = (np.concatenate([getattr(f, n) for f in found]) for n in FOUND)
            decisions.append(
                (exits, classes, *_torch_decisions(model, manifest, images), labels.numpy())
            )
    exits, classes, torch_exits, torch_classes, wanted = map(
        np.concatenate, zip(*decisions, strict=True)
    )
    same = (exits == torch_exits) & (classes == torch_classes)
    least = LEAST_AGREEMENT[exported.task.options["precision"]]
    if same.mean() < least:
        raise AccuracyError(
            f"the bundle of {context.task.name} decides as torch does for {same.mean():.2%} of "
            f"{len(same)} test images; expected at least {least:.0%}"
        )
    _save_samples(context.folder / "samples", data)
    return {
        "images": len(same),
        "same_decisions": int(same.sum()),
        "exit_counts": np.bincount(exits, minlength=manifest.exits + 1).tolist(),
        "acc1": 100.0 * float((classes == wanted).mean()),
    }


def _save_samples(folder: Path, data: ImageData) -> None:
    """Write a few test pictures, named by their class, to try `python -m compress.dispatch` on."""
    pillow = require("PIL.Image", "writing pictures")
    test = data.splits["test"]
    folder.mkdir(exist_ok=True)
    pixels = test.images(torch.arange(min(SAMPLES, len(test))))
    for number, (image, label) in enumerate(zip(pixels, test.labels.tolist(), strict=False)):
        name = re.sub(r"[^A-Za-z0-9._-]", "-", data.classes[label])
        with replacing(folder / f"{number:02}-{name}.png") as part:
            pillow.fromarray(image.permute(1, 2, 0).numpy()).save(part, format="PNG")


@torch.inference_mode()
def _torch_decisions(
    model: nn.Module, manifest: Manifest, images: torch.Tensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Exits and classes that torch gives image by image, at the thresholds of a bundle."""
    if manifest.exits == 0:
        classes = torch.cat([logits_of(model(image)).argmax(1) for image in images.split(1)])
        return np.zeros(len(images), dtype=np.int64), classes.numpy()
    if not isinstance(model, WithExits):
        raise TypeError(f"{type(model).__name__} has no exits, the bundle has {manifest.exits}")
    gated = model.with_positions([part.at for part in manifest.segments if part.at is not None])
    runs = [gated.forward_early(image, manifest.thresholds) for image in images.split(1)]
    classes = torch.cat([logits.argmax(1) for logits, _ in runs])
    return np.array([number for _, number in runs]), classes.numpy()
