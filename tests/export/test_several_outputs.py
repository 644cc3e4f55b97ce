"""Networks that return more than logits, or none, in ONNX files and bundles that really run."""

import json

import numpy as np
import pytest
import torch

from compress import dispatch, export_trt
from compress.errors import AccuracyError, UnsupportedModelError, UserInputError
from compress.export.export_job import ExportJob, export_checkpoint
from compress.export.onnx_file import onnx_from_module, onnx_session
from compress.export.output_error import output_error
from compress.export.parity import check_parity
from compress.export.triton import write_triton
from compress.opened import Opening
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import TensorSpec, read_manifest
from tests.export import several_outputs as networks
from tests.export.several_outputs import trained
from tests.export.test_parity import parity_of

MAP = (6, 8, 8)


def images_of(count, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def nested(network, images):
    found = network(images)
    more = found.more
    return {
        "logits": found.logits,
        "maps.1": found.maps[1],
        "more.a_map_2": more["a map/2"],
        "more.a_map_2_2": more["a_map_2"],
        "more.class": more["class"].int(),
        "more.on": more["on"].int(),
    }


def awkward(network, images):
    found = network(images)
    aside = {"image": "image_2", "gate": "gate_2", "hidden": "hidden_2"}
    rest = {aside.get(name, name): each for name, each in found.items() if name != "out"}
    return {"logits": found["out"], **rest}


CASES = {
    "dict": (networks.ProbsDict, lambda n, x: {"logits": n(x)["probs"]}),
    "tuple": (networks.LogitsAndAux, lambda n, x: dict(zip(("logits", "1"), n(x), strict=True))),
    "nested": (networks.Nested, nested),
    "awkward": (networks.Awkward, awkward),
    "detector": (networks.ThreeHeads, lambda n, x: dict(zip("012", n(x), strict=True))),
}


@torch.inference_mode()
def wanted_of(case, images):
    network, named = CASES[case]
    return {name: each.numpy() for name, each in named(trained(network()), images).items()}


@pytest.mark.parametrize(
    "case",
    [
        "tuple",
        "awkward",
        # The same in a bundle, below, is among the fast tests.
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("dict", "nested", "detector")),
    ],
)
def test_an_onnx_file_gives_every_tensor_that_torch_gives(case, tmp_path):
    path = tmp_path / "model.onnx"
    export = onnx_from_module(trained(CASES[case][0]()), images_of(3), path)
    session = onnx_session(path)
    for count in (1, 5):
        images = images_of(count, seed=count)
        wanted = wanted_of(case, images)
        names = [output.name for output in session.get_outputs()]
        assert names == list(wanted)
        for name, value in zip(names, session.run(names, {"image": images.numpy()}), strict=True):
            assert value.dtype == wanted[name].dtype
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert list(export.parity.output_errors) == names
    assert max(export.parity.output_errors.values()) == export.parity.worst_relative_error < 1e-5
    assert export.parity.top1_agreement == (None if case == "detector" else 1.0)


class Drifting(networks.LogitsAndAux):
    """Its second output is another at each call, so that no file can agree in it."""

    calls = 0

    def forward(self, x):
        if not torch.compiler.is_exporting():
            self.calls += 1
        logits, aux = super().forward(x)
        return logits, aux * (1 + self.calls)


def test_the_output_that_differs_is_named(tmp_path):
    with pytest.raises(AccuracyError, match="relative in its output 1, on 2 images"):
        onnx_from_module(trained(Drifting()), images_of(2), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def exported(folder, name, **options):
    file = folder / "network.pth"
    torch.save(trained(getattr(networks, name)()).state_dict(), file)
    job = ExportJob(
        checkpoint=file,
        output=folder / "network.bundle",
        opening=Opening(factory=f"tests.export.several_outputs:{name}", image_size=16),
        target="onnxruntime",
        progress=False,
        **options,
    )
    return export_checkpoint(job)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("nested"), "Nested", max_batch=4)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("heads"), "ThreeHeads")


def test_the_manifest_lists_all_outputs_the_logits_first(classifier):
    manifest = read_manifest(classifier.bundle)
    assert manifest.segments[0].outputs == (
        TensorSpec("logits", "float32", (5,)),
        TensorSpec("maps.1", "float32", MAP),
        TensorSpec("more.a_map_2", "float32", MAP),
        TensorSpec("more.a_map_2_2", "float32", MAP),
        TensorSpec("more.class", "int32", ()),
        TensorSpec("more.on", "int32", (6,)),
    )
    assert manifest.parity["output_errors"].keys() == wanted_of("nested", images_of(1)).keys()
    assert "outputs: logits " in classifier.to_text()


