import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from compress.measure.exit_macs import macs_per_exit
from compress.measure.macs import count, count_macs, macs_by_layer
from compress.models.gfnet import GFNet, gfnet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.global_filter import with_matrix_filters

WIDTH = 384


@pytest.mark.parametrize(
    ("size", "patches", "block", "whole"),
    [(224, 57.80, 232.82, 2851.6), (256, 75.50, 304.18, 3725.6)],
)
def test_gfnet_xs_costs_what_the_closed_form_says(
    size: int, patches: float, block: float, whole: float
) -> None:
    with torch.device("meta"):
        model = gfnet("gfnet_xs", image_size=size, num_classes=10)
        early = GFNetDynn(exits=range(11), image_size=size, num_classes=10)
    assert round(count_macs(model, (3, size, size)) / 1e6, 1) == whole
    by_layer = macs_by_layer(model, (3, size, size))
    assert round(by_layer["patch_embed.proj"] / 1e6, 2) == patches
    per_block = sum(macs for name, macs in by_layer.items() if name.startswith("blocks.7."))
    assert round(per_block / 1e6, 2) == block
    head_and_gate = WIDTH * 10 + 4
    for i, macs in enumerate(macs_per_exit(early, (3, size, size))[:-1]):
        stem = by_layer["patch_embed.proj"]
        assert macs == stem + (i + 1) * (per_block + head_and_gate)
    assert macs_per_exit(model, (3, size, size)) == [count_macs(model, (3, size, size))]


def test_the_filter_is_counted_as_it_is_executed() -> None:
    with torch.device("meta"):
        model = gfnet("gfnet_xs", num_classes=10)
    tokens, frequencies = 196, 14 * 8
    by_fft = round(2.5 * tokens * math.log2(tokens) * WIDTH) + 4 * frequencies * WIDTH
    by_matrices = 4 * (tokens + 1) * frequencies * WIDTH
    difference = count_macs(with_matrix_filters(model), (3, 224, 224))
    difference -= count_macs(model, (3, 224, 224))
    assert difference == 12 * (by_matrices - by_fft)


def test_matrix_filters_cost_what_their_products_cost() -> None:
    model = with_matrix_filters(GFNet(image_size=8, patch_size=2, width=6, depth=1))
    x = torch.randn(1, 16, 6)
    block = model.blocks[0].filter
    counted = block.own_macs((x,), block(x))
    with FlopCounterMode(display=False) as counter:
        block(x)
    elementwise = 4 * 12 * 6  # products that torch's counter leaves out
    assert counted == counter.get_total_flops() // 2 + elementwise


def test_thop_counts_the_filter_too() -> None:
    model = GFNet(image_size=8, patch_size=2, width=6, depth=2, num_classes=5)
    counts = count(model, (3, 8, 8))
    norms = 5 * 16 * 6 * 4  # thop counts four operations an element of LayerNorm
    conv_bias = 6 * 16
    assert counts.flops_log_convention == counts.macs + norms + conv_bias
    assert counts.uncounted == ()
    assert counts.macs > 2 * 16 * 6 * 24 * 2


@pytest.mark.parametrize("both", [True, False])
def test_distilled_networks_pay_for_their_tokens_and_heads(both: bool) -> None:
    model = GFNetDynn(
        exits=[1],
        exit_dist_heads=both,
        distilled=True,
        image_size=16,
        patch_size=4,
        width=8,
        depth=3,
        num_classes=5,
    )
    stem = 16 * 48 * 8
    filters = round(2.5 * 18 * math.log2(18) * 8) + 4 * 3 * 4 * 8  # grid 3 x 6
    block = 2 * 18 * 8 * 32 + filters
    heads = 40 * (2 if both else 1)
    first = stem + 2 * block + heads + 4
    assert macs_per_exit(model, (3, 16, 16)) == [first, first + block + 80]
    assert count_macs(model, (3, 16, 16)) == stem + 3 * block + 80
