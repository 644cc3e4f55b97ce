"""Networks of every kind with exits, from checkpoint to decisions; several tensors may cross."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from compress.checkpoint import save
from compress.data.spec import load_data
from compress.export.export_job import ExportJob, ExportReport, export_checkpoint
from compress.models.factory import FACTORY_ARCH, call_factory
from compress.models.give_exits import with_exits
from compress.models.with_exits import WithExits
from compress.opened import Opening
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import read_manifest
from tests.exit_networks import lively, residual

SIZE = 16
# What each gives on behind its exits, and what the segments take.
FACTORIES = {
    "dense": ("dense_classifier", ["first.1", "second.0"]),
    "unet": ("unet_classifier", ["deep", "up"]),
    "transformer": ("vision_transformer", ["layers.0", "layers.1"]),
}
CROSSING = {
    "resnet": [["hidden_0"], ["hidden_1"], ["hidden_2"]],
    "dense": [["hidden_0", "hidden_1", "hidden_2"], ["hidden_3", "hidden_4"]],
    "unet": [["hidden_0", "hidden_1", "hidden_2"], ["hidden_0", "hidden_3"]],
    "transformer": [["hidden_0"], ["hidden_1"]],
}


@dataclass
class Scene:
    """A bundle, and the network that it was made of."""

    job: ExportJob
    report: ExportReport
    model: WithExits


def from_factory(function: str, positions: list[str]) -> WithExits:
    backbone: nn.Module = call_factory(name_of(function))
    backbone.arch, backbone.config = FACTORY_ARCH, {"factory": name_of(function)}
    with torch.no_grad():  # running statistics as after some training
        backbone.train()(torch.randn(16, 3, SIZE, SIZE))
    image = torch.zeros(1, 3, SIZE, SIZE)
    return lively(with_exits(backbone.eval(), positions, image), SIZE)


def name_of(function: str) -> str:
    return f"tests.export.backbones:{function}"


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=SIZE)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, digits):
    """Checkpoints by kind, each with how it is opened and its network; made when asked for."""
    known = {}

    def made(kind):
        if kind not in known:
            function, positions = FACTORIES.get(kind, (None, []))
            model = from_factory(function, positions) if function else residual("conv:8", size=SIZE)
            path = tmp_path_factory.mktemp("checkpoint") / f"{kind}.pth"
            meta = {"data": {"name": "digits"}, "preprocessing": digits.preprocessing.to_dict()}
            save(model, path, meta={**meta, "classes": list(digits.classes)})
            factory = name_of(function) if function else None
            known[kind] = path, Opening(factory=factory, image_size=SIZE), model
        return known[kind]

    return made


def exported(checkpoints, kind, folder, **options):
    path, opening, model = checkpoints(kind)
    values = {"max_batch": 8, "target": "onnxruntime", "thresholds": 0.5, **options}
    job = ExportJob(
        checkpoint=path,
        output=folder / "bundle",
        opening=opening,
        split_exits=True,
        progress=False,
        **values,
    )
    return Scene(job, export_checkpoint(job), model)


@pytest.fixture(scope="module", params=list(CROSSING))
def scene(request, checkpoints, tmp_path_factory):
    return request.param, exported(checkpoints, request.param, tmp_path_factory.mktemp("bundle"))


def some_images(digits, count=48):
    return digits.normalize(digits.splits["test"].images(torch.arange(count)))


def decisions(model, images, thresholds):
    runs = [model.forward_early(image[None], thresholds) for image in images]
    return [number for _, number in runs], torch.cat([logits for logits, _ in runs])


def test_the_bundle_decides_as_torch_does(scene, digits):
    _, found = scene
    images = some_images(digits)
    exits, logits = decisions(found.model, images, 0.5)
    assert len(set(exits)) == len(found.model.exit_paths) + 1  # or the test shows little
    with Dispatcher(found.job.output) as dispatcher:
        parts = [dispatcher.run(part.numpy()) for part in images.split(7)]  # and compacts
        alone = dispatcher.run(images[5].numpy())
    assert np.concatenate([each.exits for each in parts]).tolist() == exits
    given = torch.from_numpy(np.concatenate([each.logits for each in parts]))
    torch.testing.assert_close(given, logits, rtol=1e-4, atol=1e-4)
    assert alone.exits[0] == exits[5]


def test_the_manifest_tells_where_exits_stand_and_what_crosses(scene):
    kind, found = scene
    manifest = read_manifest(found.job.output)
    assert tuple(s.at for s in manifest.segments) == (*found.model.exit_paths, None)
    crossing = [[spec.name for spec in manifest.living(i)] for i in range(manifest.exits)]
    assert crossing == CROSSING[kind]
    assert manifest.parity["exit_agreement"] == 1.0
    assert max(manifest.parity["segment_errors"]) < 1e-4
    assert sum(segment.macs for segment in manifest.segments) > 0
    assert manifest.notes["check_macs"] == [c for c in manifest.notes["check_macs"] if c > 0]


def test_the_report_names_modules_and_what_crosses(scene):
    kind, found = scene
    text = found.report.to_text()
    rows = [line.split() for line in text.splitlines()[2 : 3 + len(found.model.exit_paths)]]
    assert [row[1] for row in rows] == [*found.model.exit_paths, "-"]
    counts = [f"{len(names)}," for names in CROSSING[kind]]
    assert [row[2] for row in rows] == [*counts, "-"]


def test_one_of_several_exits(checkpoints, digits, tmp_path):
    found = exported(checkpoints, "resnet", tmp_path, exits=("layer2.0",), max_batch=1)
    assert [s.at for s in found.report.manifest.segments] == ["layer2.0", None]
    images = some_images(digits, 16)
    exits, _ = decisions(found.model.with_positions(["layer2.0"]), images, 0.5)
    with Dispatcher(found.job.output) as dispatcher:
        assert [int(dispatcher.run(image.numpy()).exits[0]) for image in images] == exits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "target"),
    [
        ("resnet", "fp16", "jetpack5.1"),
        ("resnet", "int8", "jetpack6.2"),
        ("unet", "fp16", "onnxruntime"),
        ("unet", "int8", "onnxruntime"),
        ("transformer", "fp16", "jetpack6.2"),  # int8 is too coarse for one that nobody trained
    ],
)
def test_every_precision_decides_nearly_as_torch(
    checkpoints, digits, tmp_path, kind, precision, target
):
    options = {"precision": precision, "target": target, "tolerance": 1.0, "keep_int8": True}
    found = exported(checkpoints, kind, tmp_path, **options)
    manifest = found.report.manifest
    assert manifest.parity["exit_agreement"] >= 0.85
    assert manifest.parity["top1_agreement"] >= 0.9
    # What stands behind the last exit of the residual network has no layer but the final one.
    assert {segment.precision for segment in manifest.segments[:-1]} == {precision}
    kinds = {spec.dtype for segment in manifest.segments for spec in segment.gives}
    assert kinds == {"float16" if precision == "fp16" else "float32"}
    with Dispatcher(found.job.output) as dispatcher:
        assert dispatcher.run(some_images(digits, 8).numpy()).logits.shape == (8, 10)
