import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.models import infer
from compress.models.gate import Gate, gate_features
from compress.models.gfnet import GFNET_VARIANTS, GFNet
from compress.models.gfnet_dynn import GFNetDynn, gfnet_with_exits
from compress.runtime.thresholds import check_thresholds
from tests.models import published_gfnet as published

TINY = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 4, "num_classes": 5}
ALL = list(range(11))
PARAMS_LOG = [  # variant, classes, image size, exits, two heads an exit, parameters of the log
    ("gfnet_12_384", 10, 224, ALL, None, 15_647_023),
    ("gfnet_12_384", 45, 256, ALL, None, 16_126_675),
    ("gfnet_12_384", 21, 256, ALL, None, 16_015_795),
    ("gfnet_distil_12_192", 10, 224, ALL, False, 4_278_137),
    ("gfnet_distil_12_192", 45, 256, ALL, None, 4_758_703),
    ("gfnet_distil_12_192", 21, 256, ALL, None, 4_647_535),
    ("gfnet_12_384", 10, 224, [7, 8, 9], None, 15_616_183),
    ("gfnet_12_384", 45, 256, [4, 5, 7], None, 15_988_035),
    ("gfnet_12_384", 21, 256, [7, 8, 9], None, 15_951_075),
]


@pytest.mark.parametrize(("variant", "classes", "size", "exits", "both", "expected"), PARAMS_LOG)
def test_parameter_counts_of_the_log(
    variant: str, classes: int, size: int, exits: list[int], both: bool | None, expected: int
) -> None:
    with torch.device("meta"):
        model = GFNetDynn(
            exits=exits,
            exit_dist_heads=both,
            num_classes=classes,
            image_size=size,
            **GFNET_VARIANTS[variant],
        )
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("layout", ["net", "model"])
def test_a_foreign_checkpoint_gives_the_published_outputs(
    distilled: bool, layout: str, tmp_path: Path
) -> None:
    grid = (3, 6) if distilled else (4, 4)
    state = published.random_state(
        width=6, depth=4, grid=grid, classes=5, distilled=distilled, exits=3
    )
    content = {layout: {f"module.{k}": v for k, v in state.items()}, "acc": 97.1, "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    model = compress.load(tmp_path / "a.pth")
    assert isinstance(model, GFNetDynn)
    assert model.config["exits"] == [0, 1, 2]

    image = torch.randn(3, 3, 16, 16)
    behind = published.hidden_states(state, image, grid)
    heads = [("intermediate_heads.{}", "intermediate_heads_dist.{}")] * 3 + [("head", "head_dist")]
    expected = [
        published.logits(state, x, (a.format(i), b.format(i)))
        for i, (x, (a, b)) in enumerate(zip(behind, heads, strict=True))
    ]
    gates = [published.gate(state, i, expected[i]) for i in range(3)]
    logits, gate_logits = model.forward_all(image)
    torch.testing.assert_close(logits, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gate_logits, torch.stack(gates, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(image), logits[:, -1])


def test_positions_are_taken_from_the_caller_where_tensors_do_not_tell() -> None:
    state = published.random_state(width=6, depth=4, grid=(4, 4), classes=5, exits=2)
    with pytest.raises(UnsupportedModelError, match=r"2 early exits on 4 blocks.*positions"):
        infer(state)
    config = GFNetDynn.infer_config(state, exits=[0, 2])
    assert config is not None
    assert config["exits"] == [0, 2]
    GFNetDynn(**config).load_state_dict(state, strict=True)
    with pytest.raises(UserInputError, match="3 exit positions are given"):
        GFNetDynn.infer_config(state, exits=[0, 1, 2])


def test_plain_and_early_exit_checkpoints_are_told_apart() -> None:
    plain = published.random_state(width=6, depth=4, grid=(4, 4), classes=5)
    early = published.random_state(width=6, depth=4, grid=(4, 4), classes=5, exits=3)
    assert (infer(plain)[0], infer(early)[0]) == ("gfnet", "gfnet_dynn")
    assert GFNetDynn.infer_config(plain) is None
    assert GFNet.infer_config(early) is None


def test_a_network_survives_saving(tmp_path: Path) -> None:
    model = GFNetDynn(exits=[0, 2], distilled=True, exit_dist_heads=False, **TINY).eval()
    loaded = compress.load(compress.save(model, tmp_path / "a.pth"))
    image = torch.randn(2, 3, 16, 16)
    assert loaded.config == model.config
    for got, expected in zip(loaded.forward_all(image), model.forward_all(image), strict=True):
        assert torch.equal(got, expected)


def with_random_gates(exits: list[int], **config) -> GFNetDynn:
    torch.manual_seed(1)
    model = GFNetDynn(exits=exits, **{**TINY, **config}).eval()
    for head in (*model.intermediate_heads, model.head):
        torch.nn.init.normal_(head.weight, std=2)
    for block in model.blocks:  # strong filters, so that every token depends on the image
        torch.nn.init.normal_(block.filter.complex_weight)
    for gate in model.gates:
        torch.nn.init.normal_(gate.linear.weight, std=2)
    return model


@pytest.mark.parametrize("config", [{}, {"distilled": True}, {"hidden_scale": True}])
def test_early_return_decides_as_the_replay_of_all_exits_does(config: dict) -> None:
    model = with_random_gates([0, 1, 2], **config)
    images = torch.randn(40, 3, 16, 16)
    logits, gates = model.forward_all(images)
    ordered = gates.sigmoid().sort(0).values
    bars = ((ordered[19] + ordered[20]) / 2).tolist()  # half of the images leave at each exit
    taken = set()
    for i, image in enumerate(images):
        fires = [j for j, bar in enumerate(bars) if gates[i, j].sigmoid() >= bar]
        expected = fires[0] if fires else 3
        got, number = model.forward_early(image[None], bars)
        assert number == expected
        torch.testing.assert_close(got[0], logits[i, expected], rtol=1e-4, atol=1e-5)
        taken.add(number)
    assert len(taken) > 2


def test_blocks_behind_the_exit_that_is_taken_do_not_run() -> None:
    model = with_random_gates([0, 2])
    ran: list[int] = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    assert model.forward_early(torch.randn(1, 3, 16, 16), 0.0)[1] == 0
    assert ran == [0]
    assert model.forward_early(torch.randn(1, 3, 16, 16), [1.0, 0.0])[1] == 1
    assert ran == [0, 0, 1, 2]


def test_a_gate_at_the_threshold_fires() -> None:
    model = with_random_gates([0, 2])
    for parameter in model.gates.parameters():
        torch.nn.init.zeros_(parameter)  # sigmoid(0) is 0.5 exactly
    image = torch.randn(1, 3, 16, 16)
    assert model.forward_early(image, 0.5)[1] == 0
    assert model.forward_early(image, [0.51, 0.5])[1] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gate_that_is_not_a_number_never_fires(bad: float) -> None:
    model = with_random_gates([0, 2])
    torch.nn.init.constant_(model.intermediate_heads[0].bias, bad)
    logits, number = model.forward_early(torch.randn(1, 3, 16, 16), 0.0)
    assert number == 1
    assert logits.isfinite().all()
    assert model.forward_all(torch.randn(1, 3, 16, 16))[1][0, 0].isnan()


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=12),
    scale=st.sampled_from([0.01, 1.0, 5.0]),
)
def test_gate_features_equal_the_formulas_in_double_precision(
    logits: list[float], scale: float
) -> None:
    given_logits = torch.tensor(logits) * scale
    got = gate_features(given_logits).numpy()
    np.testing.assert_allclose(got, published.numpy_features(given_logits), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        pytest.param([0.0] * 4, [0.25, math.log(4), 0, math.log(4)], id="uniform"),
        pytest.param([0.0, -1e30, -1e38], [1, 0, 1, 0], id="saturated"),
        pytest.param([0.0, -math.inf], [1, 0, 1, 0], id="minus-infinity"),
        pytest.param([0.0, 0.0, -1e30], [0.5, math.log(2), 0, math.log(2)], id="tie"),
        pytest.param(
            [math.log(3), 0.0],
            [
                0.75,
                -0.75 * math.log(0.75) - 0.25 * math.log(0.25),
                0.5,
                -0.9 * math.log(0.9) - 0.1 * math.log(0.1),
            ],
            id="three-to-one",
        ),
    ],
)
def test_gate_features_of_known_distributions(logits: list, expected: list) -> None:
    torch.testing.assert_close(gate_features(torch.tensor(logits)), torch.tensor(expected).float())


