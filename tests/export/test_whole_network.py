"""The deployed form of networks with exits, whole: what it gives, in single and half precision."""

import numpy as np
import pytest
import torch
from torch import nn

from compress.export.cut import cut_graph
from compress.export.deployed_form import FoldedGate, deployed_form, in_half
from compress.export.graph import graph_from_module
from compress.export.onnx_file import onnx_session
from compress.export.single_precision import in_single_precision
from compress.export.whole_network import WholeNetwork, results_of_exits
from compress.models.frequency_scale import with_frequency_scale
from compress.models.gate import Gate
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.give_exits import with_exits
from compress.models.hidden_scale import with_hidden_scale
from compress.models.vgg import VGG
from tests.networks import BottleneckResNet

FORMS = {
    "plain": {},
    "distilled": {"distilled": True},
    "one head on a distilled network": {"distilled": True, "exit_dist_heads": False},
    "not square": {"image_size": [8, 24]},
}


def stirred(model, by=0.3):
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return model


def network(**config):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "width": 12, "depth": 4, "num_classes": 5}
    return stirred(GFNetDynn(**{**sizes, "exits": [0, 2], **config}))


def residual(**options):
    """Any network with exits; the last block behind one of them stays what it is."""
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 16, 16)
    made = with_exits(BottleneckResNet().eval(), ["layer1.0", "layer2.0"], image, **options)
    return stirred(made, 0.1)


def around_a_gfnet():
    """Exits of other heads than the published ones, around a GFNet with all that is folded."""
    torch.manual_seed(0)
    plain = GFNet(image_size=16, patch_size=4, width=12, depth=3, num_classes=5).eval()
    image = torch.zeros(1, 3, 16, 16)
    return stirred(with_exits(plain, [0, 1], image, head="hidden:7"))


def images_for(model, count=3):
    size = getattr(model, "config", {}).get("image_size", [16, 16])
    return torch.randn(count, 3, *([size, size] if isinstance(size, int) else size))


@torch.inference_mode()
def assert_gives_what_the_network_gives(model, *, rtol=1e-5, atol=1e-5):
    images = images_for(model)
    found = WholeNetwork(deployed_form(model), split=True)(images)
    logits, gates = model.forward_all(images)
    exits = gates.shape[1]
    torch.testing.assert_close(torch.stack(found[0::2], 1), logits, rtol=rtol, atol=atol)
    wanted = torch.sigmoid(gates)
    torch.testing.assert_close(
        torch.stack(found[1 : 2 * exits : 2], 1), wanted, rtol=rtol, atol=atol
    )
    assert len(found) == 2 * exits + 1


@pytest.mark.parametrize("form", FORMS)
def test_every_exit_of_a_gfnet_is_given(form):
    assert_gives_what_the_network_gives(network(**FORMS[form]))


@pytest.mark.parametrize("head", ["linear", "hidden:9", "conv"])
def test_every_exit_of_any_network_is_given(head):
    assert_gives_what_the_network_gives(residual(head=head))


def test_a_network_inside_one_with_exits_is_brought_into_the_deployed_form_too():
    model = around_a_gfnet()
    assert_gives_what_the_network_gives(model)
    kinds = {type(module).__name__ for module in deployed_form(model).modules()}
    assert {"ErfGelu", "ProductMean", "FoldedGate"} <= kinds
    assert not {"GELU", "GlobalFilter", "Gate"} & kinds


@pytest.mark.parametrize("scaled", [with_hidden_scale, with_frequency_scale])
def test_scales_of_slimming_are_folded_into_the_weights(scaled):
    model = scaled(network())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):
                parameter.uniform_(0.2, 2)
    assert not [n for n, _ in deployed_form(model).named_parameters() if n.endswith(".scale")]
    assert_gives_what_the_network_gives(model)


def test_gates_are_folded_wherever_they_stand():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep = nn.ModuleDict({"exit": nn.ModuleList([Gate(), nn.ReLU()])})

    kinds = [type(module) for module in deployed_form(Holder()).deep["exit"]]
    assert kinds == [FoldedGate, nn.ReLU]


@pytest.mark.parametrize("make", [network, residual])
def test_the_network_that_was_given_is_left_as_it_is(make):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_half(deployed_form(model))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [network, residual])
def test_half_precision_keeps_image_logits_and_gate_in_float32(make):
    model, images = make(), torch.randn(4, 3, 16, 16)
    found = WholeNetwork(in_half(deployed_form(model)), split=True)(images)
    assert {each.dtype for each in found} == {torch.float32}
    wanted = WholeNetwork(deployed_form(model), split=True)(images)
    for half, single in zip(found, wanted, strict=True):
        assert (half - single).norm() / single.norm() < 5e-3  # 11 bits over a few blocks


def test_what_crosses_in_half_precision_can_be_computed_in_single():
    model, images = network(), torch.randn(2, 3, 16, 16)
    half = WholeNetwork(in_half(deployed_form(model)), split=True)
    results = results_of_exits(2)
    names = [name for each in results for name in each]
    whole = graph_from_module(half, images, input_name="image", output_names=names)
    segments = cut_graph(whole, results, images.numpy())
    assert [[t.dtype for t in s.gives] for s in segments] == [["float16"], ["float16"], []]
    wide = in_single_precision(segments[0].proto)
    (rounded, *_), (exact, *_) = (
        onnx_session(proto).run(None, {"image": images.numpy()})
        for proto in (segments[0].proto, wide)
    )
    assert (rounded.dtype, exact.dtype) == (np.float16, np.float32)
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 5e-3  # what half precision rounds, no less and no more
    with torch.inference_mode():
        deployed = deployed_form(model)
        wanted = deployed.run_blocks(deployed.embed(images), 0, 1).numpy()
    assert np.linalg.norm(exact - wanted) / np.linalg.norm(wanted) < 2e-3  # of rounded weights


def test_a_network_without_exits_gives_what_it_returns():
    torch.manual_seed(0)
    model = VGG(widths=[[8], [8]], num_classes=5, hidden=[], pooled=1).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        WholeNetwork(deployed_form(model), split=False)(images), model(images)
    )


def test_exits_that_are_not_wanted_are_left_out():
    model, images = network(), torch.randn(2, 3, 16, 16)
    found = WholeNetwork(deployed_form(model), split=False)(images)
    torch.testing.assert_close(found, model(images), rtol=1e-5, atol=1e-5)
