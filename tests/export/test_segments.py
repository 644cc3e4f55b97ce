import pytest
import torch

from compress.errors import UnsupportedModelError
from compress.export.deployed_form import deployed_form, in_half
from compress.export.segments import split_network
from compress.measure.exit_macs import macs_per_exit
from compress.models.frequency_scale import with_frequency_scale
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.hidden_scale import with_hidden_scale
from compress.models.vgg import VGG

FORMS = {
    "plain": {},
    "distilled": {"distilled": True},
    "one head on a distilled network": {"distilled": True, "exit_dist_heads": False},
    "not square": {"image_size": [8, 24]},
}


def network(**config):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "width": 12, "depth": 4, "num_classes": 5}
    model = GFNetDynn(**{**sizes, "exits": [0, 2], **config}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def image_shape(model):
    return (3, *model.config["image_size"])


def split(model):
    return split_network(deployed_form(model), image_shape(model), 5)


@torch.inference_mode()
def chained(segments, images):
    x, logits, gates = images, [], []
    for segment in segments[:-1]:
        x, exit_logits, gate = segment(x)
        logits.append(exit_logits)
        gates.append(gate)
    return torch.stack([*logits, segments[-1](x)], dim=1), torch.stack(gates, dim=1)


@pytest.mark.parametrize("form", FORMS)
def test_the_segments_in_order_are_the_network(form):
    model = network(**FORMS[form])
    images = torch.randn(3, *image_shape(model))
    logits, gates = chained(split(model), images)
    with torch.inference_mode():
        wanted, gate_logits = model.forward_all(images)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gates, torch.sigmoid(gate_logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [with_hidden_scale, with_frequency_scale])
def test_scales_of_slimming_are_folded_into_the_weights(scaled):
    model = scaled(network())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):
                parameter.uniform_(0.2, 2)
    images = torch.randn(2, *image_shape(model))
    segments = split(model)
    names = [name for name, _ in segments[0].network.named_parameters()]
    assert not [name for name in names if name.endswith(".scale")]
    with torch.inference_mode():
        wanted = model.forward_all(images)[0]
    torch.testing.assert_close(chained(segments, images)[0], wanted, rtol=1e-5, atol=1e-5)


def test_the_network_that_was_given_is_left_as_it_is():
    model = with_hidden_scale(network())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    in_half(deployed_form(model))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_segment_says_what_it_is():
    model = network()
    segments = split(model)
    assert [segment.specs.blocks for segment in segments] == [(0, 1), (1, 3), (3, 4)]
    assert [segment.specs.input.name for segment in segments] == ["image", "hidden_in", "hidden_in"]
    assert [[o.name for o in s.specs.outputs] for s in segments] == [
        ["hidden", "logits", "gate"],
        ["hidden", "logits", "gate"],
        ["logits"],
    ]
    found = segments[0](torch.randn(2, 3, 16, 16))
    for tensor, spec in zip(found, segments[0].specs.outputs, strict=True):
        assert tensor.shape == (2, *spec.shape)


def test_the_multiply_adds_are_those_of_what_runs_there():
    """Matrix products of 16 tokens and 12 kept frequencies a block, in place of the FFT."""
    model = network()
    segments = split(model)
    deployed = deployed_form(model)
    assert sum(segment.specs.macs for segment in segments) == macs_per_exit(deployed)[-1]
    tokens, bins, width, hidden, classes = 16, 4 * 3, 12, 48, 5
    block = (4 * tokens * bins + 4 * bins) * width + 2 * tokens * width * hidden
    check = width * classes + 4
    assert segments[1].specs.macs == 2 * block + check
    assert segments[2].specs.macs == block + width * classes
    assert segments[0].specs.macs == tokens * 3 * 4 * 4 * width + block + check


def test_half_precision_keeps_image_logits_and_gate_in_float32():
    model = network()
    images = torch.randn(4, 3, 16, 16)
    segments = split_network(in_half(deployed_form(model)), (3, 16, 16), 5)
    hidden, logits, gate = segments[0](images)
    assert (hidden.dtype, logits.dtype, gate.dtype) == (torch.half, torch.float, torch.float)
    assert segments[0].specs.outputs[0].dtype == "float16"
    assert segments[1].specs.input.dtype == "float16"
    wanted, _ = model.forward_all(images)
    found, _ = chained(segments, images)
    assert (found - wanted).norm() / wanted.norm() < 5e-3  # 11 bits over four blocks


def test_a_network_without_exits_is_one_segment():
    torch.manual_seed(0)
    model = VGG(widths=[[8], [8]], num_classes=5, hidden=[], pooled=1).eval()
    (segment,) = split_network(deployed_form(model), (3, 16, 16), 5, whole=True)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(segment(images), model(images))
    assert segment.specs.macs == 16 * 16 * 27 * 8 + 8 * 8 * 72 * 8 + 8 * 5


def test_exits_that_are_not_wanted_are_left_out():
    model = network()
    (segment,) = split_network(deployed_form(model), (3, 16, 16), 5, whole=True)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(segment(images), model(images), rtol=1e-5, atol=1e-5)


def test_splitting_a_network_without_exits_is_refused():
    model = GFNet(image_size=16, patch_size=4, width=12, depth=2, num_classes=5).eval()
    with pytest.raises(UnsupportedModelError, match="GFNet has no early exits; leave it out"):
        split_network(deployed_form(model), (3, 16, 16), 5)
