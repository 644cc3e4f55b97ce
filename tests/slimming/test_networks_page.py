"""docs/networks.md holds: what slims of each network, and what stays whole and why.

Rows of the page are printed by `python -m tests.slimming.test_networks_page [NAME …]`.
"""

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.slimming.traced import TracedNetwork
from tests.foreign_networks import NETWORKS
from tests.networks import IMAGE, trained_like

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
SIZES = {"vgg16_bn": 32, "inception_v3": 299, "levit_128s": 224, "vit_tiny_patch16_224": 224}


def rows(heading: str) -> list[str]:
    part = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in part.splitlines() if line.startswith("| ")][2:]


def name_of(row: str) -> str:
    return row.split("|")[1].strip()


def row_of(name: str, network: nn.Module, example: torch.Tensor) -> str:
    net = TracedNetwork(trained_like(network), example)
    widths = net.widths()
    whole: Counter[str] = Counter()
    for group, why in net.kept_whole.items():
        whole[why] += widths[group]
    free = sum(widths.values()) - whole.total()
    reasons = "; ".join(f"{count}: {why}" for why, count in whole.most_common()) or "nothing"
    return f"| {name} | {free} of {sum(widths.values())} | {reasons} |"


def public(name: str) -> nn.Module:
    """Build a network of torchvision or timm, without weights."""
    source, _, model = name.partition(" ")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):  # which torchvision's own library defines, where it fits torch
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if source == "timm":
        return importlib.import_module("timm").create_model(model, pretrained=False)
    models = importlib.import_module("torchvision.models")
    place = models if hasattr(models, model) else models.segmentation
    backbone = {} if place is models else {"weights_backbone": None}
    return getattr(place, model)(weights=None, **backbone)


def public_row(name: str) -> str:
    size = SIZES.get(name.partition(" ")[2], 64)
    return row_of(name, public(name), torch.randn(1, 3, size, size))


def test_the_page_names_every_network_of_the_tests():
    assert [name_of(row) for row in rows("Written small in the tests")] == list(NETWORKS)
    assert len(rows("Public networks")) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_the_small_networks(name):
    (row,) = [row for row in rows("Written small in the tests") if name_of(row) == name]
    assert row == row_of(name, NETWORKS[name].build(), torch.zeros(IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize("row", rows("Public networks"), ids=name_of)
def test_rows_of_public_networks(row):
    try:
        importlib.import_module(name_of(row).split()[0])
    except Exception as err:  # an old build beside a new torch fails in many ways
        pytest.skip(f"not importable here: {err}")
    assert row == public_row(name_of(row))


if __name__ == "__main__":
    for asked in sys.argv[1:] or list(NETWORKS):
        known = NETWORKS.get(asked)
        print(row_of(asked, known.build(), torch.zeros(IMAGE)) if known else public_row(asked))
