"""Add a learnable scale per frequency to the filters of a GFNet, and fold it away again.

The scale is to a frequency of a filter what BatchNorm's γ is to a channel (arXiv 1708.06519): an L1
penalty drives it to zero where the frequency is not needed, and slimming removes its row. The
filters are then stored by rows (`compress.models.frequencies`). Both directions keep the function
of the network exactly (to float rounding).
"""

from typing import TypeVar

import torch

from compress.models.frequencies import (
    filter_of_rows,
    real_frequencies,
    row_norms,
    rows_of_filter,
)
from compress.models.gfnet import GFNet
from compress.models.rebuild import rebuilt

__all__ = ["with_frequency_scale", "without_frequency_scale"]

Network = TypeVar("Network", bound=GFNet)


@torch.no_grad()
def with_frequency_scale(model: Network, *, from_weights: bool = False) -> Network:
    """Return the network with a scale per frequency; a network that has them as it is.

    Args:
        model: left as it is; nothing is shared.
        from_weights: take the L2 norm of what a frequency adds to the filter out of the filter as
            its scale, so that a network can be ranked that never was trained with scales. Otherwise
            all scales are 1.
    """
    if model.config["frequency_scale"]:
        return model
    rows, columns = model.config["grid"]
    grid, former = (rows, columns), model.config["frequencies"]
    frequencies = former or [real_frequencies(grid) for _ in model.blocks]
    state = dict(model.state_dict())
    for i, numbers in enumerate(frequencies):
        name = f"blocks.{i}.filter"
        weight = state[f"{name}.complex_weight"]
        weight = rows_of_filter(weight, grid) if former is None else weight  # (K, D, 2)
        norm = row_norms(weight, numbers, grid)
        scale = norm if from_weights else torch.ones_like(norm)
        state[f"{name}.scale"] = scale
        # A row of norm 0 does nothing, whatever it holds.
        state[f"{name}.complex_weight"] = weight / scale.where(scale > 0, 1)[:, None, None]
    return rebuilt(model, state, frequency_scale=True, frequencies=frequencies)


@torch.no_grad()
def without_frequency_scale(model: Network) -> Network:
    """Return the network with its scales multiplied into the filters.

    Where no frequency was removed from any block, it has the published layout again.
    """
    if not model.config["frequency_scale"]:
        return model
    rows, columns = model.config["grid"]
    grid, frequencies = (rows, columns), model.config["frequencies"]
    whole = all(list(numbers) == real_frequencies(grid) for numbers in frequencies)
    state = dict(model.state_dict())
    for i, numbers in enumerate(frequencies):
        name = f"blocks.{i}.filter"
        weight = state[f"{name}.complex_weight"] * state.pop(f"{name}.scale")[:, None, None]
        weight = filter_of_rows(weight, numbers, grid) if whole else weight
        state[f"{name}.complex_weight"] = weight
    kept = None if whole else frequencies
    return rebuilt(model, state, frequency_scale=False, frequencies=kept)
