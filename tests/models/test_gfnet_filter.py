import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.errors import UserInputError
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.gfnet_resize import resized
from compress.models.global_filter import (
    GlobalFilter,
    MatrixFilter,
    dft_matrices,
    filter_as_matrices,
    resample_filter,
    with_matrix_filters,
)
from compress.models.hidden_scale import with_hidden_scale, without_hidden_scale
from tests.models.published_gfnet import circular_filter

TINY = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 3, "num_classes": 5}
GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def random_filter(grid: tuple[int, int], width: int = 3) -> GlobalFilter:
    torch.manual_seed(0)
    layer = GlobalFilter(width, grid)
    torch.nn.init.normal_(layer.complex_weight)
    return layer


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS)
def test_fft_form_is_a_circular_convolution(grid: tuple[int, int]) -> None:
    layer = random_filter(grid)
    x = torch.randn(2, grid[0] * grid[1], 3)
    expected = circular_filter(x, layer.complex_weight, grid)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS)
def test_matrix_form_equals_fft_form_on_small_grids(grid: tuple[int, int]) -> None:
    layer = random_filter(grid)
    x = torch.randn(2, grid[0] * grid[1], 3)
    assert relative(filter_as_matrices(layer)(x), layer(x)) < 1e-5


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (11, 18), (43, 6), (24, 24), (14, 21)])
def test_matrix_form_equals_fft_form_on_published_grids(grid: tuple[int, int]) -> None:
    layer = random_filter(grid, width=16)
    x = torch.randn(2, grid[0] * grid[1], 16)
    assert relative(filter_as_matrices(layer)(x), layer(x)) < 1e-5


def test_transform_and_its_inverse_cancel() -> None:
    (fr, fi), (gr, gi) = dft_matrices((5, 6))
    torch.testing.assert_close(gr @ fr + gi @ fi, torch.eye(30), rtol=0, atol=1e-6)


def test_a_network_with_matrix_filters_gives_the_same_outputs() -> None:
    model = GFNet(**TINY).eval()
    image = torch.randn(2, 3, 16, 16)
    lowered = with_matrix_filters(model)
    assert relative(lowered(image), model(image)) < 1e-5
    filters = [m for m in lowered.modules() if isinstance(m, MatrixFilter)]
    assert len(filters) == 3
    assert len({f.fr.data_ptr() for f in filters}) == 1
    assert not any(isinstance(m, MatrixFilter) for m in model.modules())


def test_a_filter_runs_in_half_precision_on_any_grid() -> None:
    layer = random_filter((3, 5)).bfloat16()
    out = layer(torch.randn(1, 15, 3, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((5, 4), (7, 9)), ((3, 6), (4, 8))])
def test_the_spatial_rule_keeps_the_kernel(old: tuple[int, int], new: tuple[int, int]) -> None:
    weight = torch.randn(old[0], old[1] // 2 + 1, 2, 2)
    grown = resample_filter(weight, old, new, how="spatial")
    assert grown.shape == (new[0], new[1] // 2 + 1, 2, 2)
    # Every shift of the old kernel, counted from -n//2, keeps its value at the same shift.
    was, now = (
        torch.fft.irfft2(torch.view_as_complex(w.contiguous()), s=grid, dim=(0, 1))
        for w, grid in ((weight, old), (grown, new))
    )
    rows, columns = (range(-(n // 2), n - n // 2) for n in old)
    for row in rows:
        for column in columns:
            torch.testing.assert_close(now[row, column], was[row, column])
    assert now.abs().sum() == pytest.approx(was.abs().sum().item(), rel=1e-4)
    back = resample_filter(grown, new, old, how="spatial")
    x = torch.randn(1, old[0] * old[1], 2)
    torch.testing.assert_close(
        circular_filter(x, back, old), circular_filter(x, weight, old), rtol=1e-4, atol=1e-5
    )


def test_the_published_rule_interpolates_with_aligned_corners() -> None:
    weight = torch.randn(4, 3, 2, 2)
    grown = resample_filter(weight, (4, 4), (7, 8))
    assert grown.shape == (7, 5, 2, 2)
    for new, old in (((0, 0), (0, 0)), ((6, 4), (3, 2)), ((2, 2), (1, 1)), ((4, 0), (2, 0))):
        torch.testing.assert_close(grown[new], weight[old])  # nodes that both grids have


@pytest.mark.parametrize("filters", ["bicubic", "spatial"])
@pytest.mark.parametrize("size", [24, (12, 20), 8])
def test_a_network_can_be_carried_to_another_size(filters: str, size: int | tuple) -> None:
    model = GFNetDynn(exits=[1], **TINY).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = resized(model, size, filters=filters)
    height, width = (size, size) if isinstance(size, int) else size
    assert twin.config["grid"] == [height // 4, width // 4]
    assert twin.forward_all(torch.randn(1, 3, height, width))[0].shape == (1, 2, 5)
    assert torch.equal(twin.head.weight, model.head.weight)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert not twin.training


def test_positions_are_interpolated_over_the_patches_and_tokens_stay() -> None:
    model = GFNet(**TINY, distilled=True)
    with torch.no_grad():
        rising = torch.arange(4.0).repeat_interleave(4)  # the row that a patch lies in
        model.pos_embed[0, 2:] = rising[:, None]
    twin = resized(model, 32)
    assert twin.config["grid"] == [11, 6]
    assert torch.equal(twin.pos_embed[:, :2], model.pos_embed[:, :2])
    grown = twin.pos_embed[0, 2:].unflatten(0, (8, 8))
    torch.testing.assert_close(grown, grown[:, :1].expand_as(grown))  # the same along a row
    assert (grown[1:, 0, 0] > grown[:-1, 0, 0]).all()
    # Without aligned corners new row 3 lies at (3 + 0.5) / 2 - 0.5 = 1.25 of the old ones, where
    # the cubic kernel (a = -0.75) weighs rows 0 to 3 by -27/256, 225/256, 67/256, -9/256.
    torch.testing.assert_close(grown[3, 0, 0].item(), (225 + 2 * 67 - 3 * 9) / 256)
    assert grown.mean().item() == pytest.approx(1.5, abs=1e-4)


def test_the_same_size_changes_nothing() -> None:
    model = GFNet(**TINY)
    twin = resized(model, 16)
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert twin.pos_embed.data_ptr() != model.pos_embed.data_ptr()


def test_wrong_sizes_and_rules_are_refused() -> None:
    with pytest.raises(UserInputError, match="not divisible"):
        resized(GFNet(**TINY), 17)
    with pytest.raises(UserInputError, match="expected one of"):
        resized(GFNet(**TINY), 16, filters="linear")


@pytest.mark.parametrize("from_weights", [False, True])
@pytest.mark.parametrize("kind", ["plain", "exits"])
def test_scales_come_and_go_without_a_change_of_function(from_weights: bool, kind: str) -> None:
    model = (GFNet(**TINY) if kind == "plain" else GFNetDynn(exits=[0], **TINY)).eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[:, 3] = 0
    scaled = with_hidden_scale(model, from_weights=from_weights)
    torch.testing.assert_close(scaled(image), model(image))
    state = scaled.state_dict()
    expected = model.blocks[1].mlp.fc2.weight.norm(dim=0) if from_weights else torch.ones(32)
    torch.testing.assert_close(state["blocks.1.mlp.scale"], expected)
    with torch.no_grad():
        scaled.blocks[2].mlp.scale *= 3
    folded = without_hidden_scale(scaled)
    assert list(folded.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(folded(image), scaled(image))
    assert type(folded) is type(model)
    assert folded.config == model.config