def test_a_gate_trains_without_touching_the_head() -> None:
    logits = torch.randn(6, 5, requires_grad=True)
    gate = Gate()
    gate(logits).sum().backward()
    assert logits.grad is None
    assert gate.linear.weight.grad is not None


@pytest.mark.parametrize("distilled", [False, True])
def test_cached_features_give_the_same_logits(distilled: bool) -> None:
    model = with_random_gates([0, 2], distilled=distilled)
    image = torch.randn(2, 3, 16, 16)
    inputs = model.head_inputs(image)
    assert [each.shape for each in inputs] == [(2, 2, 8) if distilled else (2, 8)] * 3
    cached = model.from_head_inputs(inputs)
    for got, expected in zip(cached, model.forward_all(image), strict=True):
        torch.testing.assert_close(got, expected)


def test_one_head_on_a_distilled_network_reads_the_mean_token() -> None:
    model = with_random_gates([1], distilled=True, exit_dist_heads=False)
    x = torch.randn(2, 18, 8)
    logits, gate = model.exit_outputs(0, x)
    torch.testing.assert_close(logits, model.intermediate_heads[0](model.norm(x).mean(1)))
    assert gate.shape == (2,)


def test_exits_can_be_added_chosen_and_keep_their_weights() -> None:
    backbone = GFNet(**TINY).eval()
    image = torch.randn(2, 3, 16, 16)
    grown = gfnet_with_exits(backbone, [0, 1, 2])
    assert torch.equal(grown(image), backbone(image))
    chosen = gfnet_with_exits(grown, [2, 1][::-1])
    logits, gates = grown.forward_all(image)
    fewer_logits, fewer_gates = chosen.forward_all(image)
    torch.testing.assert_close(fewer_logits, logits[:, 1:])
    torch.testing.assert_close(fewer_gates, gates[:, 1:])
    assert not chosen.training
    with torch.no_grad():
        chosen.head.bias += 1
    assert torch.equal(grown(image), backbone(image))


