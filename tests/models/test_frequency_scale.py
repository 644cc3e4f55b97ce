import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.measure.macs import macs_by_layer
from compress.models import build, infer
from compress.models.frequencies import (
    filter_of_rows,
    multiplicities,
    real_frequencies,
    row_norms,
    rows_of_filter,
)
from compress.models.frequency_scale import with_frequency_scale, without_frequency_scale
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.gfnet_resize import resized
from compress.models.global_filter import (
    GlobalFilter,
    MatrixFilter,
    filter_as_matrices,
    with_matrix_filters,
)
from tests.models.published_gfnet import circular_filter

TINY = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 3, "num_classes": 5}
GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def kernel(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """The real picture that a filter convolves with, (a, b, D), by numpy's inverse transform."""
    half = torch.view_as_complex(weight.contiguous())
    return torch.fft.irfft2(half, s=grid, dim=(0, 1))


def random_network(kind: type[GFNet] = GFNet, **config: object) -> GFNet:
    torch.manual_seed(0)
    model = kind(**{**TINY, **config}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("grid", "count"), [((4, 4), 10), ((14, 14), 100), ((11, 18), 100), ((16, 16), 130)]
)
def test_the_frequencies_of_a_real_picture_are_counted_once(
    grid: tuple[int, int], count: int
) -> None:
    frequencies = real_frequencies(grid)
    assert len(frequencies) == count
    # A real picture of N numbers has N real degrees of freedom: two a pair, one a lone frequency.
    assert sum(multiplicities(frequencies, grid)) == grid[0] * grid[1]


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS)
def test_rows_have_the_effect_of_the_published_filter(grid: tuple[int, int]) -> None:
    weight = torch.randn(grid[0], grid[1] // 2 + 1, 3, 2)
    frequencies = real_frequencies(grid)
    rows = rows_of_filter(weight, grid)
    assert rows.shape == (len(frequencies), 3, 2)
    back = filter_of_rows(rows, frequencies, grid)
    assert back.shape == weight.shape
    torch.testing.assert_close(kernel(back, grid), kernel(weight, grid), rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS)
def test_the_norm_of_a_row_is_that_of_the_real_filter_it_makes(grid: tuple[int, int]) -> None:
    frequencies = real_frequencies(grid)
    rows = torch.randn(len(frequencies), 2, 2)
    expected = []
    for i, number in enumerate(frequencies):
        alone = kernel(filter_of_rows(rows[i : i + 1], [number], grid), grid)
        expected.append(alone.norm() * math.sqrt(grid[0] * grid[1]))  # Parseval
    torch.testing.assert_close(row_norms(rows, frequencies, grid), torch.stack(expected))


@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, data=st.data())
def test_all_forms_of_a_filter_without_some_frequencies_agree(
    grid: tuple[int, int], data: st.DataObject
) -> None:
    torch.manual_seed(1)
    everything = real_frequencies(grid)
    kept = sorted(data.draw(st.sets(st.sampled_from(everything), min_size=1)))
    layer = GlobalFilter(3, grid, frequencies=kept, scale=True)
    nn.init.normal_(layer.complex_weight)
    nn.init.normal_(layer.scale)
    x = torch.randn(2, grid[0] * grid[1], 3)
    weight = layer.complex_weight * layer.scale[:, None, None]
    expected = circular_filter(x, filter_of_rows(weight, kept, grid), grid)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    matrices = filter_as_matrices(layer)
    assert matrices.fr.shape == (len(kept), grid[0] * grid[1])
    assert matrices.gi.shape == (grid[0] * grid[1], len(kept))
    torch.testing.assert_close(matrices(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(14, 14), (11, 18), (43, 6)])
def test_fft_and_matrices_agree_on_published_grids(grid: tuple[int, int]) -> None:
    torch.manual_seed(2)
    kept = real_frequencies(grid)[::3]
    layer = GlobalFilter(16, grid, frequencies=kept)
    nn.init.normal_(layer.complex_weight)
    x = torch.randn(2, grid[0] * grid[1], 16)
    assert relative(filter_as_matrices(layer)(x), layer(x)) < 1e-5


