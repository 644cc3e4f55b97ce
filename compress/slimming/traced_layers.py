"""How channels pass a layer: what it reads and what it gives are channels of its own.

Convolutions and linear layers have independent channels on both sides; every other layer that can
be cut (BatchNorm, InstanceNorm, PReLU, a depthwise convolution) hands its channels on, and counts
them as "out".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.slimming.traced_cells import ALIVE, FIRST, STEADY, ZERO
from compress.slimming.traced_rules import Follower
from compress.slimming.traced_shadow import widened

__all__ = ["LayerFollower", "Reader", "has_gamma", "is_depthwise"]

Place = tuple[str, str]  # (layer, side)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """What a convolution or linear layer reads, on average.

    Attributes:
        means: (in_channels,) of its inputs, NaN where not known.
        following: the BatchNorm that alone reads the layer, or None.
    """

    means: Tensor
    following: str | None


@dataclass(kw_only=True, eq=False)
class _Use:
    """What is known of a layer whose constants may be folded."""

    means: Tensor
    calls: int = 1
    norms: list[tuple[str, int]] = field(default_factory=list)  # (BatchNorm, operation)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution has a group for every channel that it gives."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "out_channels", None)


def has_gamma(layer: nn.Module) -> bool:
    """Whether a layer is a BatchNorm with a scale for every channel."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None


