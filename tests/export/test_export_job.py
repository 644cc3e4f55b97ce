"""From a checkpoint file to a bundle, with the real exporter and ONNX Runtime."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.checkpoint import save
from compress.data.spec import load_data
from compress.errors import AccuracyError, UserInputError
from compress.export import export_job
from compress.export.bundle import foreign_in_bundle
from compress.export.export_job import ExportJob, export_checkpoint, parse_batch
from compress.export.source import newest_checkpoint
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.vgg import VGG
from compress.opened import Opening
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import MANIFEST, read_manifest
from compress.runtime.probe import read_probe
from compress.runtime.self_test import self_test

EXITS, IMAGE = [0, 1], 16


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=IMAGE)


def some_images(digits, count=64):
    split = digits.splits["test"]
    return digits.normalize(split.images(torch.arange(count)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    """A small network whose gates and classes differ from image to image."""
    torch.manual_seed(0)
    model = GFNetDynn(
        image_size=IMAGE, patch_size=4, width=16, depth=3, num_classes=10, exits=EXITS
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for gate in model.gates:
            gate.linear.weight.copy_(torch.tensor([[4.0, -1.0, 2.0, 0.5]]))
        # Half of the images are above the bars 0.6 and 0.7 of these tests.
        gates = model.forward_all(some_images(digits))[1]
        for gate, logits, bar in zip(model.gates, gates.T, (0.6, 0.7), strict=True):
            gate.linear.bias.add_(torch.logit(torch.tensor(bar)) - logits.median() - 1e-3)
    path = tmp_path_factory.mktemp("checkpoint") / "dynn.pth"
    meta = {
        "data": {"name": "digits"},
        "preprocessing": digits.preprocessing.to_dict(),
        "classes": list(digits.classes),
    }
    save(model, path, meta=meta)
    return path, model


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    path, model = checkpoint
    job = ExportJob(
        checkpoint=path,
        output=tmp_path_factory.mktemp("bundle") / "dynn.bundle",
        split_exits=True,
        thresholds=(0.6, 0.7),
        target="onnxruntime",
        max_batch=8,
        progress=False,
    )
    return job, export_checkpoint(job), model


def test_the_bundle_decides_as_torch_does(exported, digits):
    job, _report, model = exported
    images = some_images(digits)
    wanted = [model.forward_early(image[None], [0.6, 0.7]) for image in images]
    with Dispatcher(job.output) as dispatcher:
        found = dispatcher.run(images.numpy())
    assert found.exits.tolist() == [number for _, number in wanted]
    assert set(found.exits.tolist()) == {0, 1, 2}  # or the test shows little
    logits = torch.cat([logits for logits, _ in wanted])
    torch.testing.assert_close(torch.from_numpy(found.logits), logits, rtol=1e-4, atol=1e-4)


def test_the_bundle_carries_images_to_test_itself_with(exported):
    job, report, _model = exported
    bundle, manifest = job.output, report.manifest
    probe = read_probe(bundle, manifest)
    assert 1 <= len(probe.images) <= 8
    with Dispatcher(bundle) as dispatcher:
        tested = self_test(dispatcher, probe)
    assert tested.passed
    assert list(tested.exits) == probe.exits(manifest.thresholds).tolist()
    assert foreign_in_bundle(bundle) == []


def test_the_manifest_tells_what_was_measured_and_where_it_comes_from(exported):
    job, report, _ = exported
    manifest = read_manifest(job.output)
    assert manifest == report.manifest
    assert manifest.parity["worst_relative_error"] < 1e-5
    assert manifest.parity["exit_agreement"] == 1.0
    assert manifest.parity["images_name"] == "64 calibration images of digits"
    assert manifest.provenance["checkpoint"] == "dynn.pth"
    assert len(manifest.notes["check_macs"]) == 2
    assert [segment.at for segment in manifest.segments] == ["blocks.0", "blocks.1", None]
    opsets = {
        onnx.load(job.output / segment.file).opset_import[0].version
        for segment in manifest.segments
    }
    assert opsets == {manifest.opset}


def test_the_report_reads_like_a_table_and_is_json(exported):
    job, report, _ = exported
    text = report.to_text()
    rows = [line.split() for line in text.splitlines()[1:5]]
    assert rows[0][:5] == ["segment", "exit", "behind", "crosses", "precision"]
    # 4 x 4 tokens of width 16 in float32 cross
    assert rows[1][:6] == ["0", "0", "1,", "1.0", "KiB", "fp32"]
    assert rows[2][1:7] == ["1", "1,", "1.0", "KiB", "fp32", "0.7"]
    assert rows[3][:5] == ["2", "-", "-", "fp32", "-"]
    assert "same class 100.00%, same exit 100.00%" in text
    assert text.endswith(f"written: {job.output}")
    assert json.loads(json.dumps(report.to_dict()))["schema"] == "compress.export/1"


def test_a_bundle_that_is_there_is_not_replaced_unasked(exported):
    with pytest.raises(UserInputError, match="exists; give another name"):
        export_checkpoint(exported[0])


def test_a_folder_that_is_no_bundle_is_never_replaced(exported, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").write_text("dear")
    job = ExportJob(**{**vars(exported[0]), "output": tmp_path / "home", "force": True})
    with pytest.raises(UserInputError, match="exists and is no bundle"):
        export_checkpoint(job)
    assert (tmp_path / "home" / "letters").read_text() == "dear"


def test_exits_that_are_not_named_are_not_exported(checkpoint, digits, tmp_path):
    path, model = checkpoint
    job = ExportJob(
        checkpoint=path,
        output=tmp_path / "one.bundle",
        split_exits=True,
        exits=(1,),
        thresholds=0.7,
        data=digits,
        progress=False,
    )
    report = export_checkpoint(job)
    assert [segment.at for segment in report.manifest.segments] == ["blocks.1", None]
    assert report.manifest.batch == (1, 1)
    assert report.manifest.target == "jetpack6.2"
    assert "python -m compress.build_engines one.bundle" in report.next_step
    images = some_images(digits, 8)
    gates = torch.sigmoid(model.forward_all(images)[1])[:, 1]
    with Dispatcher(job.output) as dispatcher:
        found = dispatcher.run(images.numpy())
    assert found.exits.tolist() == [0 if gate >= 0.7 else 1 for gate in gates]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["jetpack5.1", "jetpack6.0", "tensorrt11"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_precision_and_target_decides_nearly_as_torch(
    checkpoint, digits, tmp_path, target, precision
):
    path, _model = checkpoint
    job = ExportJob(
        checkpoint=path,
        output=tmp_path / "bundle",
        split_exits=True,
        thresholds=(0.6, 0.7),
        target=target,
        precision=precision,
        data=digits,
        progress=False,
        tolerance=0.5,
    )
    report = export_checkpoint(job)
    assert report.manifest.parity["exit_agreement"] >= 0.85
    assert report.manifest.parity["top1_agreement"] >= 0.9
    assert {segment.precision for segment in report.manifest.segments} == {precision}
    if precision == "int8":
        assert report.recalibration is not None
        assert report.manifest.thresholds == list(report.recalibration.thresholds)
        assert "recalibration" in report.manifest.notes
    with Dispatcher(job.output) as dispatcher:
        assert dispatcher.run(some_images(digits, 4).numpy()).logits.shape == (4, 10)


def test_a_network_without_exits_becomes_one_segment(tmp_path, caplog):
    torch.manual_seed(0)
    model = VGG(widths=[[8], [16]], num_classes=7, hidden=[], pooled=1).eval()
    save(model, tmp_path / "vgg.pth")
    job = ExportJob(
        checkpoint=tmp_path / "vgg.pth",
        output=tmp_path / "vgg.bundle",
        opening=Opening(image_size=16),
        target="onnxruntime",
        progress=False,
    )
    report = export_checkpoint(job)
    assert report.manifest.exits == 0
    assert report.manifest.classes == tuple("0123456")
    assert report.manifest.preprocessing is None
    assert "compared on noise" in caplog.text
    images = torch.randn(3, 3, 16, 16)
    with Dispatcher(job.output) as dispatcher:
        found = dispatcher.run(images.numpy())
    assert found.exits.tolist() == [0, 0, 0]
    wanted = model(images).detach()
    torch.testing.assert_close(torch.from_numpy(found.logits), wanted, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_of_an_export_that_fails(checkpoint, tmp_path):
    job = ExportJob(
        checkpoint=checkpoint[0],
        output=tmp_path / "x.bundle",
        split_exits=True,
        thresholds=0.5,
        tolerance=0.0,
        progress=False,
    )
    with pytest.raises(AccuracyError, match=r"segment_\d diverges first"):
        export_checkpoint(job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_replaced_bundle_is_the_old_or_the_new_one(exported, monkeypatch, tmp_path):
    job = ExportJob(
        **{**vars(exported[0]), "output": tmp_path / "b", "exits": (0,), "thresholds": 0.5}
    )
    export_checkpoint(job)
    before = (job.output / MANIFEST).read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_job, "_engines", fail)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(ExportJob(**{**vars(job), "force": True, "thresholds": 0.9}))
    assert (job.output / MANIFEST).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"exits": (2,)}, "behind 2; expected some of 0, 1", id="no-such-exit"),
        pytest.param({"thresholds": (0.1,) * 3}, "3 thresholds for 2 exits", id="count"),
        pytest.param({"thresholds": 2.0}, "a threshold is 2.0", id="range"),
        pytest.param({"split_exits": False}, "--thresholds was given without", id="unsplit"),
        pytest.param({"target": "jetpack6.3"}, "jetpack6.[02]", id="target"),
        pytest.param({"builder": "gcc"}, "--builder is 'gcc'", id="builder"),
        pytest.param({"checkpoint": Path("nowhere.pth")}, "does not exist", id="missing"),
    ],
)
def test_wrong_options_are_told_before_the_work(checkpoint, tmp_path, options, message):
    values = {
        "checkpoint": checkpoint[0],
        "output": tmp_path / "b",
        "split_exits": True,
        "thresholds": 0.5,
        "progress": False,
        **options,
    }
    with pytest.raises(UserInputError, match=message):
        export_checkpoint(ExportJob(**values))


def test_splitting_a_network_without_exits_is_refused(tmp_path):
    model = GFNet(image_size=16, patch_size=4, width=8, depth=2, num_classes=3)
    save(model, tmp_path / "plain.pth")
    job = ExportJob(checkpoint=tmp_path / "plain.pth", output=tmp_path / "b", split_exits=True)
    with pytest.raises(UserInputError, match="GFNet without early exits; leave it out"):
        export_checkpoint(job)


def test_int8_needs_images(tmp_path):
    model = VGG(widths=[[8]], num_classes=3, hidden=[], pooled=1)
    save(model, tmp_path / "vgg.pth")
    job = ExportJob(
        checkpoint=tmp_path / "vgg.pth",
        output=tmp_path / "b",
        precision="int8",
        opening=Opening(image_size=16),
    )
    with pytest.raises(UserInputError, match="expected --data SPEC"):
        export_checkpoint(job)


@pytest.mark.parametrize(("text", "largest"), [("1", 1), ("1:32", 32), ("1:1", 1)])
def test_batches_are_read(text, largest):
    assert parse_batch(text) == largest


@pytest.mark.parametrize("text", ["4", "2:8", "1:", ":8", "0", "1:0", "x", "1:2:3", ""])
def test_batches_that_do_not_start_at_one_are_refused(text):
    with pytest.raises(UserInputError, match="--batch is"):
        parse_batch(text)


def test_the_newest_checkpoint_with_exits_is_found(checkpoint, tmp_path):
    _, model = checkpoint
    with pytest.raises(UserInputError, match="there is none with early exits under"):
        newest_checkpoint(tmp_path)
    for age, name in enumerate(["new/best.pth", "old/best.pth"]):
        save(model, tmp_path / name)
        import os

        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    save(model, tmp_path / "newer" / "last.pth")
    (tmp_path / "notes.pth").write_bytes(b"no checkpoint")
    plain = GFNet(image_size=16, patch_size=4, width=8, depth=2, num_classes=3)
    save(plain, tmp_path / "plain.pth")
    assert newest_checkpoint(tmp_path) == tmp_path / "new/best.pth"


@pytest.mark.slow
def test_exporting_twice_gives_the_same_files(checkpoint, tmp_path):
    for name in ("a", "b"):
        export_checkpoint(
            ExportJob(
                checkpoint=checkpoint[0],
                output=tmp_path / name,
                split_exits=True,
                exits=(0,),
                thresholds=0.5,
                progress=False,
            )
        )
    for file in ("segment_0.onnx", "segment_1.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_filter_of_an_export_is_exact(checkpoint, exported):
    """Against numpy's FFT, in double precision: the filter alone, as written by the exporter."""
    _, model = checkpoint
    graph = onnx.load(exported[0].output / "segment_2.onnx")
    shapes = {tuple(i.dims) for i in graph.graph.initializer}
    assert (12, 16) in shapes  # the transform: 4 x 3 bins of 4 x 4 tokens
    from compress.models.global_filter import filter_as_matrices

    layer = model.blocks[2].filter
    x = torch.randn(2, 16, 16)
    weight = torch.view_as_complex(layer.complex_weight.detach().double()).numpy()
    spectrum = np.fft.rfft2(x.double().numpy().reshape(2, 4, 4, 16), axes=(1, 2), norm="ortho")
    wanted = np.fft.irfft2(spectrum * weight, s=(4, 4), axes=(1, 2), norm="ortho").reshape(
        2, 16, 16
    )
    found = filter_as_matrices(layer)(x).detach().double().numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-5
