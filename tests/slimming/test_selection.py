import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UnsupportedModelError, UserInputError
from compress.slimming.selection import global_threshold, select_channels
from tests.golden import LOG, SURVIVORS, THRESHOLDS, golden_gammas


def test_worked_example_of_the_docstring():
    scores = {"a": torch.tensor([0.9, 0.1, 0.5, 0.2]), "b": torch.tensor([0.3, 0.8, 0.7, 0.05])}
    selection = select_channels(scores, 0.5, round_to=2, min_channels=2)
    assert selection.threshold == pytest.approx(0.5)
    assert selection.kept["a"].tolist() == [0, 2]
    assert selection.kept["b"].tolist() == [1, 2]
    assert selection.removed("a").tolist() == [1, 3]
    assert selection.true_pruned_ratio == 0.5


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_one_set_of_gammas_gives_the_widths_of_every_log(ratio):
    scores = {f"layer{i}": gamma for i, gamma in enumerate(golden_gammas())}
    selection = select_channels(scores, ratio)
    assert list(selection.widths.values()) == LOG[ratio]["widths"]
    assert str(selection.true_pruned_ratio) == LOG[ratio]["true"]
    assert str(torch.tensor(selection.threshold)) == LOG[ratio]["threshold"]
    survivors = [int((gamma.abs() > THRESHOLDS[ratio]).sum()) for gamma in scores.values()]
    assert tuple(survivors) == SURVIVORS[ratio]  # the set itself is what the golden file says


def test_signs_do_not_matter():
    scores = {"a": torch.tensor([-0.9, 0.1, -0.5, 0.2])}
    kept = select_channels(scores, 0.5, round_to=1, min_channels=1).kept["a"]
    assert kept.tolist() == [0]  # index 2 of [.1 .2 .5 .9] is 0.5, and only 0.9 lies above it


def test_ratio_zero_keeps_everything():
    scores = {"a": torch.tensor([0.1, 0.2, 0.3])}
    assert select_channels(scores, 0.0, round_to=1, min_channels=1).widths == {"a": 3}


def test_equal_scores_go_to_the_lower_index():
    scores = {"a": torch.tensor([0.5, 0.1, 0.5, 0.5]), "b": torch.tensor([0.9, 0.8, 0.7, 0.6])}
    kept = select_channels(scores, 0.4, round_to=2, min_channels=2).kept["a"]
    assert kept.tolist() == [0, 2]


layers = st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=16, max_size=40), min_size=1, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(layers=layers, ratio=st.floats(0, 1, exclude_max=True), round_to=st.sampled_from([1, 2, 4]))
def test_rule_on_any_gammas(layers, ratio, round_to):
    """The three sentences of the rule, computed in plain Python."""
    layers = [layer[: len(layer) // 4 * 4] for layer in layers]  # every rounding fits
    scores = {str(i): torch.tensor(layer, dtype=torch.float32) for i, layer in enumerate(layers)}
    values = sorted(abs(v) for layer in layers for v in layer)
    if values[0] == values[-1]:
        with pytest.raises(UnsupportedModelError, match="cannot be ranked"):
            select_channels(scores, ratio, round_to=round_to, min_channels=4)
        return
    selection = select_channels(scores, ratio, round_to=round_to, min_channels=4)
    threshold = values[int(len(values) * ratio)]
    assert selection.threshold == threshold
    for name, layer in zip(scores, layers, strict=True):
        kept = selection.kept[name].tolist()
        above = {i for i, v in enumerate(layer) if abs(v) > threshold or ratio == 0}
        assert kept == sorted(set(kept))
        assert above <= set(kept), "a channel above the threshold was removed"
        assert len(kept) >= 4
        assert len(kept) % round_to == 0
        assert len(kept) < max(len(above), 4) + round_to, "rounded up by more than one step"
        gone = set(range(len(layer))) - set(kept)
        assert all(abs(layer[g]) <= abs(layer[k]) for g in gone for k in kept)


@settings(max_examples=100, deadline=None)
@given(layers=layers, ratios=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)))
def test_widths_never_grow_with_the_ratio(layers, ratios):
    scores = {str(i): torch.tensor(layer[:16]) for i, layer in enumerate(layers)}
    values = torch.cat(list(scores.values())).abs()
    if values.min() == values.max():
        return
    wide, narrow = (select_channels(scores, r, round_to=8).widths for r in sorted(ratios))
    assert all(narrow[name] <= wide[name] for name in scores)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_ratio_out_of_range(ratio):
    with pytest.raises(UserInputError, match=r"--ratio is .* expected 0 <= ratio < 1"):
        select_channels({"a": torch.rand(8)}, ratio)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_name_the_layer(bad):
    scores = {"fine": torch.rand(8), "features.4": torch.tensor([0.1, bad, 0.3])}
    with pytest.raises(UnsupportedModelError, match=r"features\.4: 1 of 3 γ are NaN or infinite"):
        select_channels(scores, 0.2)


def test_a_layer_that_no_multiple_fits_keeps_all_and_says_so():
    """DenseNet with growth 12, or a width of 13 in a pruned file: the rest is slimmed."""
    scores = {"narrow": torch.linspace(0, 1, 12), "wide": torch.linspace(0, 1, 32)}
    selection = select_channels(scores, 0.5, round_to=8)
    assert selection.widths == {"narrow": 8, "wide": 16}
    selection = select_channels(scores, 0.2, round_to=8)
    assert selection.widths == {"narrow": 12, "wide": 32}
    assert selection.unrounded == {"narrow": "no multiple of 8 from 9 to 12"}


def test_a_layer_narrower_than_the_floor_keeps_all():
    scores = {"tiny": torch.linspace(0, 0.1, 6), "wide": torch.linspace(0.2, 1, 32)}
    selection = select_channels(scores, 0.4, round_to=8)
    assert selection.widths == {"tiny": 6, "wide": 24}
    assert selection.unrounded == {"tiny": "no multiple of 8 from 8 to 6"}


def test_groups_that_round_to_the_whole_width_go_in_their_own_steps():
    """55 groups of 2: 440 would be the first multiple of both, and nothing could ever go."""
    scores = {"grouped": torch.linspace(0, 1, 2).repeat_interleave(55), "wide": torch.rand(64) + 1}
    selection = select_channels(scores, 0.3, round_to=8, channels_per_decision={"grouped": 55})
    assert selection.widths["grouped"] == 55
    assert "steps of 55" in selection.unrounded["grouped"]


def test_a_layer_that_loses_nothing_is_not_rounded():
    scores = {"odd": torch.linspace(1, 2, 12), "wide": torch.linspace(0, 0.9, 16)}
    assert select_channels(scores, 0.2, round_to=8).widths == {"odd": 12, "wide": 16}


def test_min_channels_holds_where_nothing_survives():
    scores = {"dead": torch.zeros(16), "alive": torch.ones(16)}
    selection = select_channels(scores, 0.6, round_to=1, min_channels=3)
    assert selection.widths == {"dead": 3, "alive": 3}


def test_nothing_to_prune():
    with pytest.raises(UnsupportedModelError, match="no channel can be removed"):
        select_channels({}, 0.2)


def test_threshold_is_an_order_statistic_of_all_layers_together():
    scores = {"a": torch.tensor([0.4, 0.1]), "b": torch.tensor([0.3, 0.2, 0.5])}
    assert global_threshold(scores, 0.4) == pytest.approx(0.3)
