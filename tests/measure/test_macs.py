import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from compress.errors import UnsupportedModelError
from compress.measure import macs as macs_module
from compress.measure.macs import count, count_macs, count_params, log_flops_line
from compress.models.vgg import VGG, vgg_bn

IMAGE = (3, 224, 224)
STAGES = (2, 2, 3, 3, 3)
# Widths, FLOPs and params as the log of the original slimming runs prints them.
LOG = {
    "base": (
        [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
        "15.507270656G",
        "134.678692M",
    ),
    "0.2": (
        [24, 56, 96, 112, 168, 152, 216, 304, 344, 448, 496, 504, 512],
        "8.363818592G",
        "130.309732M",
    ),
    "0.4": (
        [24, 48, 72, 96, 112, 88, 168, 192, 192, 240, 392, 424, 512],
        "4.519959104G",
        "125.719276M",
    ),
    "0.6": (
        [24, 40, 56, 88, 72, 48, 120, 112, 104, 80, 248, 248, 504],
        "2.450902352G",
        "120.72662M",
    ),
}


def vgg_of(widths: list[int]) -> VGG:
    flat = iter(widths)
    with torch.device("meta"):
        return VGG(widths=[[next(flat) for _ in range(n)] for n in STAGES], num_classes=100)


def second_opinion(model: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("case", LOG)
def test_the_figures_of_the_log_come_out_to_the_last_digit(case: str) -> None:
    widths, flops, params = LOG[case]
    line = log_flops_line(count(vgg_of(widths), IMAGE))
    assert line == f"FLOPs= {flops}\nparams= {params}"


@pytest.mark.parametrize("case", LOG)
def test_macs_of_vgg_agree_with_torchs_own_counter(case: str) -> None:
    model = vgg_of(LOG[case][0])
    image = torch.zeros(1, *IMAGE, device="meta")
    assert count_macs(model, IMAGE) == second_opinion(model.eval(), image)


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    transpose=st.booleans(),
)
def test_convolutions_agree_with_torchs_own_counter(
    dims: int, groups: int, kernel: int, stride: int, padding: int, bias: bool, transpose: bool
) -> None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind = (turned if transpose else kinds)[dims - 1]
    layer = kind(4, 8, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
    shape = (4, *(7, 6, 5)[:dims])
    assert count_macs(layer, shape) == second_opinion(layer, torch.zeros(1, *shape))


def test_a_linear_layer_counts_every_token() -> None:
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(16, 10))  # (1, 5, 16) -> (1, 5, 10)
    assert count_macs(tokens, (5, 4, 4)) == 5 * 16 * 10


def test_closed_forms_of_a_tiny_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    counts = count(model, (3, 8, 8))
    conv, linear = 4 * 8 * 8 * 27, 16 * 5
    bias, norm, pool = 4 * 8 * 8, 2 * 4 * 8 * 8, 16 * (4 * 4 + 1)
    assert counts.macs == conv + linear
    assert counts.flops_log_convention == conv + linear + bias + norm + pool
    assert counts.params == (27 + 1) * 4 + 8 + 17 * 5
    assert counts.output_shape == (1, 5)
    assert counts.uncounted == ()


def test_the_log_convention_counts_no_bias_where_there_is_none() -> None:
    counts = count(nn.Conv2d(4, 8, 3, groups=2, bias=False), (4, 6, 6))
    assert counts.flops_log_convention == counts.macs == 8 * 16 * 2 * 9


def test_subclasses_are_counted_like_their_base() -> None:
    class OurConv(nn.Conv2d):
        pass

    class OurNorm(nn.BatchNorm2d):
        pass

    ours = count(nn.Sequential(OurConv(3, 4, 3), OurNorm(4)), (3, 8, 8))
    plain = count(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 8, 8))
    assert ours == plain


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        linear = nn.Linear(6, 6)
        self.first = nn.Sequential(linear)
        self.second = nn.Sequential(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)))


def test_a_shared_layer_counts_each_call_and_its_parameters_once() -> None:
    counts = count(Twice(), (1, 2, 3))
    assert counts.macs == counts.flops_log_convention == 2 * 36
    assert counts.params == 42


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class TellingScaled(Scaled):
    def own_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        return output.numel()


def test_a_layer_without_a_rule_is_named() -> None:
    model = nn.Sequential(Scaled(), nn.Conv2d(3, 4, 1))
    assert count(model, (3, 2, 2)).uncounted == ("Scaled",)


def test_attention_counts_its_four_projections() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2)
            return self.attention(tokens, tokens, tokens)[0]

    counts = count(Attends(), (3, 2, 2))
    assert counts.macs == 4 * 3 * 4 * 4  # three tokens of four values
    assert counts.uncounted == ()


def test_a_layer_can_tell_its_own_macs() -> None:
    model = nn.Sequential(TellingScaled(), nn.Conv2d(3, 4, 1, bias=False))
    counts = count(model, (3, 2, 2))
    assert counts.macs == counts.flops_log_convention == 12 + 4 * 4 * 3
    assert counts.uncounted == ()


def test_a_rule_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(macs_module.MAC_RULES, Scaled, lambda module, inputs, output: 7)
    assert count_macs(Scaled(), (3, 2, 2)) == 7


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"note": "text", "probs": (self.conv(x), x)}


def test_networks_with_several_outputs_are_counted() -> None:
    counts = count(DictOutput(), (3, 2, 2))
    assert counts.output_shape == (1, 4, 2, 2)
    assert counts.macs == counts.flops_log_convention == 48


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x.flatten(1))
        if out.sum().item() > 1e9:
            return out
        return self.linear(out)


def test_a_forward_that_reads_values_is_counted_too() -> None:
    counts = count(ReadsValues(), (3, 1, 1))
    assert counts.macs == counts.flops_log_convention == 18


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(self.conv(x))
        raise ValueError("no such thing")


def traces(model: nn.Module) -> list[object]:
    return [
        [
            (name, m.training, list(m._buffers), list(m._forward_hooks), list(m._forward_pre_hooks))
            for name, m in model.named_modules()
        ],
        {name: tensor.clone() for name, tensor in model.state_dict().items()}.keys(),
        [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
    ]


def mixed_model() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True)
    )
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def test_counting_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    model = mixed_model()
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before, weights = traces(model), copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    count(model, (3, 8, 8))
    assert traces(model) == before
    assert calls == []
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert capfd.readouterr() == ("", "")


def test_a_failing_forward_leaves_no_trace_and_is_told() -> None:
    model = Fails()
    before = traces(model)
    with pytest.raises(UnsupportedModelError, match=r"Fails cannot be run .*\(3, 8, 8\).*no such"):
        count(model, (3, 8, 8))
    assert traces(model) == before


def test_an_image_that_the_network_cannot_take_is_told() -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(3, 8, 8\).*expected"):
        count(vgg_bn(11, num_classes=2, hidden=()), (3, 8, 8))


def test_half_precision_and_shared_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)).half()
    assert count_macs(model, (3, 2, 2)) == 48 + 32
    model[0].bias = nn.Parameter(model[0].bias.detach())
    assert count_params(model) == 16 + 34


def test_counting_vgg16_is_quick() -> None:
    model = vgg_of(LOG["base"][0])
    watch = Timer("count_macs(model, (3, 224, 224))", globals={**globals(), "model": model})
    assert watch.timeit(3).median < 0.5  # 0.02 s measured; the rest is for a busy machine
