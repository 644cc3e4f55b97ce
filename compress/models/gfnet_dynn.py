"""GFNet with early exits: heads and gates behind chosen blocks.

The form of JEI-DNN ("Jointly-Learned Exit and Inference for a Dynamic Neural Network", Chataoui et
al., arXiv 2310.09163): behind block p of `exits` a linear head reads the pooled tokens through the
shared final norm, and a gate of five parameters reads four features of the head's logits. An image
leaves at the first exit with sigmoid(gate) >= threshold.

Positions are 0-based block indices. Exits are numbered 0 … E-1 in the order of the network; exit E
is the final head. Names in the state_dict are the published ones: `intermediate_heads.{i}`,
`intermediate_heads_dist.{i}`, `gates.{i}.linear`, i the number of the exit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.gate import Gate
from compress.models.gfnet import GFNet, initialised
from compress.models.gfnet_layout import infer_gfnet_config, numbered
from compress.models.with_exits import WithExits, checked_bars, numbers_of
from compress.runtime.decision import fires, leaves
from compress.runtime.exit_spelling import Position
from compress.runtime.thresholds import check_thresholds

__all__ = ["GFNetDynn", "check_exit_positions", "gfnet_with_exits", "gfnet_without_exits"]

WITHOUT_EFFECT = ("num_classes", "drop_path")  # of the configuration, on the features in eval mode
FINAL_HEADS = ("head", "head_dist")
OF_EXITS = ("exits", "exit_dist_heads")  # of the configuration


class GFNetDynn(WithExits, GFNet):
    """A GFNet with a head and a gate behind each of the blocks `exits`.

    Args:
        exits: 0-based block indices, ascending, the last block not among them.
        exit_dist_heads: two heads an exit, for class and distillation token; None takes two where
            the network is distilled. One head on a distilled network reads the mean of all tokens.
        **config: the arguments of `GFNet`.

    Raises:
        UserInputError: a position is out of range, repeated, out of order or the last block.
    """

    arch = "gfnet_dynn"
    exit_parts = ("intermediate_heads", "intermediate_heads_dist", "gates")

    def __init__(
        self, *, exits: Sequence[int], exit_dist_heads: bool | None = None, **config: Any
    ) -> None:
        super().__init__(**config)
        both = self.config["distilled"] if exit_dist_heads is None else exit_dist_heads
        check_exit_positions(exits, len(self.blocks))
        _check_heads(self.config, both)
        self.config = {**self.config, "exits": list(exits), "exit_dist_heads": both}
        self.intermediate_heads = nn.ModuleList(_head(self.config) for _ in exits)
        if both:
            self.intermediate_heads_dist = nn.ModuleList(_head(self.config) for _ in exits)
        self.gates = nn.ModuleList(Gate() for _ in exits)

    @property
    def exit_paths(self) -> tuple[str, ...]:
        """The blocks behind which the exits stand."""
        return tuple(f"blocks.{position}" for position in self.config["exits"])

    def every_exit(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run everything; see `WithExits.every_exit`."""
        tokens = self._tokens(image)
        found = [self.exit_outputs(i, next(tokens)) for i in range(len(self.gates))]
        final = self.classify(self.pool(next(tokens)))
        return [*(logits for logits, _ in found), final], [gate for _, gate in found]

    def head_inputs(self, image: Tensor) -> list[Tensor]:
        """Return what the heads read: E+1 times (B, D), or (B, 2, D) of the distilled form."""
        tokens = self._tokens(image)
        pooled = [self.pool_exit(next(tokens)) for _ in self.gates]
        return [*pooled, self.pool(next(tokens))]

    def from_head_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `forward_all` returns, from what `head_inputs` returned."""
        logits = [self.exit_logits(i, pooled) for i, pooled in enumerate(inputs[:-1])]
        gates = [gate(each) for gate, each in zip(self.gates, logits, strict=True)]
        return torch.stack([*logits, self.classify(inputs[-1])], dim=1), torch.stack(gates, dim=1)

    def head_inputs_identity(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return configuration and tensors of all but heads and gates."""
        config = {name: value for name, value in self.config.items() if name not in WITHOUT_EFFECT}
        tensors = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not self.is_exit_parameter(name) and name.partition(".")[0] not in FINAL_HEADS
        }
        return config, tensors

    def with_positions(self, positions: Sequence[Position]) -> "GFNetDynn":
        """Return a network with some of these exits alone; nothing is shared."""
        kept = [self.config["exits"][number] for number in numbers_of(positions, self)]
        return gfnet_with_exits(self, kept)

    @torch.inference_mode()
    def forward_early(
        self, image: Tensor, thresholds: float | Sequence[float]
    ) -> tuple[Tensor, int]:
        """Run one image until a gate lets it go; see `WithExits.forward_early`."""
        bars = checked_bars(self, image, thresholds)
        tokens = self._tokens(image)
        for i, bar in enumerate(bars):
            logits, gate = self.exit_outputs(i, next(tokens))
            if leaves(torch.sigmoid(gate).item(), bar):  # the one value an exit sends to the host
                return logits, i
        return self.classify(self.pool(next(tokens))), len(self.gates)

    @torch.inference_mode()
    def forward_early_batch(
        self, images: Tensor, thresholds: float | Sequence[float]
    ) -> tuple[Tensor, list[int]]:
        """Run several images, those that left no further; see `WithExits.forward_early_batch`."""
        bars = check_thresholds(thresholds, len(self.gates))
        found: list[tuple[Tensor, Tensor]] = []  # which images left, and their logits, by exit
        staying = torch.arange(len(images), device=images.device)
        x, done = self.embed(images), 0
        for i, (position, bar) in enumerate(zip(self.config["exits"], bars, strict=True)):
            x, done = self.run_blocks(x, done, position + 1), position + 1
            logits, gates = self.exit_outputs(i, x)
            leave = torch.from_numpy(fires(torch.sigmoid(gates).double().cpu().numpy(), bar))
            leave = leave.to(images.device)
            found.append((staying[leave], logits[leave]))
            staying, x = staying[~leave], x[~leave]
            if not len(staying):
                break
        else:
            found.append((staying, self.classify(self.pool(self.run_blocks(x, done)))))
        order = torch.cat([places for places, _ in found]).argsort()
        exits = [number for number, (places, _) in enumerate(found) for _ in places]
        logits = torch.cat([each for _, each in found])[order]
        return logits, [exits[place] for place in order.tolist()]

    def run_until(self, image: Tensor, exit_number: int) -> Tensor:
        """Return the logits of one exit; see `WithExits.run_until`."""
        tokens = self._tokens(image)
        for i in range(min(exit_number + 1, len(self.gates))):
            logits, _ = self.exit_outputs(i, next(tokens))
        return logits if exit_number < len(self.gates) else self.classify(self.pool(next(tokens)))

    def _tokens(self, image: Tensor) -> Iterator[Tensor]:
        """Give the tokens (B, N, D) behind each exit's block, then the last; none is run ahead."""
        x, done = self.embed(image), 0
        for position in self.config["exits"]:
            x, done = self.run_blocks(x, done, position + 1), position + 1
            yield x
        yield self.run_blocks(x, done)

    def exit_outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and gate logit (B,) of exit `i` for the tokens (B, N, D) there."""
        logits = self.exit_logits(i, self.pool_exit(x))
        return logits, self.gates[i](logits)

    def pool_exit(self, x: Tensor) -> Tensor:
        """Return what the head of an exit reads, in the shape of `pool`."""
        if self.config["distilled"] and not self.config["exit_dist_heads"]:
            mean = self.average(self.norm(x))
            return mean[:, None].expand(-1, 2, -1)  # one head reads either
        return self.pool(x)

    def exit_logits(self, i: int, pooled: Tensor) -> Tensor:
        """Return logits (B, K) of exit `i` for features of `pool_exit`."""
        head = self.intermediate_heads[i]
        if not self.config["distilled"]:
            return head(pooled)
        if not self.config["exit_dist_heads"]:
            return head(pooled[:, 0])
        return (head(pooled[:, 0]) + self.intermediate_heads_dist[i](pooled[:, 1])) / 2

    @property
    def display_name(self) -> str:
        """A name such as "gfnet_dynn_12_384"."""
        return super().display_name.replace("gfnet", "gfnet_dynn", 1)

    @classmethod
    def infer_config(
        cls, state: Mapping[str, Tensor], exits: Sequence[int] | None = None
    ) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Args:
            state: tensors by name.
            exits: positions of the exits. None takes all blocks but the last where there are as
                many heads; names and shapes do not tell them otherwise.

        Returns:
            None where the names are not those of a GFNet with early exits.

        Raises:
            UnsupportedModelError: shapes that fit none, or positions that are not known.
        """
        heads = numbered(state, r"intermediate_heads\.(\d+)\.weight")
        config = infer_gfnet_config(state) if heads else None
        if config is None:
            return None
        return {
            **config,
            "exits": _positions(heads, len(config["hidden"]), exits),
            "exit_dist_heads": "intermediate_heads_dist.0.weight" in state,
        }


