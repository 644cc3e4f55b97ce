"""The probe of a bundle: what the exporter measured, read on the device, and run there."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from compress import dispatch
from compress.errors import AccuracyError, UserInputError
from compress.export.probe import with_probe
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import MANIFEST, read_manifest, write_manifest
from compress.runtime.probe import PROBE, read_probe, write_probe
from compress.runtime.self_test import self_test
from tests.export.triton_bundles import (
    THRESHOLDS,
    early_exit,
    images_with,
    save_segment,
    write_bundle,
)
from tests.runtime import crossing_bundle

GATES = [(0.9, 0), (0.1, 0.9), (0.1, 0.1), (0.8, 0), (0.7, 0), (0.6, 0), (0.95, 0), (0.9, 0.9)] * 2


@pytest.fixture(params=[1, 8], ids=["one-at-a-time", "batches"])
def bundle(tmp_path, request):
    folder = tmp_path / "bundle"
    manifest = write_bundle(folder, batch=request.param)
    write_manifest(with_probe(images_with(GATES), manifest, folder), folder)
    return folder


def probe_of(bundle):
    return read_probe(bundle, read_manifest(bundle))


def test_a_probe_holds_what_the_graphs_make_of_its_images(bundle):
    probe = probe_of(bundle)
    assert probe.images.shape == (8, 1, 2, 4)
    logits, exits = early_exit(probe.images, THRESHOLDS)
    np.testing.assert_array_equal(probe.exits(THRESHOLDS), exits[:, 0])
    taken = np.array([probe.results[e]["logits"][row] for row, e in enumerate(exits[:, 0])])
    np.testing.assert_allclose(taken, logits, rtol=1e-5)


def test_every_exit_is_taken_by_a_chosen_image(bundle):
    counts = np.bincount(probe_of(bundle).exits(THRESHOLDS), minlength=3)
    assert counts.tolist() == [4, 2, 2]  # of the 16 images 12, 2 and 2


def test_a_bundle_passes_its_own_test(bundle, capsys):
    assert dispatch.main([str(bundle), "--self-test", "--backend", "onnxruntime", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert sorted(found["exits"]) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [part["error"] < 1e-5 for part in found["segments"]] == [True] * 3
    assert dispatch.main([str(bundle), "--self-test", "--thresholds", "1"]) == 0
    assert "8 of 8 as exported" in capsys.readouterr().out


def scaled(bundle, number, factor):
    """A segment whose logits are off, as if an engine had lost them to half precision."""
    model = onnx.load(bundle / f"segment_{number}.onnx")
    weights = next(each for each in model.graph.initializer if each.name == "weights")
    array = onnx.numpy_helper.to_array(weights) * np.float32(factor)
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "weights"))
    save_segment(model, bundle, number)


def test_a_segment_that_computes_something_else_is_named(bundle, capsys):
    scaled(bundle, 1, 1.02)
    assert dispatch.main([str(bundle), "--self-test"]) == AccuracyError.exit_code
    out, err = capsys.readouterr()
    assert "segment_1.onnx is off by 2.0e-02, at most 0.01 relative" in err
    lines = {line.split()[0]: line.split()[-1] for line in out.splitlines()}
    assert [lines[f"segment_{i}.onnx"] for i in range(3)] == ["ok", "BEYOND", "ok"]


def test_what_half_precision_costs_is_within_its_tolerance(bundle):
    scaled(bundle, 1, 1.02)
    manifest = read_manifest(bundle)
    half = tuple(replace(segment, precision="fp16") for segment in manifest.segments)
    write_manifest(replace(manifest, segments=half), bundle)
    with Dispatcher(bundle) as dispatcher:
        assert self_test(dispatcher, probe_of(bundle)).passed


def test_a_gate_that_is_not_a_number_fails(bundle, capsys):
    model = onnx.load(bundle / "segment_0.onnx")
    next(node for node in model.graph.node if "gate" in node.output).input[1] = "no_number"
    constant = onnx.numpy_helper.from_array(np.float32("nan"), "no_number")
    model.graph.initializer.append(constant)
    save_segment(model, bundle, 0)
    assert dispatch.main([str(bundle), "--self-test", "--json"]) == AccuracyError.exit_code
    out, err = capsys.readouterr()
    assert json.loads(out)["segments"][0]["gate_error"] is None
    assert "the gate of segment_0.onnx is off by nan, at most 0.02" in err


def test_images_that_compaction_mixes_up_are_found(tmp_path):
    manifest = write_bundle(tmp_path / "b")
    write_manifest(with_probe(images_with(GATES), manifest, tmp_path / "b"), tmp_path / "b")
    with Dispatcher(tmp_path / "b") as dispatcher:
        keep = dispatcher.backend.keep
        dispatcher.backend.keep = lambda rows: keep(rows[::-1])
        tested = self_test(dispatcher, probe_of(tmp_path / "b"))
    assert all(part.passed for part in tested.segments)  # each alone is right
    assert not tested.passed
    with pytest.raises(AccuracyError, match="leave elsewhere, or with other logits"):
        tested.check(tmp_path / "b")


def test_images_that_leave_elsewhere_than_their_gates_say_are_counted(tmp_path):
    manifest = write_bundle(tmp_path / "b")
    write_manifest(with_probe(images_with(GATES), manifest, tmp_path / "b"), tmp_path / "b")
    with Dispatcher(tmp_path / "b") as dispatcher:
        dispatcher._bars = [1.0, 1.0]  # a fault in what decides: nobody leaves
        tested = self_test(dispatcher, probe_of(tmp_path / "b"))
    assert tested.wrong_exits == 6
    assert not tested.passed


def test_a_gate_at_its_threshold_may_fall_either_way(tmp_path):
    manifest = write_bundle(tmp_path / "b")
    images = images_with([(0.51, 0), (0.49, 0), (0.9, 0)])
    write_manifest(with_probe(images, manifest, tmp_path / "b"), tmp_path / "b")
    with Dispatcher(tmp_path / "b", thresholds=[0.5, 0.25]) as dispatcher:
        dispatcher._bars = [1.0, 1.0]
        tested = self_test(dispatcher, probe_of(tmp_path / "b"))
    assert tested.wrong_exits == 1  # the clear one: 0.02 is what float32 may differ by


def test_a_network_where_several_tensors_cross(tmp_path):
    manifest = crossing_bundle.write_bundle(tmp_path / "unet")
    gates = np.array([[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9], [0, 0, 0]] * 3)
    images = crossing_bundle.images_with(gates)
    write_manifest(with_probe(images, manifest, tmp_path / "unet"), tmp_path / "unet")
    with Dispatcher(tmp_path / "unet") as dispatcher:
        tested = self_test(dispatcher, probe_of(tmp_path / "unet"))
    assert tested.passed
    assert sorted(tested.exits) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_images_that_are_not_finite_are_not_chosen(tmp_path):
    manifest = write_bundle(tmp_path / "b")
    images = images_with(GATES)
    images[:8, 0, 1, 3] = np.inf  # the logits too
    manifest = with_probe(images, manifest, tmp_path / "b")
    assert np.isfinite(read_probe(tmp_path / "b", manifest).images).all()
    assert with_probe(images[:8], replace(manifest, probe=None), tmp_path / "b").probe is None


def test_a_bundle_without_a_probe_says_so(tmp_path, capsys):
    write_bundle(tmp_path / "b")
    assert dispatch.main([str(tmp_path / "b"), "--self-test"]) == UserInputError.exit_code
    assert "carries no probe" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["x.npy", "--self-test"]])
def test_images_or_the_probe(bundle, capsys, arguments):
    assert dispatch.main([str(bundle), *arguments]) == UserInputError.exit_code
    assert "expected one of them" in capsys.readouterr().err


def put(**change):
    def changed(bundle):
        path = bundle / MANIFEST
        value = json.loads(path.read_text())
        value["probe"].update(change)
        path.write_text(json.dumps(value))

    return changed


def shortened(bundle):
    (bundle / PROBE).write_bytes((bundle / PROBE).read_bytes()[:-1])


def flipped(bundle):
    content = bytearray((bundle / PROBE).read_bytes())
    content[7] ^= 1
    (bundle / PROBE).write_bytes(content)


def spoiled(bundle):
    manifest = read_manifest(bundle)
    probe = read_probe(bundle, manifest)
    images = probe.images.copy()
    images[0, 0, 0, 0] = np.nan
    write_manifest(write_probe(bundle, manifest, images, probe.results), bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(shortened, "bytes, its images take", id="short"),
        pytest.param(flipped, "its sha256 is", id="altered"),
        pytest.param(spoiled, "not finite", id="nan"),
        pytest.param(lambda b: (b / PROBE).unlink(), "does not exist", id="missing"),
        pytest.param(put(images=7), "bytes, its images take", id="count"),
        pytest.param(put(images=9), "in place of a whole number", id="many"),
        pytest.param(put(images=0), "in place of a whole number", id="none"),
        pytest.param(put(file="../probe.bin"), "not a plain name", id="outside"),
        pytest.param(put(file="segment_0.onnx"), "not a plain name", id="kind"),
        pytest.param(put(sha256="0" * 63), "sha256", id="sha256"),
    ],
)
def test_a_strangers_probe_is_refused_in_a_sentence(bundle, capsys, change, words):
    change(bundle)
    assert dispatch.main([str(bundle), "--self-test"]) == UserInputError.exit_code
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_too_many_images_are_no_probe(bundle):
    manifest, probe = read_manifest(bundle), probe_of(bundle)
    images = np.concatenate([probe.images, probe.images])
    with pytest.raises(ValueError, match="16 images, at most 8"):
        write_probe(bundle, manifest, images, probe.results)
