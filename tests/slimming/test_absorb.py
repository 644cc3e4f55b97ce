import pytest
import torch
from torch.nn import functional as F

from compress.models.channels import TensorSlice
from compress.slimming.absorb import expected_relu, folded_bias


def test_expected_relu_against_sampling():
    gamma = torch.tensor([0.5, 1.0, -2.0, 0.1, 1.0])
    beta = torch.tensor([0.0, 1.0, 0.5, -1.0, -1.0])
    z = torch.randn(2_000_000, 1, generator=torch.Generator().manual_seed(0))
    sampled = F.relu(beta + gamma * z).mean(0)
    torch.testing.assert_close(expected_relu(gamma, beta), sampled, atol=4e-3, rtol=0)


@pytest.mark.parametrize("beta", [-1.0, 0.0, 0.7])
def test_expected_relu_of_a_dead_channel_is_relu_of_beta(beta):
    value = expected_relu(torch.zeros(1), torch.tensor([beta]))
    assert value.item() == pytest.approx(max(beta, 0.0), abs=1e-6)


def test_expected_relu_at_zero_shift_is_the_half_normal_mean():
    assert expected_relu(torch.ones(1), torch.zeros(1)).item() == pytest.approx(0.3989423)


def test_folded_bias_of_an_unpadded_convolution_is_exact():
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 6, 3, 3), torch.randn(4)
    image = torch.randn(2, 6, 8, 8)
    removed, constants = torch.tensor([1, 4]), torch.tensor([0.5, -2.0])
    image[:, removed] = constants[:, None, None]
    kept = torch.tensor([0, 2, 3, 5])
    reader = TensorSlice(tensor="conv.weight", dim=1)
    folded = folded_bias(bias, weight, removed, constants, reader)
    slim = F.conv2d(image[:, kept], weight[:, kept], folded)
    torch.testing.assert_close(slim, F.conv2d(image, weight, bias), atol=1e-4, rtol=1e-5)


def test_folded_bias_of_a_linear_layer_behind_a_flatten():
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 3 * 4), torch.randn(5)
    features = torch.randn(2, 3, 4)
    features[:, 1] = 2.0
    reader = TensorSlice(tensor="fc.weight", dim=1, repeat=4)
    folded = folded_bias(bias, weight, torch.tensor([1]), torch.tensor([2.0]), reader)
    kept_columns = [0, 1, 2, 3, 8, 9, 10, 11]
    slim = features[:, [0, 2]].flatten(1) @ weight[:, kept_columns].T + folded
    torch.testing.assert_close(slim, features.flatten(1) @ weight.T + bias)