def gfnet_with_exits(
    model: GFNet, exits: Sequence[int], *, exit_dist_heads: bool | None = None
) -> GFNetDynn:
    """Return a network with exits at other positions, in the mode of the original.

    Args:
        model: a GFNet, or one with exits: heads and gates at positions that stay are taken along,
            so this also drops the exits that nobody uses. Left as it is; nothing is shared.
        exits: the positions, as in `GFNetDynn`.
        exit_dist_heads: as in `GFNetDynn`; None keeps what `model` has.
    """
    former: list[int] = model.config.get("exits", [])
    if exit_dist_heads is None:
        exit_dist_heads = model.config.get("exit_dist_heads")
    config = {**model.config, "exits": exits, "exit_dist_heads": exit_dist_heads}
    with torch.device("meta") if model.pos_embed.is_meta else nullcontext():
        twin = GFNetDynn(**config)
    state = twin.state_dict()
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part in ("intermediate_heads", "intermediate_heads_dist", "gates"):
            number, _, rest = rest.partition(".")
            position = former[int(number)]
            name = f"{part}.{list(exits).index(position)}.{rest}" if position in exits else ""
        if name in state:
            state[name] = tensor
    twin.load_state_dict(state)
    return twin.to(model.pos_embed.device).train(model.training)


def gfnet_without_exits(model: GFNetDynn) -> GFNet:
    """Return the network under the exits, in the mode of the original; nothing is shared."""
    config = {name: value for name, value in model.config.items() if name not in OF_EXITS}
    with torch.device("meta"):
        twin = GFNet(**config)
    state = model.state_dict()
    own = {n: tensor.clone() for n, tensor in state.items() if not model.is_exit_parameter(n)}
    twin.load_state_dict(own, assign=True)
    return twin.train(model.training)


