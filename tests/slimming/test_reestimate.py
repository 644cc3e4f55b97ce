import copy

import numpy as np
import pytest
import torch
from torch import nn

from compress.slimming.reestimate import blend_, reestimate_, statistics
from tests.networks import inverted_residual_net, trained_like


def batches(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(size, 3, 16, 16, generator=generator) for size in sizes]


def test_statistics_are_those_of_all_images_together():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    looked_at = batches(4, 4, 1)  # a last batch of one image too
    reestimate_(network, looked_at)
    with torch.no_grad():
        maps = np.concatenate([network[0](batch).double().numpy() for batch in looked_at])
    np.testing.assert_allclose(network[1].running_mean, maps.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(network[1].running_var, maps.var((0, 2, 3), ddof=1), rtol=1e-5)


def test_later_layers_see_what_is_normalised_anew():
    """What the last BatchNorm reads in use is what it saw, but for the unbiased variance kept."""
    network = trained_like(inverted_residual_net())
    (images,) = batches(16)
    reestimate_(network, [images])
    last = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
    seen = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append(output.detach().clone()))
    network(images)
    spread, mean = torch.var_mean(seen[0], (0, 2, 3))
    torch.testing.assert_close(mean, last.bias.detach(), atol=5e-2, rtol=0)
    torch.testing.assert_close(spread.sqrt(), last.weight.detach().abs(), atol=5e-2, rtol=0)


def test_nothing_but_the_statistics_changes_and_nothing_is_random():
    network = trained_like(inverted_residual_net())  # with dropout
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    for one in (first, second):
        reestimate_(one.train(), batches(8, 8))
    for name, tensor in network.state_dict().items():
        assert first.state_dict()[name].equal(second.state_dict()[name])
        if "running" not in name:
            assert tensor.equal(first.state_dict()[name])
    assert not any(parameter.grad_fn for parameter in first.parameters())


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.25, 1.5), (1.0, 3.0)])
def test_blends_lie_between_old_and_new(share, expected):
    network = nn.Sequential(nn.BatchNorm2d(2))
    network[0].running_mean.fill_(1.0)
    old = statistics(network)
    network[0].running_mean.fill_(3.0)
    blend_(network, old, share)
    assert network[0].running_mean.tolist() == pytest.approx([expected] * 2)
    assert old["0"].mean.tolist() == [1.0, 1.0]
