"""Give a network early exits, or other ones than it has."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.head_kinds import DEFAULT_HEAD, check_head_kind
from compress.models.early_exit import EarlyExitNetwork, described_exits
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn, gfnet_with_exits, gfnet_without_exits
from compress.models.with_exits import WithExits
from compress.runtime.exit_spelling import Position, path_of, spelled

__all__ = ["with_exits"]


def with_exits(
    model: nn.Module,
    positions: Sequence[Position],
    image: Tensor,
    *,
    head: str = DEFAULT_HEAD,
    exit_dist_heads: bool | None = None,
) -> WithExits:
    """Return a network with exits at these positions, in the mode of the original.

    A GFNet becomes a `GFNetDynn`, in the published form, where its heads are linear and stand
    behind blocks.

    Args:
        model: left as it is, nothing is shared. Of one with exits, heads of the same kind and
            gates at positions that stay are taken along.
        positions: paths of modules, or numbers of blocks.
        image: (1, C, H, W) that the network takes.
        head: kind of the heads, see `compress.models.exit_head`.
        exit_dist_heads: of a distilled GFNet, see `GFNetDynn`.

    Raises:
        UserInputError: a position or the kind of head cannot be used.
        UnsupportedModelError: a module gives what no exit can read.
    """
    check_head_kind(head)
    asked = [spelled(path_of(position)) for position in positions]
    blocks = [each for each in asked if isinstance(each, int)]
    if isinstance(model, GFNet) and head == DEFAULT_HEAD and blocks == asked:
        return gfnet_with_exits(model, blocks, exit_dist_heads=exit_dist_heads)
    if isinstance(model, GFNetDynn):
        model = gfnet_without_exits(model)
    former = model if isinstance(model, EarlyExitNetwork) else None
    backbone = model if former is None else former.backbone
    mode = model.training
    pair = image[:1].expand(2, *image.shape[1:])
    device = next((p.device for p in model.parameters()), image.device)
    exits, classes = described_exits(backbone.eval(), positions, pair.to(device), head)
    backbone.train(mode)
    twin = EarlyExitNetwork(copy.deepcopy(backbone), exits=exits, num_classes=classes).to(device)
    if former is not None:
        _take_over(former, twin)
    return twin.train(mode)


@torch.no_grad()
def _take_over(former: EarlyExitNetwork, twin: EarlyExitNetwork) -> None:
    for number, path in enumerate(twin.exit_paths):
        if path not in former.exit_paths:
            continue
        there = former.exit_paths.index(path)
        old, new = former.head(there), twin.head(number)
        if old.to_config() == new.to_config():
            new.load_state_dict(old.state_dict())
            twin.gates[number].load_state_dict(former.gates[there].state_dict())