def check_exit_positions(exits: Sequence[int], depth: int) -> None:
    """Raise UserInputError unless exits can stand behind these blocks of a network of `depth`."""
    wanted = f"expected different block indices from 0 to {depth - 2}, ascending"
    positions = list(exits)
    if not positions:
        raise UserInputError(f"no exit position is given; {wanted}")
    for position in positions:
        if not isinstance(position, int) or not 0 <= position < depth:
            raise UserInputError(f"exit position {position!r} is out of range; {wanted}")
    if depth - 1 in positions:
        raise UserInputError(
            f"exit position {depth - 1} is the last block, where the final head is; {wanted}"
        )
    if len(set(positions)) < len(positions):
        raise UserInputError(f"exit positions {positions} repeat themselves; {wanted}")
    if positions != sorted(positions):
        raise UserInputError(f"exit positions {positions} are out of order; {wanted}")


def _head(config: Mapping[str, Any]) -> nn.Linear:
    return initialised(nn.Linear(config["width"], config["num_classes"]))


def _check_heads(config: Mapping[str, Any], both: bool) -> None:
    if both and not config["distilled"]:
        raise UserInputError(
            "two heads an exit are asked for, but the network has no distillation token; expected "
            "exit_dist_heads only with distilled"
        )
    if config["num_classes"] < 2:
        raise UserInputError(
            f"the number of classes is {config['num_classes']}; a gate compares the two most "
            "likely ones, so expected at least 2"
        )


def _positions(heads: int, depth: int, exits: Sequence[int] | None) -> list[int]:
    if exits is None and heads != depth - 1:
        raise UnsupportedModelError(
            f"the checkpoint has {heads} early exits on {depth} blocks and does not say behind "
            "which; give their 0-based block positions (exits)"
        )
    positions = list(range(depth - 1)) if exits is None else list(exits)
    if len(positions) != heads:
        raise UserInputError(
            f"{len(positions)} exit positions are given, but the checkpoint has {heads} early "
            "exits; expected one position each"
        )
    return positions
