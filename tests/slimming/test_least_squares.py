import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.slimming.layer_samples import places, sampled_inputs, sampled_outputs
from compress.slimming.least_squares import LeastSquares


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_worked_example_of_the_module():
    a = draw(50, 1)
    c = a + 3
    squares = LeastSquares(1, 1)
    squares.add(a, 2 * a + c)
    found = squares.solve(torch.tensor([[2.0]]), ridge=1e-9, bias=True)
    assert found.weight.item() == pytest.approx(3)
    assert found.bias.item() == pytest.approx(3)
    assert found.left == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_numpys_least_squares(bias):
    x, y = draw(300, 7) + 2, draw(300, 3, seed=1) + draw(300, 1, seed=2)
    squares = LeastSquares(7, 3)
    for rows in (slice(0, 100), slice(100, 300)):
        squares.add(x[rows], y[rows])
    found = squares.solve(torch.zeros(3, 7), ridge=1e-12, bias=bias)
    columns = np.concatenate([x.numpy(), np.ones((300, 1))], 1) if bias else x.numpy()
    wanted, squared, _, _ = np.linalg.lstsq(columns.astype(np.float64), y.double().numpy(), None)
    np.testing.assert_allclose(found.weight.T, wanted[:7], atol=1e-6)
    if bias:
        np.testing.assert_allclose(found.bias, wanted[7], atol=1e-6)
        spread = ((y - y.mean(0)) ** 2).sum().item()
        assert found.left == pytest.approx(squared.sum() / spread, rel=1e-4)


def test_groups_are_fitted_by_themselves():
    x, y = draw(200, 6), draw(200, 4, seed=1)
    together = LeastSquares(3, 2, groups=2)
    together.add(x, y)
    found = together.solve(draw(4, 3, seed=2), ridge=1e-3, bias=True)
    for group in range(2):
        rows, columns = slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3)
        alone = LeastSquares(3, 2)
        alone.add(x[:, columns], y[:, rows])
        one = alone.solve(draw(4, 3, seed=2)[rows], ridge=1e-3, bias=True)
        torch.testing.assert_close(found.weight[rows], one.weight)
        torch.testing.assert_close(found.bias[rows], one.bias)


def test_where_samples_say_nothing_the_weights_stay():
    """Fewer samples than weights, and an input that is always zero."""
    weight = draw(2, 9, seed=3)
    x = draw(4, 9)
    x[:, 5] = 0
    squares = LeastSquares(9, 2)
    squares.add(x, x @ weight.T)
    found = squares.solve(weight, ridge=1e-3, bias=False)
    torch.testing.assert_close(found.weight.float(), weight)
    nothing = LeastSquares(9, 2)
    nothing.add(torch.zeros(4, 9), torch.ones(4, 2))
    assert nothing.solve(weight, ridge=1e-3, bias=False).weight.float().equal(weight)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), ridge=st.sampled_from([1e-6, 1e-3, 0.1]))
def test_a_fit_is_never_worse_than_the_weights_that_were_there(seed, ridge):
    x, y, weight = draw(60, 5, seed=seed), draw(60, 2, seed=seed + 1), draw(2, 5, seed=seed + 2)
    squares = LeastSquares(5, 2)
    squares.add(x, y)
    found = squares.solve(weight, ridge=ridge, bias=False)
    error = (y - x @ found.weight.float().T).square().sum()
    assert error <= (y - x @ weight.T).square().sum() * (1 + 1e-6)


LAYERS = [
    pytest.param(
        nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        (4, 6, 11, 13),
        id="strided, dilated, grouped",
    ),
    pytest.param(
        nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="reflect"),
        (4, 4, 7, 9),
        id="depthwise, mirrored",
    ),
    pytest.param(nn.Conv2d(3, 5, 4, padding="same"), (4, 3, 6, 6), id="uneven padding"),
    pytest.param(nn.Conv1d(5, 3, 4, stride=3, padding=2), (4, 5, 17), id="signals"),
    pytest.param(nn.Conv3d(2, 3, 2, padding=1), (4, 2, 5, 4, 3), id="volumes"),
    pytest.param(nn.Linear(5, 3), (4, 7, 5), id="tokens"),
    pytest.param(nn.Linear(5, 3), (4, 5), id="vectors"),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@torch.no_grad()
def test_samples_are_what_the_layer_computes_with(layer, shape):
    images = draw(*shape)
    output = layer(images)
    where = places("name", layer, output, len(images))
    x, y = sampled_inputs(layer, images, where), sampled_outputs(layer, output, where)
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.reshape(groups, -1, layer.weight[0].numel())
    found = torch.einsum("ngi,goi->ngo", x.reshape(len(x), groups, -1), weight).flatten(1)
    torch.testing.assert_close(found + layer.bias, y, atol=1e-5, rtol=1e-5)
