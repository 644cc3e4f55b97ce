"""GFNet-H against a second implementation by plain torch.fft, its names, its slimming."""

import pytest
import torch

from compress.checkpoint import load, save
from compress.errors import UnsupportedModelError, UserInputError
from compress.export.export_job import ExportJob, export_checkpoint
from compress.measure.exit_positions import exit_positions
from compress.models import infer
from compress.models.gfnet_pyramid import GFNetPyramid, gfnet_h
from compress.models.give_exits import with_exits
from compress.runtime.dispatcher import Dispatcher
from compress.slimming.slim import SlimOptions, slim_model
from tests.export.fourier_networks import PlainGFNet

SMALL = {"image_size": 32, "widths": [8, 16], "depths": [1, 2], "num_classes": 10}
PUBLISHED = {"gfnet_h_ti": 15, "gfnet_h_s": 32, "gfnet_h_b": 54}  # millions, of the paper's table


def plain_and_state():
    """The second implementation with random weights, and these under the published names."""
    torch.manual_seed(0)
    plain = PlainGFNet((8, 16), (1, 2), 32, 4).eval()
    spelled = {"mlp.0.": "mlp.fc1.", "mlp.2.": "mlp.fc2."}
    state = {}
    for name, tensor in plain.state_dict().items():
        parts = name.split(".")
        if parts[0] == "patch_embed":
            name = ".".join([*parts[:2], "proj", *parts[2:]])
        for old, new in spelled.items():
            name = name.replace(old, new)
        state[name] = tensor
    return plain, state


def small() -> GFNetPyramid:
    model = GFNetPyramid(**SMALL)
    model.load_state_dict(plain_and_state()[1])
    return model.eval()


def test_it_computes_what_plain_ffts_compute():
    plain, _ = plain_and_state()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(small()(image), plain(image), rtol=1e-5, atol=1e-5)


def test_a_published_state_dict_is_enough(tmp_path):
    plain, state = plain_and_state()
    torch.save({"model": state}, tmp_path / "gfnet_h.pth")
    model = load(tmp_path / "gfnet_h.pth")
    assert isinstance(model, GFNetPyramid)
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(image), plain(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes(variant):
    with torch.device("meta"):
        model = gfnet_h(variant)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == PUBLISHED[variant]
    assert model.grids == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_published_names():
    with torch.device("meta"):
        state = gfnet_h("gfnet_h_ti").state_dict()
    assert tuple(state["blocks.2.9.filter.complex_weight"].shape) == (14, 8, 256, 2)
    assert tuple(state["patch_embed.3.proj.weight"].shape) == (512, 256, 2, 2)
    assert tuple(state["blocks.0.0.gamma"].shape) == (64,)
    arch, config = infer(state)
    assert (arch, config["image_size"]) == ("gfnet_h", [224, 224])
    assert [len(stage) for stage in config["hidden"]] == [3, 3, 10, 3]


def test_an_oblong_image():
    model = GFNetPyramid(**{**SMALL, "image_size": [32, 48]}).eval()
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 10)
    assert infer(model.state_dict())[1]["image_size"] == [32, 48]


def test_units_that_nothing_reads_are_removed_without_a_trace(tmp_path):
    """Half of the hidden units do nothing: slimming finds those first, and changes nothing."""
    model = small()
    with torch.no_grad():
        for stage in model.blocks:
            for block in stage:
                block.mlp.fc2.weight[:, ::2] = 0
    image = torch.randn(2, 3, 32, 32)
    result = slim_model(model, 0.4, SlimOptions(round_to=1, min_channels=1))
    assert result.model.config["hidden"] == [[16], [32, 32]]
    torch.testing.assert_close(result.model(image), model(image), rtol=1e-5, atol=1e-5)
    save(result.model, tmp_path / "slim.pth")
    torch.testing.assert_close(load(tmp_path / "slim.pth")(image), result.model(image))


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(UserInputError, match="not divisible by the patch size 8"):
        GFNetPyramid(**{**SMALL, "image_size": 36})
    with pytest.raises(UserInputError, match="as many of both"):
        GFNetPyramid(**{**SMALL, "depths": [1]})
    with pytest.raises(UserInputError, match="built for 32x32"):
        small()(torch.zeros(1, 3, 40, 40))
    state = small().state_dict()
    state["blocks.1.0.filter.complex_weight"] = torch.zeros(5, 3, 16, 2)
    with pytest.raises(UnsupportedModelError, match="stage 1 has 5x3 frequencies"):
        infer(state)


def test_it_gets_exits_behind_its_blocks_and_is_cut_there(tmp_path):
    """Stages have grids of their own, so what crosses has another shape at every exit."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = GFNetPyramid(**{**SMALL, "depths": [2, 2]}, gamma=0.5).eval()
        images = torch.randn(3, 3, 32, 32)
        network = with_exits(backbone, ["blocks.0.1", "blocks.1.0"], images[:1]).eval()
        for gate in network.gates:
            torch.nn.init.normal_(gate.linear.weight, std=5)
    assert [(each.path, each.shape, each.tensors) for each in exit_positions(backbone, (3, 32, 32))
            if each.path in network.exit_paths] == [
        ("blocks.0.1", (64, 8), 1), ("blocks.1.0", (16, 16), 1),
    ]  # fmt: skip
    path = save(network, tmp_path / "exits.pth")
    job = ExportJob(checkpoint=path, output=tmp_path / "b", split_exits=True, thresholds=0.5,
                    target="onnxruntime", progress=False)  # fmt: skip
    assert export_checkpoint(job).parity.worst_relative_error < 1e-5
    with Dispatcher(tmp_path / "b", "onnxruntime", threads=1) as dispatcher:
        for image in images:
            logits, number = network.forward_early(image[None], 0.5)
            found = dispatcher.run(image.numpy())
            assert found.exits.tolist() == [number]
            torch.testing.assert_close(torch.from_numpy(found.logits), logits, rtol=1e-4, atol=1e-5)