@pytest.mark.parametrize("from_weights", [False, True])
@pytest.mark.parametrize("kind", ["plain", "exits", "distilled"])
def test_scales_come_and_go_without_a_change_of_function(from_weights: bool, kind: str) -> None:
    if kind == "exits":
        model = random_network(GFNetDynn, exits=[0])
    else:
        model = random_network(distilled=kind == "distilled")
    with torch.no_grad():
        model.blocks[0].filter.complex_weight[0, 1] = 0
    image = torch.randn(2, 3, 16, 16)
    scaled = with_frequency_scale(model, from_weights=from_weights)
    torch.testing.assert_close(scaled(image), model(image), rtol=1e-4, atol=1e-5)
    state = scaled.state_dict()
    expected = len(real_frequencies(tuple(model.config["grid"])))
    assert state["blocks.1.filter.complex_weight"].shape == (expected, 8, 2)
    assert state["blocks.0.filter.scale"][1] == (0 if from_weights else 1)
    with torch.no_grad():
        scaled.blocks[2].filter.scale *= torch.linspace(0.5, 2, expected)
    folded = without_frequency_scale(scaled)
    torch.testing.assert_close(folded(image), scaled(image), rtol=1e-4, atol=1e-5)
    assert folded.config == model.config
    assert {n: t.shape for n, t in folded.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


def test_adding_scales_neither_draws_random_numbers_nor_shares_tensors() -> None:
    model = random_network()
    before = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    scaled = with_frequency_scale(model)
    assert torch.equal(torch.random.get_rng_state(), random)
    for tensor in scaled.state_dict().values():
        tensor.zero_()
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_network_built_with_scales_has_all_frequencies_and_trains_them() -> None:
    model = GFNet(**TINY, frequency_scale=True, hidden_scale=True)
    assert model.config["frequencies"] == [real_frequencies((4, 4))] * 3
    assert {f"blocks.{i}.filter.scale" for i in range(3)} <= model.no_weight_decay()
    groups = model.channel_groups()
    assert [group.kind for group in groups] == ["frequency", "hidden"] * 3
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert (model.blocks[1].filter.scale.grad != 0).all()


def test_removed_rows_make_the_matrices_and_their_cost_smaller() -> None:
    kept = [real_frequencies((4, 4)), [0, 1, 2, 7], [8]]
    model = build("gfnet", {**GFNet(**TINY).config, "frequencies": kept}).eval()
    lowered = with_matrix_filters(model)
    sizes = [m.fr.shape[0] for m in lowered.modules() if isinstance(m, MatrixFilter)]
    assert sizes == [10, 4, 1]
    image = torch.randn(2, 3, 16, 16)
    assert relative(lowered(image), model(image)) < 1e-5
    for network in (model, lowered):  # both state the matrix form
        macs = macs_by_layer(network, (3, 16, 16))
        per_row = 4 * 16 * 8 + 4 * 8  # N = 16 tokens, D = 8 channels
        assert [macs[f"blocks.{i}.filter"] for i in range(3)] == [n * per_row for n in sizes]


def test_filters_with_the_same_frequencies_share_their_matrices() -> None:
    kept = [[0, 1, 2], [0, 1, 2], [0, 1, 3]]
    lowered = with_matrix_filters(GFNet(**TINY, frequencies=kept))
    first, second, third = (m for m in lowered.modules() if isinstance(m, MatrixFilter))
    assert first.fr.data_ptr() == second.fr.data_ptr() != third.fr.data_ptr()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_kept_frequencies_survive_saving(suffix: str, tmp_path: Path) -> None:
    kept = [[0, 3, 10], [1], [2, 4]]
    model = random_network(GFNetDynn, exits=[1], frequencies=kept)
    path = compress.save(model, tmp_path / f"a{suffix}")
    again = compress.load(path)
    assert again.config["frequencies"] == kept
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(image), model(image))


def test_shapes_do_not_tell_which_frequencies_are_kept(tmp_path: Path) -> None:
    state = GFNet(**TINY, frequencies=[[0, 3], [1, 2], [4, 5]]).state_dict()
    with pytest.raises(UnsupportedModelError, match="shapes do not tell which"):
        infer(state)
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(UnsupportedModelError, match="whose configuration names them"):
        compress.load(tmp_path / "bare.pth")


def test_another_image_size_wants_whole_filters() -> None:
    with pytest.raises(UnsupportedModelError, match="resize the network that it was slimmed from"):
        resized(GFNet(**TINY, frequencies=[[0], [1], [2]]), 24)


def test_a_network_with_scales_is_resized_like_one_without() -> None:
    model = random_network()
    scaled = with_frequency_scale(model, from_weights=True)
    # The published rule interpolates the parts of the filter that have no effect too.
    plain = resized(without_frequency_scale(scaled), 24)
    twin = resized(scaled, 24)
    image = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(twin(image), plain(image), rtol=1e-4, atol=1e-5)
    assert twin.config["frequency_scale"]
    assert torch.equal(twin.blocks[0].filter.scale, torch.ones(20))  # (36 - 4) / 2 + 4


@pytest.mark.parametrize(
    ("frequencies", "match"),
    [
        ([[0], [1]], "given for 2 blocks"),
        ([[0], [1], []], r"block 2 are \[\]"),
        ([[0], [2, 1], [1]], "each once, ascending"),
        ([[0], [1, 1], [1]], "each once, ascending"),
        ([[0], [1], [9]], "some of the 10 that a grid of 4x4 has"),  # the conjugate of 3
        ([[0], [1], [12]], "expected some"),
        ([[-1], [1], [2]], "expected some"),
    ],
)
def test_wrong_frequencies_are_refused(frequencies: list[list[int]], match: str) -> None:
    with pytest.raises(UserInputError, match=match):
        GFNet(**TINY, frequencies=frequencies)
