"""Networks that are recognised by their names and slimmed by tracing: what is written is read."""

import pytest
import torch
from torch import nn

import compress
from compress.models import build, infer
from compress.opened import Opening
from compress.slimming.job import SlimJob, slim_checkpoint
from compress.slimming.slim import SlimOptions, slim_model
from tests.models.foreign_networks import (
    CifarBottlenecks,
    CifarMobileNetV2,
    CifarOptionA,
    CifarShortcuts,
    TorchvisionBasics,
    TorchvisionBottlenecks,
    TorchvisionMobileNetV2,
)
from tests.networks import trained_like

OPTIONS = SlimOptions(round_to=2, min_channels=2)
VGG_VARIANT = {
    "widths": [[8], [12, 10]],
    "num_classes": 5,
    "head": ["linear", "norm", "relu"],
    "hidden": [9],
    "pooled": 2,
    "conv_bias": False,
}


def recognised(foreign) -> nn.Module:
    state = trained_like(foreign()).state_dict()
    network = build(*infer(state))
    network.load_state_dict(state)
    return network.eval()


NETWORKS = {
    "option A": lambda: recognised(CifarOptionA),
    "shortcuts": lambda: recognised(CifarShortcuts),
    "CIFAR bottlenecks": lambda: recognised(CifarBottlenecks),
    "basics": lambda: recognised(TorchvisionBasics),
    "bottlenecks": lambda: recognised(TorchvisionBottlenecks),
    "MobileNetV2": lambda: recognised(TorchvisionMobileNetV2),
    "CIFAR MobileNetV2": lambda: recognised(CifarMobileNetV2),
    "VGG": lambda: trained_like(build("vgg_variant", VGG_VARIANT)),
}


def images(network: nn.Module, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, network.config["in_channels"], 32, 32, generator=generator)


@pytest.mark.parametrize("name", NETWORKS)
def test_slim_network_is_loaded_without_a_factory(name, tmp_path):
    network = NETWORKS[name]()
    result = slim_model(network, 0.4, OPTIONS, example=images(network))
    loaded = compress.load(compress.save(result.model, tmp_path / "slim.pth"))
    with torch.inference_mode():
        outputs = result.model(images(network, 2))
        assert torch.equal(loaded(images(network, 2)), outputs)
    assert not loaded.training
    narrower = [layer for layer in result.layers if layer.after < layer.before]
    modules = dict(loaded.named_modules())
    assert narrower
    assert all(modules[layer.name].num_features == layer.after for layer in narrower)
    # The file tells its widths itself, also to one who has the tensors alone.
    assert infer(loaded.state_dict())[1].items() <= loaded.config.items()


def test_a_slim_network_can_be_slimmed_again():
    network = NETWORKS["bottlenecks"]()
    for ratio in (0.4, 0.3):
        network = slim_model(network, ratio, OPTIONS, example=images(network)).model
    assert infer(network.state_dict())[1].items() <= network.config.items()


def test_what_shapes_do_not_tell_stays_as_it_was_configured():
    _, config = infer(CifarShortcuts().state_dict())
    config |= {"strides": [1, 1, 2, 1], "stem_pool": True}
    network = trained_like(build("resnet", config))
    network.conv1.weight.requires_grad_(False)
    slim = slim_model(network, 0.4, OPTIONS, example=images(network)).model
    assert (slim.config["strides"], slim.config["stem_pool"]) == ([1, 1, 2, 1], True)
    assert slim.config["block_widths"] != config["block_widths"]
    assert network.config["block_widths"] == config["block_widths"]
    frozen = [name for name, p in slim.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1.weight"]


def test_stages_that_are_padded_stay_whole_and_say_so():
    network = NETWORKS["option A"]()
    result = slim_model(network, 0.5, OPTIONS, example=images(network))
    assert result.model.config["stage_widths"] == [8, 16, 32]
    assert set(result.kept_whole) == {"bn1", "layer2.0.bn2", "layer3.0.bn2"}


def test_such_a_checkpoint_is_slimmed_without_a_factory(tmp_path):
    state = {f"module.{k}": v for k, v in trained_like(CifarOptionA()).state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 90.0}, tmp_path / "net.th")
    job = SlimJob(
        checkpoint=tmp_path / "net.th", ratios=(0.5,), opening=Opening(image_size=32), latency=False
    )
    (report,) = slim_checkpoint(job)
    assert report.result.selection.true_pruned_ratio > 0
    assert compress.load(report.output).config == report.result.model.config
