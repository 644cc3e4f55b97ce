"""What every network with early exits can do, whatever its backbone.

An exit stands behind a module of the backbone: a head reads what that module gives, and a gate says
from the head's logits whether the image may leave. Exits are numbered 0 … E-1 in the order in which
they run; exit E is the final head. An image leaves at the first exit with
sigmoid(gate) >= threshold; a gate that is not a number never fires.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.runtime.exit_spelling import Position, check_order, path_of, spelled
from compress.runtime.thresholds import check_thresholds

__all__ = ["WithExits", "checked_bars", "depth_of", "everything", "numbers_of"]

GATES = "gates"


class WithExits(nn.Module, ABC):
    """A network with early exits.

    Attributes:
        gates: one `compress.models.gate.Gate`, or what took its place, an exit.
        exit_parts: names of the module lists that hold what belongs to exits, the gates last.
        config: keywords that build it again; holds "num_classes".
    """

    gates: nn.ModuleList
    exit_parts: tuple[str, ...]
    config: dict[str, Any]

    @property
    @abstractmethod
    def exit_paths(self) -> tuple[str, ...]:
        """The module behind which each exit stands, by its path in the backbone."""

    @abstractmethod
    def every_exit(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run everything, by the very calls of `forward_early`.

        Returns:
            logits (B, K) of each exit, the final head last, and gate logits (B,) of each exit.
        """

    @abstractmethod
    def forward_early(
        self, image: Tensor, thresholds: float | Sequence[float]
    ) -> tuple[Tensor, int]:
        """Run one image until a gate lets it go.

        Args:
            image: (1, C, H, W).
            thresholds: one for every exit, or one for all, in [0, 1].

        Returns:
            logits (1, K) and the number of the exit, E for the final head.

        Raises:
            UserInputError: it is not one image, or the thresholds do not fit.
        """

    def forward_early_batch(
        self, images: Tensor, thresholds: float | Sequence[float]
    ) -> tuple[Tensor, list[int]]:
        """Run several images until a gate lets each go.

        One after another, which is how any network can leave early in torch; one that can hand the
        images that stay from block to block overrides it.

        Args:
            images: (B, C, H, W), at least one.
            thresholds: as in `forward_early`.

        Returns:
            logits (B, K) and the number of the exit of each.
        """
        found = [self.forward_early(image, thresholds) for image in images.split(1)]
        return torch.cat([logits for logits, _ in found]), [number for _, number in found]

    @abstractmethod
    def run_until(self, image: Tensor, exit_number: int) -> Tensor:
        """Return the logits of one exit, having run only what leads there, heads on the way too."""

    @abstractmethod
    def head_inputs(self, image: Tensor) -> list[Tensor]:
        """Return what each head reads, (B, …) an exit, and what the final logits are made of."""

    @abstractmethod
    def from_head_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `forward_all` returns, from what `head_inputs` returned."""

    @abstractmethod
    def head_inputs_identity(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return all that decides the head inputs in eval mode: settings and tensors."""

    @abstractmethod
    def with_positions(self, positions: Sequence[Position]) -> "WithExits":
        """Return a network with some of these exits alone; nothing is shared."""

    @property
    def positions(self) -> tuple[Position, ...]:
        """Where the exits stand, as people spell it."""
        return tuple(spelled(path) for path in self.exit_paths)

    @property
    def depth(self) -> int:
        """Blocks of the network, where all exits stand behind numbered ones; 0 of any other."""
        return depth_of(self)

    @property
    def num_classes(self) -> int:
        """K, the length of the logits."""
        return int(self.config["num_classes"])

    def forward_all(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run everything; for training.

        Returns:
            logits (B, E+1, K) of all exits, the final head last, and gate logits (B, E).
        """
        logits, gates = self.every_exit(image)
        return torch.stack(logits, dim=1), torch.stack(gates, dim=1)

    def is_exit_parameter(self, name: str) -> bool:
        """Whether a name of the state_dict belongs to a head or a gate, not to the backbone."""
        return name.partition(".")[0] in self.exit_parts

    def heads_of(self, exit_number: int) -> list[nn.Module]:
        """Return the modules that make the logits of one exit."""
        names = (part for part in self.exit_parts if part != GATES and hasattr(self, part))
        lists = [getattr(self, name) for name in names]
        return [heads[exit_number] for heads in lists]


def depth_of(model: nn.Module) -> int:
    """Return the blocks of a network that is counted in blocks, else 0, see `exit_spelling`."""
    blocks = getattr(getattr(model, "backbone", model), "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential):
        return 0
    try:
        check_order(model.positions if isinstance(model, WithExits) else (), len(blocks))
    except ValueError:  # exits at other places too, or in another order
        return 0
    return len(blocks)


def everything(network: nn.Module, image: Tensor) -> Any:
    """Return all that a network can say of images (B, C, H, W), its exits included."""
    return network.every_exit(image) if isinstance(network, WithExits) else network(image)


def checked_bars(
    network: WithExits, image: Tensor, thresholds: float | Sequence[float]
) -> list[float]:
    """Return one threshold an exit, for `forward_early`.

    Raises:
        UserInputError: it is not one image, or the thresholds do not fit.
    """
    bars = check_thresholds(thresholds, len(network.gates))
    if len(image) != 1:
        raise UserInputError(
            f"forward_early was given {len(image)} images; expected one, or use forward_all"
        )
    return bars


def numbers_of(positions: Sequence[Position], network: WithExits) -> list[int]:
    """Return the numbers of the exits at these positions, each given once and in order.

    Raises:
        UserInputError: there is no exit at a position, one is named twice, or they are out of
            order.
    """
    paths = [path_of(position) for position in positions]
    if not paths or [path for path in network.exit_paths if path in paths] != paths:
        raise UserInputError(
            f"exits are asked for behind {', '.join(map(str, positions)) or 'nothing'}; expected "
            f"some of {', '.join(map(str, network.positions))}, each once, in the order of the "
            "network: where it has exits"
        )
    return [network.exit_paths.index(path) for path in paths]
