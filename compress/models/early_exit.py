"""Any trained network with early exits behind its modules.

The network is the backbone, whole and as it was loaded. All exits at once are seen through hooks in
one pass; the early return of one image leaves the backbone's forward from inside such a hook, so
what stands behind the exit does not run, in any network and without tracing.

Names in the state_dict: `backbone.…`, `heads.{i}.…`, `gates.{i}.linear`, i the number of the exit.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError, UserInputError
from compress.models.channel_axis import ChannelAxis
from compress.models.exit_head import ExitHead, tap_channels
from compress.models.gate import Gate
from compress.models.outputs import logits_of
from compress.models.rebuild import at_own_widths
from compress.models.taps import Left, tapped
from compress.models.with_exits import WithExits, checked_bars, numbers_of
from compress.runtime.decision import leaves
from compress.runtime.exit_spelling import Position, path_of

__all__ = ["BACKBONE", "EarlyExitNetwork", "described_exits"]

BACKBONE = "backbone."


class EarlyExitNetwork(WithExits):
    """A network, and a head and a gate behind each of some of its modules.

    Args:
        backbone: the network; its own logits are the final head's. It is taken over, not copied.
        exits: for each exit "at", the path of its module, and what `ExitHead` takes: "head",
            "channels", "dims", and "inner" and "channels_last" where they differ from what is
            usual; in the order in which they run.
        num_classes: K, at least 2.

    Raises:
        UserInputError: there is no such module, one is named twice, there is no exit, or fewer
            classes than a gate compares.
    """

    arch = "early_exit"
    exit_parts = ("heads", "gates")

    def __init__(
        self, backbone: nn.Module, *, exits: Sequence[Mapping[str, Any]], num_classes: int
    ) -> None:
        super().__init__()
        _check_exits(backbone, [each["at"] for each in exits], num_classes)
        self.backbone = backbone
        self.at = tuple(str(each["at"]) for each in exits)
        self.heads = nn.ModuleList(
            ExitHead(
                each["head"],
                channels=each["channels"],
                dims=each["dims"],
                num_classes=num_classes,
                inner=each.get("inner"),
                channels_last=each.get("channels_last", False),
            )
            for each in exits
        )
        self.gates = nn.ModuleList(Gate() for _ in exits)
        self.classes = num_classes

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]  # widths may be cut later
        """What builds the network again, at the widths that its layers have by now."""
        arch, config = getattr(self.backbone, "arch", None), getattr(self.backbone, "config", None)
        exits = [{"at": at, **self.head(i).to_config()} for i, at in enumerate(self.at)]
        return {
            "backbone": {"arch": arch, "config": config},
            "exits": exits,
            "num_classes": self.classes,
        }

    @property
    def exit_paths(self) -> tuple[str, ...]:
        """The modules behind which the exits stand."""
        return self.at

    @property
    def display_name(self) -> str:
        """The name of the backbone, and that it has exits."""
        name = getattr(self.backbone, "display_name", type(self.backbone).__name__.lower())
        return f"{name}_exits"

    def head(self, number: int) -> ExitHead:
        """Return the head of an exit."""
        return cast(ExitHead, self.heads[number])

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K) of the final head."""
        return logits_of(self.backbone(image))

    def every_exit(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run everything; see `WithExits.every_exit`."""
        logits: list[Tensor] = []
        gates: list[Tensor] = []

        def see(number: int, tap: Tensor) -> None:
            # What autograd keeps of it must outlive layers that work in place behind the tap.
            logits.append(self.head(number)(tap.clone() if torch.is_grad_enabled() else tap))
            gates.append(self.gates[number](logits[number]))

        with tapped(self.backbone, self.at, see):
            final = logits_of(self.backbone(image))
        return [*logits, final], gates

    @torch.inference_mode()
    def forward_early(
        self, image: Tensor, thresholds: float | Sequence[float]
    ) -> tuple[Tensor, int]:
        """Run one image until a gate lets it go; see `WithExits.forward_early`."""
        bars = checked_bars(self, image, thresholds)

        def see(number: int, tap: Tensor) -> None:
            logits = self.head(number)(tap)
            score = torch.sigmoid(self.gates[number](logits)).item()  # all that the host is sent
            if leaves(score, bars[number]):
                raise Left(logits, number)

        return self._until_left(image, see)

    def run_until(self, image: Tensor, exit_number: int) -> Tensor:
        """Return the logits of one exit; see `WithExits.run_until`."""

        def see(number: int, tap: Tensor) -> None:
            logits = self.head(number)(tap)
            self.gates[number](logits)
            if number == exit_number:
                raise Left(logits, number)

        return self._until_left(image, see)[0]

    def _until_left(self, image: Tensor, see: Callable[[int, Tensor], None]) -> tuple[Tensor, int]:
        """Return the logits and the number of the exit at which `see` leaves, or the final ones."""
        try:
            with tapped(self.backbone, self.at, see):
                return logits_of(self.backbone(image)), len(self.gates)
        except Left as left:
            return left.logits, left.exit_number

    def head_inputs(self, image: Tensor) -> list[Tensor]:
        """Return what each head keeps of its tap, and the final logits."""
        kept: list[Tensor] = []

        def see(number: int, tap: Tensor) -> None:
            read = self.head(number).read(tap)
            # Layers that work in place behind the tap would change what is kept of it.
            kept.append(read.clone() if read.data_ptr() == tap.data_ptr() else read)

        with tapped(self.backbone, self.at, see):
            final = logits_of(self.backbone(image))
        return [*kept, final]

    def from_head_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `forward_all` returns, from what `head_inputs` returned."""
        *kept, final = inputs
        logits = [self.head(i).classify(each) for i, each in enumerate(kept)]
        gates = [gate(each) for gate, each in zip(self.gates, logits, strict=True)]
        return torch.stack([*logits, final], dim=1), torch.stack(gates, dim=1)

    def head_inputs_identity(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is read where, and the tensors of the backbone."""
        maps = [self.head(i).reads_map for i in range(len(self.heads))]
        backbone = self.config["backbone"]
        return {"at": self.at, "maps": maps, **backbone}, dict(self.backbone.state_dict())

    def with_positions(self, positions: Sequence[Position]) -> "EarlyExitNetwork":
        """Return a network with some of these exits alone; nothing is shared."""
        twin = copy.deepcopy(self)
        numbers = numbers_of(positions, self)
        twin.at = tuple(self.at[number] for number in numbers)
        twin.heads = nn.ModuleList(twin.heads[number] for number in numbers)
        twin.gates = nn.ModuleList(twin.gates[number] for number in numbers)
        return twin

    def at_own_widths(self) -> "EarlyExitNetwork":
        """Return the network with a backbone whose configuration says how wide it is by now."""
        self.backbone = at_own_widths(self.backbone)
        return self

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that training must not decay: those of the backbone."""
        listed = getattr(self.backbone, "no_weight_decay", None)
        return {BACKBONE + name for name in listed()} if callable(listed) else set()


@torch.inference_mode()
def described_exits(
    backbone: nn.Module, positions: Sequence[Position], image: Tensor, head: str
) -> tuple[list[dict[str, Any]], int]:
    """Return `exits`, in the order in which they run, and `num_classes` of an `EarlyExitNetwork`.

    Args:
        backbone: in eval mode.
        positions: where exits shall stand.
        image: (2, C, H, W); two, so that a tap without a batch is noticed.
        head: kind of all heads, see `ExitHead`; "conv" alone takes as many channels as the last
            map of the network has.

    Raises:
        UserInputError: there is no such module, one is named twice, or the kind is not known.
        UnsupportedModelError: a module runs twice or never, or gives what no exit can read.
    """
    paths = [path_of(position) for position in positions]
    _check_exits(backbone, paths, 2)
    kind = f"conv:{_last_width(backbone)}" if head == "conv" else head
    exits: list[dict[str, Any]] = []

    def see(number: int, tap: Tensor) -> None:
        path, shape = paths[number], tuple(tap.shape)
        if shape[:1] != image.shape[:1]:
            raise UnsupportedModelError(
                f"module {path!r} gives a tensor of shape {shape} for {len(image)} images; "
                "expected one row an image"
            )
        is_last = axis.is_last(tap)
        channels = tap_channels(shape, path, channels_last=is_last)
        described = {"at": path, "head": kind, "channels": channels, "dims": len(shape)}
        exits.append({**described, "channels_last": True} if is_last else described)

    with ChannelAxis().watching(backbone) as axis, tapped(backbone, paths, see, in_order=False):
        logits = logits_of(backbone(image))
    return exits, logits.shape[-1]


def _last_width(backbone: nn.Module) -> int:
    widths = [layer.out_channels for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    return widths[-1] if widths else 64


def _check_exits(backbone: nn.Module, paths: Sequence[str], num_classes: int) -> None:
    wanted = "expected paths of modules, see python -m compress.exits list"
    if not paths:
        raise UserInputError(f"no exit position is given; {wanted}")
    known = {name for name, _ in backbone.named_modules() if name}
    for path in paths:
        if path not in known:
            raise UserInputError(
                f"{type(backbone).__name__} has no module {path!r:.100} to put an exit behind; "
                f"{wanted}"
            )
    if len(set(paths)) < len(paths):
        raise UserInputError(f"exit positions {', '.join(paths)} repeat themselves; {wanted}")
    if num_classes < 2:
        raise UserInputError(
            f"the number of classes is {num_classes}; a gate compares the two most likely ones, so "
            "expected at least 2"
        )
