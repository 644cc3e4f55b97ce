"""Where exits can stand in a network, and what it costs to cut it there.

A position is good when little crosses it: what the part behind an exit reads of the part before.
Found by running a copy of the network once, on shapes alone, so that nothing needs to be known of
its classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.measure._meta_copy import on_copy
from compress.measure.macs import macs_rules
from compress.measure.value_graph import ValueGraph
from compress.models.early_exit import EarlyExitNetwork
from compress.models.outputs import float_outputs
from compress.models.taps import tensor_of
from compress.runtime.exit_spelling import Position, path_of, spelled

__all__ = ["ExitPosition", "auto_positions", "chosen_positions", "exit_positions"]

AUTO = "auto:"
MAX_EXITS = 64
SMALL_BLOCK = 0.25  # share of the multiply-adds up to which nobody looks inside of a block


@dataclass(frozen=True, kw_only=True)
class ExitPosition:
    """A module behind which an exit can stand.

    Attributes:
        path: of the module.
        shape: of what it gives for one image, without the batch.
        tensors: how many cross behind it, from what runs before to what runs after.
        kib: their size for one image in float32, KiB.
        macs_share: share of the network's multiply-adds that run before it, in [0, 1].
    """

    path: str
    shape: tuple[int, ...]
    tensors: int
    kib: float
    macs_share: float

    @property
    def position(self) -> Position:
        """As people spell it."""
        return spelled(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "shape": list(self.shape)}


def exit_positions(
    model: nn.Module, image_shape: tuple[int, int, int], *, every: bool = False
) -> list[ExitPosition]:
    """Return where exits can stand, in the order of the network.

    Of modules that give the same tensor the innermost block is named, one that is no bare
    `nn.Sequential` where there is one, else the outermost layer. Behind a layer that is no block an
    exit is listed where one tensor crosses, once for every layer with multiply-adds. What lies
    inside a block is listed only with `every` where the block is small or where nothing inside of
    it can be cut with one tensor; a bare `nn.Sequential` is no such block.

    Args:
        model: left as it is; one with exits is looked at without them.
        image_shape: (C, H, W).
        every: list all modules whose output an exit can read.

    Raises:
        UnsupportedModelError: the network does not run on such an image, or there is no position.
    """
    backbone = model.backbone if isinstance(model, EarlyExitNetwork) else model
    seen = on_copy(backbone, image_shape, _look)
    found = _positions(backbone, seen)
    if not found:
        raise UnsupportedModelError(
            f"{type(backbone).__name__} has no module behind which an exit could stand: none that "
            "runs once gives a float tensor with one row an image before the end of the network"
        )
    return found if every else _worth_listing(backbone, found, seen)


def auto_positions(
    model: nn.Module, image_shape: tuple[int, int, int], count: int
) -> tuple[Position, ...]:
    """Return positions where one tensor crosses, evenly by multiply-adds, in order.

    Args:
        model: the network.
        image_shape: (C, H, W).
        count: how many, at least 1.

    Raises:
        UserInputError: the network has fewer such positions.
        UnsupportedModelError: see `exit_positions`.
    """
    good = [each for each in exit_positions(model, image_shape) if each.tensors == 1]
    if not 1 <= count <= min(len(good), MAX_EXITS):
        raise UserInputError(
            f"auto:{count} asks for {count} exits, but one tensor crosses behind "
            f"{len(good)} modules of {type(model).__name__} alone; expected auto:1 to "
            f"auto:{min(len(good), MAX_EXITS)}, or positions by name"
        )
    chosen: list[ExitPosition] = []
    for number in range(count):
        target = (number + 1) / (count + 1)
        left = good[good.index(chosen[-1]) + 1 if chosen else 0 : len(good) - (count - 1 - number)]
        chosen.append(min(left, key=lambda each: abs(each.macs_share - target)))
    return tuple(each.position for each in chosen)


def chosen_positions(
    model: nn.Module, image_shape: tuple[int, int, int], asked: str | Sequence[Position]
) -> tuple[Position, ...]:
    """Return the positions that are asked for: by name, or as "auto:K".

    Raises:
        UserInputError: "auto:" is followed by no number, or by one that does not fit.
    """
    if not isinstance(asked, str):
        return tuple(spelled(path_of(each)) for each in asked)
    number = asked.removeprefix(AUTO)
    if not asked.startswith(AUTO) or not number.isdecimal() or len(number) > 4:
        raise UserInputError(
            f"exits are asked for at {asked!r:.60}; expected paths of modules, or auto:K for K of "
            "them evenly by multiply-adds"
        )
    return auto_positions(model, image_shape, int(number))


@dataclass(kw_only=True)
class _Seen:
    """What one run showed."""

    graph: ValueGraph
    order: list[str]
    values: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    macs: dict[str, int]
    layer_macs: dict[str, int]
    twice: set[str]
    outputs: list[int]
    last_layer: int = 0


def _look(twin: nn.Module, image: Tensor) -> _Seen:
    graph = ValueGraph()
    seen = _Seen(
        graph=graph, order=[], values={}, shapes={}, macs={}, layer_macs={}, twice=set(), outputs=[]
    )
    pair = image.expand(2, *image.shape[1:]).clone()
    spent = [0]
    rules = macs_rules(twin)

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in rules:
                seen.last_layer = rules[name](module, inputs, output) // 2
                spent[0] += seen.last_layer
                seen.layer_macs[name] = seen.layer_macs.get(name, 0) + seen.last_layer
            if name in seen.values or name in seen.twice:
                seen.twice.add(name)
                return
            try:
                tap = tensor_of(output, name)
            except CompressError:
                return
            value = graph.value_of(tap)
            if value is not None and tap.dim() in (2, 3, 4) and len(tap) == 2:
                seen.order.append(name)
                seen.values[name], seen.shapes[name] = value, tuple(tap.shape[1:])
                seen.macs[name] = spent[0]

        return hook

    for name, module in twin.named_modules():
        if name:
            module.register_forward_hook(hook_of(name))
    with graph.following(pair):
        output = twin(pair)
    found = (graph.value_of(tensor) for tensor in float_outputs(output).values())
    seen.outputs = [value for value in found if value is not None]
    seen.macs[""] = spent[0]
    return seen


def _positions(backbone: nn.Module, seen: _Seen) -> list[ExitPosition]:
    graph = seen.graph
    useful = graph.ancestors(seen.outputs)
    whole = max(1, seen.macs[""])
    found = []
    for name in _named_once(backbone, seen):
        value = seen.values[name]
        before = graph.ancestors([value])
        crossing = graph.crossing(before, useful)
        is_end = seen.macs[name] >= whole - seen.last_layer  # the final head stands there
        if value in seen.outputs or value not in useful or not crossing or is_end:
            continue
        found.append(
            ExitPosition(
                path=name,
                shape=seen.shapes[name],
                tensors=len(crossing),
                kib=sum(graph.bytes_of[each] for each in crossing) / 2 / 1024,
                macs_share=seen.macs[name] / whole,
            )
        )
    return found


def _named_once(backbone: nn.Module, seen: _Seen) -> list[str]:
    """Return one name for every tensor: the innermost block's, else the outermost layer's."""
    by_value: dict[int, list[str]] = {}
    for name in seen.order:
        if name not in seen.twice:
            by_value.setdefault(seen.values[name], []).append(name)
    chosen = set()
    for names in by_value.values():
        blocks = [name for name in names if _is_block(backbone, name)]
        blocks = [name for name in blocks if not _is_chain(backbone, name)] or blocks
        depth = [name.count(".") for name in blocks or names]
        best = max(depth) if blocks else min(depth)
        chosen.add((blocks or names)[depth.index(best)])
    return [name for name in seen.order if name in chosen]


def _is_block(backbone: nn.Module, name: str) -> bool:
    return next(backbone.get_submodule(name).children(), None) is not None


def _is_chain(backbone: nn.Module, name: str) -> bool:
    return type(backbone.get_submodule(name)) is nn.Sequential


def _worth_listing(
    backbone: nn.Module, found: Sequence[ExitPosition], seen: _Seen
) -> list[ExitPosition]:
    """Leave out what lies inside a unit, and layers that only work on what one gives."""
    units = _units(backbone, found, seen)
    kept: list[ExitPosition] = []
    for each in found:
        inside = any(_is_inside(each.path, unit) for unit in units)
        if inside or (each.tensors > 1 and not _is_block(backbone, each.path)):
            continue
        if kept and _work_alike(kept[-1], each):
            # The same layer behind its normalisation, activation or pooling: the smallest tensor,
            # by the name of the block where there is one, else by the last that gives it.
            named = _is_block(backbone, kept[-1].path) and not _is_block(backbone, each.path)
            if each.kib > kept[-1].kib or (each.kib == kept[-1].kib and named):
                continue
            kept.pop()
        kept.append(each)
    return kept


def _units(backbone: nn.Module, found: Sequence[ExitPosition], seen: _Seen) -> list[str]:
    """Return the blocks that nobody wants to cut inside."""
    good = [each.path for each in found if each.tensors == 1]
    whole = max(1, seen.macs[""])

    def is_unit(path: str) -> bool:
        macs = sum(macs for name, macs in seen.layer_macs.items() if _is_inside(name, path))
        return macs <= SMALL_BLOCK * whole or not any(_is_inside(each, path) for each in good)

    blocks = (path for path in good if _is_block(backbone, path) and not _is_chain(backbone, path))
    return [path for path in blocks if is_unit(path)]


def _is_inside(path: str, block: str) -> bool:
    return path.startswith(f"{block}.")


def _work_alike(one: ExitPosition, other: ExitPosition) -> bool:
    return one.tensors == other.tensors == 1 and one.macs_share == other.macs_share