def test_slimming_rebuilds_the_exits_too() -> None:
    model = GFNetDynn(exits=[0, 2], hidden_scale=True, **TINY)
    config = model.config_with({f"blocks.{i}.mlp": 8 * (i + 1) for i in range(4)})
    slim = GFNetDynn(**config)
    assert slim.config["hidden"] == [8, 16, 24, 32]
    assert slim.config["exits"] == [0, 2]


@pytest.mark.parametrize(
    ("exits", "match"),
    [
        pytest.param([], "no exit position", id="none"),
        pytest.param([4], "4 is out of range; expected .* 0 to 2", id="beyond"),
        pytest.param([-1], "-1 is out of range", id="negative"),
        pytest.param([1.0], "out of range", id="no-index"),
        pytest.param([1, 3], "3 is the last block", id="last"),
        pytest.param([1, 1], "repeat", id="repeated"),
        pytest.param([2, 1], "out of order", id="order"),
    ],
)
def test_wrong_exit_positions_are_refused(exits: list, match: str) -> None:
    with pytest.raises(UserInputError, match=match) as caught:
        GFNetDynn(exits=exits, **TINY)
    assert caught.value.exit_code == 3


def test_one_class_and_missing_tokens_are_refused() -> None:
    with pytest.raises(UserInputError, match="at least 2"):
        GFNetDynn(exits=[0], **{**TINY, "num_classes": 1})
    with pytest.raises(UserInputError, match="no distillation token"):
        GFNetDynn(exits=[0], exit_dist_heads=True, **TINY)


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, [0.5, 2.0]])
def test_thresholds_outside_0_to_1_are_refused(wrong: float | list) -> None:
    with pytest.raises(UserInputError, match="0 <= threshold <= 1"):
        check_thresholds(wrong, 2)


def test_wrong_numbers_of_thresholds_and_images_are_refused() -> None:
    model = GFNetDynn(exits=[0, 2], **TINY)
    with pytest.raises(UserInputError, match="3 thresholds for 2 exits"):
        model.forward_early(torch.zeros(1, 3, 16, 16), [0.5] * 3)
    with pytest.raises(UserInputError, match="2 images"):
        model.forward_early(torch.zeros(2, 3, 16, 16), 0.5)