@pytest.mark.parametrize("count", [1, 7])  # 7: in batches of 4
def test_a_bundle_gives_logits_and_all_other_outputs(classifier, count):
    images = images_of(count)
    wanted = wanted_of("nested", images)
    with Dispatcher(classifier.bundle, "onnxruntime", provider="cpu") as dispatcher:
        done = dispatcher.run(images.numpy(), times=True)
        again = dispatcher.run(images_of(count, seed=9).numpy())
    np.testing.assert_allclose(done.logits, wanted["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(done.classes, wanted["logits"].argmax(1))
    np.testing.assert_array_equal(done.exits, np.zeros(count))
    assert sum(images for _, images, _ in done.segment_ms) == count
    assert list(done.outputs) == list(wanted)[1:]
    for name, value in done.outputs.items():
        assert value.dtype == wanted[name].dtype
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert not np.array_equal(again.outputs["maps.1"], done.outputs["maps.1"])


def test_an_image_that_is_not_finite_has_no_outputs_and_spoils_no_other(classifier):
    images = images_of(3).numpy()
    wanted = wanted_of("nested", images_of(3))
    images[1, 0, 0, 0] = np.nan
    with Dispatcher(classifier.bundle, "onnxruntime", provider="cpu") as dispatcher:
        done = dispatcher.run(images)
    assert done.classes[1] == -1
    assert np.isnan(done.outputs["maps.1"][1]).all()
    assert done.outputs["more.class"][1] == -1
    np.testing.assert_allclose(done.outputs["maps.1"][2], wanted["maps.1"][2], rtol=1e-4, atol=1e-5)


def test_a_detector_has_outputs_and_no_classes(detector, caplog):
    images = images_of(3)
    wanted = wanted_of("detector", images)
    assert detector.manifest.classes == ()
    assert detector.parity.top1_agreement is None
    assert "no classes to compare" in detector.to_text()
    assert "outputs: 0 " in detector.to_text()
    with Dispatcher(detector.bundle, "onnxruntime", provider="cpu") as dispatcher:
        done = dispatcher.run(images.numpy())
    assert done.classes.tolist() == [-1] * 3
    assert done.logits.shape == (3, 0)
    assert "not finite" not in caplog.text
    assert list(done.outputs) == ["0", "1", "2"]
    for name, value in done.outputs.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5)


def test_what_needs_classes_refuses_a_detector_in_one_sentence(detector, tmp_path, capsys):
    np.save(tmp_path / "images.npy", images_of(1).numpy())
    assert dispatch.main([str(detector.bundle), str(tmp_path / "images.npy")]) == 3
    said = capsys.readouterr().err.strip()
    assert "has no classes: threeheads gives 0, 1, 2; expected a classifier" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(UserInputError, match="has no classes, as threeheads is no classifier"):
        write_triton(detector.bundle, tmp_path / "models")


def test_the_door_exports_a_network_that_returns_a_dict(tmp_path, capsys):
    torch.save(trained(networks.ProbsDict()).state_dict(), tmp_path / "net.pth")
    factory = "tests.export.several_outputs:ProbsDict"
    command = [tmp_path / "net.pth", "--model", factory, "--image-size", 16, "--json", "-q"]
    assert export_trt.main([str(word) for word in command]) == 0
    (segment,) = json.loads(capsys.readouterr().out)["manifest"]["segments"]
    assert [output["name"] for output in segment["outputs"]] == ["logits"]
    with Dispatcher(tmp_path / "net.bundle", "onnxruntime", provider="cpu") as dispatcher:
        done = dispatcher.run(images_of(1).numpy())
    np.testing.assert_allclose(
        done.logits, wanted_of("dict", images_of(1))["logits"], rtol=1e-4, atol=1e-5
    )
    assert done.outputs == {}


def test_an_output_without_a_row_for_each_image_is_refused(tmp_path):
    message = r"output 3 of the network has the shape \(1, 6, 2\) for 2 images; expected \(2, …\)"
    with pytest.raises(UnsupportedModelError, match=message):
        exported(tmp_path, "WithAnchors")
    assert not (tmp_path / "network.bundle").exists()


@pytest.mark.parametrize(
    ("found", "wanted", "error"),
    [
        pytest.param([[3.0, 4.5]], [[3.0, 4.0]], 0.1, id="relative"),
        pytest.param([[0.0, 0.0]], [[0.0, 0.0]], 0.0, id="nothing there"),
        pytest.param([[0.0, 1.0]], [[0.0, 0.0]], np.inf, id="something from nothing"),
        pytest.param([[-np.inf, 2.0]], [[-np.inf, 2.0]], 0.0, id="the same infinity"),
        pytest.param([[-np.inf, 3.0]], [[-np.inf, 2.0]], 0.5, id="beside an infinity"),
        pytest.param([[np.nan, 2.0]], [[1.0, 2.0]], np.nan, id="NaN"),
        pytest.param([[1], [2], [3], [4]], [[1], [2], [3], [5]], 0.25, id="whole numbers"),
        pytest.param([[1.0]], [[1.0, 2.0]], np.inf, id="another shape"),
    ],
)
def test_the_error_of_an_output(found, wanted, error):
    found, wanted = np.array(found), np.array(wanted)
    np.testing.assert_allclose(output_error(found, wanted), error, rtol=1e-6)


def test_parity_names_the_worst_output():
    errors = {"logits": 1e-6, "heads.0": 0.02, "heads.1": 0.4}
    parity = parity_of(worst_relative_error=0.4, output_errors=errors, segment_errors=(0.4,))
    with pytest.raises(AccuracyError, match=r"worst is its output heads.1, by 0.4\)"):
        check_parity(parity, "fp32")


@pytest.mark.parametrize("agreement", [None, 1.0])
def test_outputs_of_int8_that_are_no_classes_have_a_bound(agreement):
    def parity(error):
        values = {"worst_relative_error": error, "output_errors": {"0": error}}
        return parity_of(top1_agreement=agreement, **values)

    check_parity(parity(0.2), "int8")
    with pytest.raises(AccuracyError, match=r"expected at most 0\.25"):
        check_parity(parity(0.3), "int8")
    with pytest.raises(AccuracyError, match="output 0, by nan"):
        check_parity(parity(float("nan")), "int8")
    check_parity(parity(0.3), "int8", tolerance=0.5)