class LayerFollower:
    """Follows cells through the layers of one network.

    Args:
        network: the one that runs.

    Attributes:
        follower: follows what lies between.
        places: the cells of every layer that ran, by (layer, side), one for each channel.
    """

    def __init__(self, network: nn.Module) -> None:
        self.follower = Follower()
        self.places: dict[Place, list[int]] = {}
        self._layers = dict(network.named_modules())
        self._numbers = {name: number for number, name in enumerate(self._layers)}
        self._uses: dict[str, _Use] = {}
        self._owners: dict[int, list[str]] = {}
        for name, layer in self._layers.items():
            for tensor in (*layer._parameters.values(), layer._buffers.get("running_mean")):
                if tensor is not None:
                    self._owners.setdefault(id(tensor), []).append(name)
        self.follower.parameters = {id(p) for p in network.parameters()}

    def readers(self) -> dict[str, Reader]:
        """Return what every layer that runs once, and is no transposed convolution, reads."""
        found = {}
        for name, use in self._uses.items():
            if use.calls != 1 or getattr(self._layers[name], "transposed", False):
                continue
            readers = self.follower.uses.get(self._numbers[name], set())
            alone = use.norms[0][0] if len(use.norms) == len(readers) == 1 else None
            found[name] = Reader(means=use.means, following=alone)
        return found

    def convolve(self, kind: str, image: Tensor, weight: Any, bias: Any, out: Tensor) -> None:
        """Follow a convolution or a linear layer."""
        name = self._name_of(weight, nn.Linear if kind == "Linear" else nn.modules.conv._ConvNd)
        dim = out.dim() - 1 if kind == "Linear" else out.dim() - weight.dim() + 1
        given = self.follower.per_channel(self.follower.shadow(image), dim)
        operation = self.follower.use(given)
        if name is None:
            cells = self._computed(kind, given, out.shape[dim])
        elif is_depthwise(self._layers[name]):
            cells = self._passed(name, given, out.shape[dim], biased=bias is not None)
        else:
            cells = self._read(name, given, out.shape[dim], operation)
        self.follower.note(out, widened(cells, out.shape, dim))

    def normalize(self, kind: str, image: Tensor, keys: Sequence[Any], out: Tensor) -> None:
        """Follow a BatchNorm or InstanceNorm, known by its weight or else its statistics."""
        given = self.follower.per_channel(self.follower.shadow(image), 1)
        operation = self.follower.use(given)
        key = next((key for key in keys if isinstance(key, Tensor)), None)
        name = self._name_of(key, NORMS)
        # Without γ nothing makes a channel vanish: it is still divided by its own deviation.
        states = self.follower.cells.states[given].clamp_min(STEADY)
        if key is None:
            cells = self._after(given, states)
        elif name is None:
            cells = self._computed(kind, given, len(given))
        elif kind == "BatchNorm":
            self._note_norm(name, given, operation)
            cells = self._normalized(name, given, states)
        else:
            cells = self._after(given, states, name)
            if self._layers[name].track_running_stats:
                why = f"a {kind} among their layers has statistics that torch-pruning does not cut"
                self.follower.stay(cells, why)
        self.follower.note(out, widened(cells, out.shape))

    def rectify(self, image: Tensor, weight: Tensor, out: Tensor) -> None:
        """Follow a PReLU; one with a single slope has no channels of its own."""
        given = self.follower.per_channel(self.follower.shadow(image), 1)
        self.follower.use(given)
        states = self.follower.cells.states[given]
        name = self._name_of(weight, nn.PReLU)
        if weight.numel() == 1:
            cells = self._after(given, states)
        elif name is None:
            cells = self._computed("PReLU", given, len(given))
        else:
            cells = self._after(given, states, name)
        self.follower.note(out, widened(cells, out.shape))

    def mix(self, kind: str, operands: Iterable[Tensor], out: Any) -> None:
        """Follow what averages over channels, so that no channel leaves it unnoticed."""
        operands = list(operands)
        for tensor in operands:
            why = f"a {kind} among their layers works on all channels together"
            self.follower.stay(self.follower.shadow(tensor), why)
        self.follower.mix(f"they pass through {kind}", operands, out)

    def image(self, image: Tensor) -> None:
        """Give the channels of the image cells of their own."""
        cells = self.follower.cells.fresh(image.shape[1])
        self.follower.stay(cells, "they belong to the image")
        self.follower.note(image, widened(cells, image.shape))

    def output(self, tensor: Tensor) -> None:
        """Let what the network returns stay."""
        shadow = self.follower.shadow(tensor)
        self.follower.use(shadow)
        self.follower.stay(shadow, "they are the network's output")

    def _name_of(self, tensor: Any, kinds: Any) -> str | None:
        names = self._owners.get(id(tensor), [])
        return next((name for name in names if isinstance(self._layers[name], kinds)), None)

    def _place(self, name: str, side: str, given: Tensor | int) -> Tensor:
        """Return the cells of a side of a layer, tied to those that it is given, if any."""
        follower = self.follower
        width = given if isinstance(given, int) else len(given)
        if (name, side) not in self.places:
            self.places[name, side] = follower.cells.fresh(width).tolist()
            self._check_sharing(name, side)
        own = self.places[name, side]
        if isinstance(given, Tensor):
            for mine, theirs in zip(own, given.tolist(), strict=True):
                follower.cells.merge(theirs, mine)
                if theirs < FIRST:
                    follower.stay([mine], "they are read beside values of a fixed width")
        return torch.tensor(own)

    def _read(self, name: str, given: Tensor, width: int, operation: int) -> Tensor:
        cells, layer = self.follower.cells, self._layers[name]
        self._place(name, "in", given)
        own = self._place(name, "out", width)
        for side, count in (("in", len(given)), ("out", width)):
            self._tie_groups(self.places[name, side], count // int(getattr(layer, "groups", 1)))
        alive = given[(cells.states[given] == ALIVE) & (given >= FIRST)]
        why = f"no γ scales all of what {name} reads of them"
        self.follower.unscaled += [(cell, why) for cell in alive.tolist()]
        if name in self._uses:
            self._uses[name].calls += 1
        else:
            self._uses[name] = _Use(means=cells.means[given].clone())
        return cells.fresh(width, like=own, owner=self._numbers[name])

    def _passed(self, name: str, given: Tensor, width: int, *, biased: bool) -> Tensor:
        """Follow a depthwise convolution, which keeps channels apart."""
        cells, layer = self.follower.cells, self._layers[name]
        states = cells.states[given]
        if len(given) == width:
            own = self._place(name, "out", given)
            weight: Tensor = layer.weight.detach().double().flatten(1)
            # Away from the border, as a constant passes any convolution.
            mean = cells.means[given] * weight.sum(1)
            if biased:
                states, mean = states.clamp_min(STEADY), mean + layer.bias.detach()
            variance = cells.variances[given] * (weight**2).sum(1)
            return cells.fresh(width, state=states, mean=mean, variance=variance, like=own)
        kind = type(layer).__name__
        why = f"a {kind} among their layers has as many groups as outputs, but other inputs"
        own = self._place(name, "out", width)
        self.follower.stay(given, why)
        self.follower.stay(own, why)
        return cells.fresh(width, like=own)

    def _normalized(self, name: str, given: Tensor, states: Tensor) -> Tensor:
        norm, count = self._layers[name], len(given)
        own = self._place(name, "out", given)
        if not has_gamma(norm):
            # What BatchNorm has normalised is taken for standard normal in every channel.
            mean, variance = torch.zeros(count), torch.ones(count)
        else:
            states = torch.full((count,), ZERO)
            mean, variance = norm.bias.detach(), norm.weight.detach().double() ** 2
        return self.follower.cells.fresh(
            count, state=states, mean=mean, variance=variance, like=own
        )

    def _after(self, given: Tensor, states: Tensor, name: str | None = None) -> Tensor:
        """Return fresh cells behind a layer that hands its channels on."""
        if name is not None:
            own = self._place(name, "out", given)
            return self.follower.cells.fresh(len(given), state=states, like=own)
        of_layers = given >= FIRST
        cells = given.clone()
        cells[of_layers] = self.follower.cells.fresh(
            int(of_layers.sum()), state=states[of_layers], like=given[of_layers]
        )
        return cells

    def _note_norm(self, name: str, given: Tensor, operation: int) -> None:
        owners = self.follower.cells.owners[given].unique().tolist()
        giver = list(self._layers)[owners[0]] if len(owners) == 1 and owners[0] >= 0 else None
        if giver is None or len(given) != len(self.places[giver, "out"]):
            return
        if bool((given.diff() == 1).all()):  # all of what the layer gives, in order
            self._uses[giver].norms.append((name, operation))

    def _computed(self, kind: str, given: Tensor, width: int) -> Tensor:
        why = f"a {kind} among their layers computes its weight from other parameters"
        cells = self.follower.cells.fresh(width)
        self.follower.stay(given, why)
        self.follower.stay(cells, why)
        return cells

    def _check_sharing(self, name: str, side: str) -> None:
        layer = self._layers[name]
        if any(p is not None and len(self._owners[id(p)]) > 1 for p in layer._parameters.values()):
            why = f"a {type(layer).__name__} among their layers shares its parameters with another"
            self.follower.stay(self.places[name, side], f"{why} layer")

    def _tie_groups(self, cells: Sequence[int], places: int) -> None:
        for channel in range(places, len(cells)):
            self.follower.cells.merge(cells[channel % places], cells[channel])
