"""The network with exits that a training of exits starts from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.head_kinds import DEFAULT_HEAD
from compress.measure.exit_positions import chosen_positions
from compress.models.give_exits import with_exits
from compress.models.with_exits import WithExits
from compress.runtime.exit_spelling import Position

__all__ = ["network_with_exits"]


def network_with_exits(
    model: nn.Module,
    positions: str | Sequence[Position] | None,
    image: Tensor,
    *,
    head: str | None = None,
    seed: int,
) -> WithExits:
    """Return the network that is trained; what is new in it is drawn from the seed.

    Args:
        model: in eval mode; a network of one output, or one with exits.
        positions: paths of modules or numbers of blocks, or "auto:K"; None keeps those that the
            network has.
        image: (1, C, H, W) that it takes.
        head: kind of the heads, see `compress.models.exit_head`; None is linear, or what the
            network has.
        seed: of new heads and gates.

    Raises:
        UserInputError: a position or the kind of head cannot be used, or there are no exits.
        UnsupportedModelError: a module gives what no exit can read.
    """
    if positions is None:
        if not isinstance(model, WithExits):
            raise UserInputError(
                f"{type(model).__name__} has no exits and none are asked for; expected positions, "
                "such as auto:4 or what python -m compress.exits list names"
            )
        if head is None:
            return model
        positions = model.positions
    _, channels, height, width = image.shape
    chosen = chosen_positions(model, (channels, height, width), positions)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return with_exits(model, chosen, image, head=head or DEFAULT_HEAD)
