"""How channels pass an operation that is no layer.

There are four kinds. What moves values does the same to the shadow (`traced_shadow`). What computes
value by value gives fresh cells in the same classes, and ties its operands. What works over a map
or along other dimensions than that of the channels, such as pooling, gives every channel its own
again. Everything else mixes channels: those that it reads stay, and what it gives has a fixed
width.

Where an operation picks channels by position, what goes must go evenly: the same places from each
half of a `chunk`, from each row of a channel shuffle. Whether the network's own code then still
does the same (it may have the numbers written down) is seen only by running it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from compress.slimming.traced_cells import (
    ALIVE,
    COMPUTED,
    CONSTANT,
    FIRST,
    NOTHING,
    STEADY,
    ZERO,
    Cells,
)
from compress.slimming.traced_moments import activated
from compress.slimming.traced_operands import (
    activation_of,
    first_tensor,
    named_arguments,
    padded_shape,
    picked_dimension,
    renewed,
    tensors_in,
    why_fixed,
    with_tensors_replaced,
)
from compress.slimming.traced_shadow import (
    compact,
    compacted,
    filled,
    squashed,
    varying,
    widened,
)

__all__ = ["Follower"]

VIEWS = {"view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "slice", "select",
         "split", "split_with_sizes", "unbind", "expand", "squeeze", "unsqueeze", "alias", "detach",
         "movedim", "narrow", "unsafe_split", "unsafe_split_with_sizes"}  # fmt: skip
COPIES = {"clone", "_to_copy", "cat", "stack", "flip", "repeat", "contiguous", "lift_fresh",
          "pixel_shuffle", "pixel_unshuffle"}  # fmt: skip
BY_POSITION = {"slice", "select", "split", "split_with_sizes", "unbind", "narrow", "unsafe_split",
               "unsafe_split_with_sizes"}  # fmt: skip
RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "expand", "repeat"}
# Operations that treat every channel of (N, C, …) by itself.
OVER_MAPS = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_avg_pool", "adaptive_max_pool",
             "upsample", "_upsample", "reflection_pad", "replication_pad", "grid_sampler",
             "_adaptive_max_pool")  # fmt: skip
REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean",
              "linalg_vector_norm", "norm", "logsumexp", "prod"}  # fmt: skip
KEEPING_MEANS = {"mean", "amax", "amin", "max", "min"}
ALONG = {"_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum"}
LIKE = {"zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "empty_like",
        "bernoulli", "native_dropout", "dropout"}  # fmt: skip
CREATING = {"zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full"}
# Value by value, though torch does not tag them so.
ELEMENTWISE = {"hardswish", "log_sigmoid_forward", "rsub", "rrelu_with_noise", "hardtanh"}
PRODUCTS = {"mul", "div"}
SUMS = {"add", "sub"}


class Follower:
    """Follows cells through the operations of one network.

    Attributes:
        cells: all that were met.
        reasons: (cell, why its class must stay), in the order in which they were found.
        unscaled: (cell, why γ does not tell what its class is worth).
        suspects: cells that are picked by position, and the module that picks them, with the
            operation: its code may have their number written down.
        running: the modules in whose forward the network is, the innermost last.
        uses: for every layer by its number, the operations that read what it gives.
    """

    def __init__(self) -> None:
        self.cells = Cells()
        self.reasons: list[tuple[int, str]] = []
        self.unscaled: list[tuple[int, str]] = []
        self.suspects: dict[int, str] = {}
        self.running: list[nn.Module] = []
        self.uses: dict[int, set[int]] = {}
        self.parameters: set[int] = set()
        self._shadows = WeakTensorKeyDictionary()
        self._operations = 0

    def shadow(self, tensor: Tensor) -> Tensor:
        """Return the shadow of a tensor; one of CONSTANT where nothing else is known."""
        known = self._shadows.get(tensor)
        if known is not None and known.shape == tensor.shape:
            return known
        return torch.tensor(CONSTANT).expand(tensor.shape)

    def note(self, tensor: Tensor, shadow: Tensor) -> None:
        """Say what a tensor holds."""
        self._shadows[tensor] = shadow

    def stay(self, cells: Tensor | Iterable[int], why: str) -> None:
        """Say that the classes of some cells cannot lose anything."""
        found = Cells.of_layers(cells).tolist() if isinstance(cells, Tensor) else cells
        self.reasons += [(cell, why) for cell in found]

    def use(self, *shadows: Tensor) -> int:
        """Note that one operation reads these cells; return its number."""
        self._operations += 1
        for shadow in shadows:
            for owner in self.cells.owners[compact(shadow).unique()].unique().tolist():
                if owner >= 0:
                    self.uses.setdefault(owner, set()).add(self._operations)
        return self._operations

    def per_channel(self, shadow: Tensor, dim: int = 1) -> Tensor:
        """Return one cell a channel, (C,); the cells of one channel go together from now on."""
        small = compact(shadow).movedim(dim, 0)
        rows = small.reshape(small.shape[0], -1)
        highest = rows.amax(1)
        others = ((rows != highest[:, None]) & (rows != NOTHING)).any(1)
        for channel in others.nonzero().flatten().tolist():
            shared = rows[channel].unique()
            self.cells.merge_all(shared.tolist())
            if bool(((shared == CONSTANT) | (shared == COMPUTED)).any()):
                self.stay(shared, "they stand beside values of a fixed width")
        return highest.expand(shadow.shape[dim]).clone()

    def follow(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Say what the results of an operation of torch's dispatcher hold."""
        name = func.overloadpacket.__name__
        plain = name.removesuffix("_") if not name.startswith("__") else name
        operands = tensors_in(args) + tensors_in(list(kwargs.values()))
        if plain in CREATING:
            self._create(out, NOTHING if plain.endswith(("zeros", "empty")) else CONSTANT)
        elif not any(self._is_known(t) for t in operands):
            return  # weights on their way, indices, and the like
        elif plain in ("copy", "fill", "zero"):
            self._overwrite(args[0], args[1] if plain == "copy" else None)
        elif plain in VIEWS | COPIES:
            self._move(func, plain, args, kwargs, out)
        elif plain == "constant_pad_nd":
            self._pad(args[0], args[1], out)
        elif plain in LIKE:
            self._give(
                first_tensor(out), self._elementwise(func, plain, [args[0]], [args[0]], {}, out)
            )
        elif torch.Tag.pointwise in func.tags or plain in ELEMENTWISE:
            self._give(
                first_tensor(out), self._elementwise(func, plain, operands, args, kwargs, out)
            )
        elif plain in REDUCTIONS and "dim" in {a.name for a in func._schema.arguments}:
            self._reduce(func, plain, args, kwargs, out)
        elif plain in ALONG:
            self._along(func, plain, args, kwargs, out)
        elif plain.startswith(OVER_MAPS):
            self._over_map(plain, operands, out)
        else:
            self.mix(f"they pass through {plain}", operands, out)

    def mix(self, why: str, operands: Iterable[Tensor], out: Any) -> None:
        """Let everything that an operation reads stay; what it gives has a fixed width."""
        shadows = [self.shadow(tensor) for tensor in operands]
        self.use(*shadows)
        for shadow in shadows:
            self.stay(shadow, f"{why}, which picks or mixes channels by position")
        for tensor in tensors_in([out]):
            if tensor.is_floating_point():
                self.note(tensor, torch.tensor(COMPUTED).expand(tensor.shape))

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor in self._shadows

    def _create(self, out: Any, cell: int) -> None:
        for tensor in tensors_in([out]):
            if tensor.is_floating_point() and tensor.dim() > 1:
                self.note(tensor, filled(tensor.shape, cell))

    def _give(self, tensor: Tensor, shadow: Tensor) -> None:
        """Note a result; into the memory of a shadow where the operation works in place."""
        known = self._shadows.get(tensor)
        if known is None or known.shape != shadow.shape:
            self.note(tensor, shadow)
            return
        target, value = compact(known), squashed(shadow)
        for dim in range(known.dim()):
            if target.shape[dim] == value.shape[dim] == 1 or known.shape[dim] == target.shape[dim]:
                continue
            if compact(value).shape[dim] != 1:  # no room: the map was equal all over, and is not
                why = "they are written to by position"
                self.stay(known, why)
                self.stay(shadow, why)
                self.note(tensor, value)
                return
            value = value.narrow(dim, 0, 1)
        target.copy_(value)

    def _overwrite(self, target: Tensor, source: Any) -> None:
        if isinstance(source, Tensor):
            shadow = self.shadow(source).expand(target.shape)
        else:
            shadow = torch.tensor(CONSTANT).expand(target.shape)
        self._give(target, shadow)

    def _move(
        self, func: Any, plain: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        if plain in ("_to_copy", "clone", "contiguous", "lift_fresh"):
            if out.is_floating_point():
                self.note(out, squashed(self.shadow(args[0])))
            return
        given = self.shadow(args[0]) if isinstance(args[0], Tensor) else None
        if given is not None and plain in BY_POSITION:
            self._check_position(plain, args, given, out)
        moved = self._moved(func, plain, args, kwargs, out)
        for tensor, shadow in zip(tensors_in([out]), moved, strict=True):
            self.note(tensor, squashed(shadow) if plain in COPIES else shadow)
        if given is not None and plain in RESHAPES:
            self._check_reshape(given, self.shadow(first_tensor(out)))

    def _moved(
        self, func: Any, plain: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> list[Tensor]:
        if plain == "cat":
            return [self._joined(args, kwargs)]
        shadows = with_tensors_replaced(args, self.shadow)
        try:
            return tensors_in([func(*shadows, **kwargs)])
        except RuntimeError:  # a view that stride 0 does not allow
            return [shadows[0].reshape(out.shape)]

    def _joined(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        parts = [self.shadow(t) for t in args[0] if t.dim() > 1 or t.numel()]
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % parts[0].dim()
        small = [compact(part) for part in parts]
        wanted = [max(p.shape[d] for p in small) for d in range(parts[0].dim())]
        grown = []
        for part, full in zip(small, parts, strict=True):
            shape = list(wanted)
            shape[dim] = full.shape[dim]
            grown.append(part.expand(shape))
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        return torch.cat(grown, dim).expand(shape)

    def _check_position(self, plain: str, args: Sequence[Any], given: Tensor, out: Any) -> None:
        """Tie what must go evenly where channels are picked by position."""
        dim = picked_dimension(plain, args) % given.dim()
        pieces = [tensor.shape for tensor in tensors_in([out])]
        if dim not in varying(given) or (len(pieces) == 1 and pieces[0] == given.shape):
            return
        width = given.shape[dim]
        length = 1 if plain in ("select", "unbind") else pieces[0][dim]
        start = args[2] or 0 if plain in ("slice", "narrow") and len(args) > 2 else 0
        start = start + width if start < 0 else start
        step = args[4] if plain == "slice" and len(args) > 4 else 1
        even = plain in ("slice", "narrow") or all(shape[dim] == length for shape in pieces if
                                                   plain not in ("select", "unbind"))  # fmt: skip
        if length == 1 or step != 1 or not even or width % length or start % length:
            others = set(varying(given)) - {dim}
            if not others:  # among stacked tensors any may be picked
                kind = plain.removeprefix("unsafe_").split("_")[0].capitalize()
                self.stay(
                    given, f"they pass through {kind}, which picks or mixes channels by position"
                )
            return
        self._suspect(plain, given)
        rows = compact(given).movedim(dim, -1)
        rows = rows.expand(*rows.shape[:-1], width).unflatten(-1, (-1, length))
        self._tie(rows.movedim(-2, 0))

    def _check_reshape(self, given: Tensor, result: Tensor) -> None:
        before, after = varying(given), varying(result)
        self._suspect("view", given)
        if len(after) <= len(before):
            return
        # One dimension became several: the smaller is a number of groups, the larger follows.
        split = after[-len(after) + len(before) - 1 :]
        fixed = min(split, key=lambda d: result.shape[d])
        self._tie(compact(result).movedim(fixed, 0))

    def _suspect(self, operation: str, given: Tensor) -> None:
        module = type(self.running[-1]).__name__ if self.running else "the network"
        for cell in Cells.of_layers(compact(given)).tolist():
            self.suspects.setdefault(cell, f"{module} ({operation.removeprefix('unsafe_')})")

    def _tie(self, rows: Tensor) -> None:
        """Let cells at the same place of every row go together."""
        flat = rows.reshape(rows.shape[0], -1)
        for places in flat.T.unique(dim=0).tolist():
            self.cells.merge_all(places)
            fixed = [cell for cell in places if cell in (CONSTANT, COMPUTED)]
            if fixed and len(fixed) < len(places):
                self.stay(torch.tensor(places), "they stand beside values of a fixed width")

    def _pad(self, tensor: Tensor, pads: Sequence[int], out: Tensor) -> None:
        shadow = self.shadow(tensor)
        along = varying(shadow)
        for i in range(len(pads) // 2):
            if (tensor.dim() - 1 - i) in along and (pads[2 * i] or pads[2 * i + 1]):
                self.mix("they pass through ConstantPad", [tensor], out)
                return
        small = squashed(shadow)
        self.note(out, squashed(torch.constant_pad_nd(small, list(pads), NOTHING)))

    def _reduce(
        self, func: Any, plain: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any
    ) -> None:
        given = self.shadow(args[0])
        named = named_arguments(func, args, kwargs)
        dims = named.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or range(given.dim()))
        dims = sorted({dim % given.dim() for dim in dims})
        mixed = [dim for dim in dims if dim in varying(given)]
        if mixed and len(varying(given)) == len(mixed):
            self.mix(f"they pass through {plain}", [args[0]], out)
            return
        for dim in mixed:  # stacked tensors, summed: tied as in a sum
            self._tie(compact(given).movedim(dim, 0))
        result = given
        for dim in reversed(dims):
            result = compact(result).amax(dim, keepdim=True)
        shape = [1 if d in dims else size for d, size in enumerate(given.shape)]
        result = result.expand(shape)
        if not named.get("keepdim", False):
            result = result.reshape([s for d, s in enumerate(given.shape) if d not in dims])
        keeps = plain in KEEPING_MEANS and not mixed
        self._anew(first_tensor(out), result, given, keeps=keeps)

    def _along(
        self, func: Any, plain: str, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        given = self.shadow(args[0])
        dim = named_arguments(func, args, kwargs)["dim"] % given.dim()
        if varying(given) == (dim,):
            self.mix(f"they pass through {plain.strip('_')}", [args[0]], out)
            return
        if dim in varying(given):
            self._tie(compact(given).movedim(dim, 0))
        self._anew(out, given, given, keeps=False, steady=True)

    def _over_map(self, plain: str, operands: Sequence[Tensor], out: Any) -> None:
        result, given = first_tensor(out), self.shadow(operands[0])
        batched = operands[0].dim() == result.dim() and result.dim() > 2
        if not batched or result.shape[1] != operands[0].shape[1]:
            self.mix(f"they pass through {plain}", operands, out)
            return
        for other in operands[1:]:
            self.stay(self.shadow(other), f"they say where {plain} reads")
        channels = self.per_channel(given)
        self._anew(result, widened(channels, result.shape), given, keeps=True)

    def _anew(
        self, out: Tensor, shadow: Tensor, given: Tensor, *, keeps: bool, steady: bool = False
    ) -> None:
        """Note fresh cells in the classes of old ones."""
        self.use(given)

        def made(old: Tensor) -> Tensor:
            states = self.cells.states[old]
            return self.cells.fresh(
                len(old),
                state=states.clamp_min(STEADY) if steady else states,
                mean=self.cells.means[old] if keeps else None,
                variance=self.cells.variances[old] if keeps else None,
                like=old,
            )

        self.note(out, renewed(shadow, made))

    def _elementwise(
        self,
        func: Any,
        plain: str,
        operands: Sequence[Tensor],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        out: Any,
    ) -> Tensor:
        """Return the shadow of what an operation gives value by value."""
        shape = first_tensor(out).shape
        shadows = [self.shadow(tensor) for tensor in operands]
        self.use(*shadows)
        followed, aside = self._aligned(operands, shadows, shape)
        if not followed:
            return torch.tensor(COMPUTED).expand(shape)
        if len(followed) == 1:
            only = followed[0]
            act = activation_of(func, args, kwargs) if len(operands) == 1 else None
            return renewed(only, lambda old: self._activated(plain, act, old, aside))
        return self._combined(plain, followed, aside, kwargs)

    def _aligned(
        self, operands: Sequence[Tensor], shadows: Sequence[Tensor], shape: torch.Size
    ) -> tuple[list[Tensor], list[int]]:
        """Return the shadows that go with the result, and the states of other operands.

        What has one value for several channels goes with none of them; what has a fixed width of
        its own makes them stay.
        """
        wide = [s.expand(shape) for s in shadows]
        along = {dim for shadow in wide for dim in varying(shadow)}
        followed, aside = [], []
        for operand, shadow, grown in zip(operands, shadows, wide, strict=True):
            own = padded_shape(shadow.shape, len(shape))
            broad = [dim for dim in along if own[dim] == 1 and shape[dim] > 1]
            if len(Cells.of_layers(compact(shadow))) and not broad:
                followed.append(grown)
                continue
            aside.append(int(self.cells.states[compact(shadow).unique()].max()))
            if len(broad) == len(along):
                self.stay(shadow, "one channel of theirs is tied to channels of another layer")
                continue
            why = why_fixed(operand, self.parameters)
            for other in wide:
                self.stay(compact(other), why)
            self.stay(shadow, why)
        return followed, aside

    def _activated(
        self, plain: str, act: Callable[[Tensor], Tensor] | None, old: Tensor, aside: list[int]
    ) -> Tensor:
        states = self.cells.states[old]
        mean = variance = None
        if act is not None:
            mean, variance = activated(act, self.cells.means[old], self.cells.variances[old])
            # An activation of nothing is a number that may not be nothing.
            at_zero = act(torch.zeros(1, dtype=torch.float64))
            if not bool(torch.isfinite(at_zero).all()):
                states = torch.full_like(states, ALIVE)
            elif bool((at_zero != 0).any()):
                states = states.clamp_min(STEADY)
        elif plain in PRODUCTS:
            states = torch.where(states == ZERO, states, states.clamp_min(max(aside, default=0)))
        else:
            states = states.clamp_min(max(aside, default=ALIVE))
        return self.cells.fresh(len(old), state=states, mean=mean, variance=variance, like=old)

    def _combined(
        self, plain: str, shadows: Sequence[Tensor], aside: list[int], kwargs: dict[str, Any]
    ) -> Tensor:
        result = shadows[0]
        for other in shadows[1:]:
            one, two = compacted([result, other])
            codes = one * len(self.cells.owners) + two
            distinct, where = codes.unique(return_inverse=True)
            size = len(self.cells.owners)
            first, second = distinct // size, distinct % size
            # Fixed channels of one operand face cells of the other.
            self._face(first, second)
            self._face(second, first)
            plus = plain in SUMS and not aside and kwargs.get("alpha", 1) == 1
            fresh = self._pairs(plain, first, second, aside, known=plus)
            result = fresh[where].expand(result.shape)
        return result

    def _face(self, cells: Tensor, others: Tensor) -> None:
        fixed = (others == CONSTANT) | (others == COMPUTED)
        self.stay(cells[fixed], "they are combined with values of a fixed width")

    def _pairs(
        self, plain: str, first: Tensor, second: Tensor, aside: list[int], *, known: bool
    ) -> Tensor:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self.cells.merge(one, other)
        states = torch.stack([self.cells.states[first], self.cells.states[second]])
        worst = states.amax(0).clamp_min(max(aside, default=0))
        if plain in PRODUCTS:
            zero = (states == ZERO).any(0) if plain == "mul" else states[0] == ZERO
            worst = torch.where(zero, torch.zeros_like(worst), worst)
        means, variances = self.cells.means, self.cells.variances
        sign = -1 if plain == "sub" else 1
        nowhere = (first < FIRST) | (second < FIRST)
        mean = (means[first] + sign * means[second]).masked_fill(nowhere, torch.nan)
        variance = (variances[first] + variances[second]).masked_fill(nowhere, torch.nan)
        return self.cells.fresh(
            len(first),
            state=worst,
            mean=mean if known else None,
            variance=variance if known else None,
            like=torch.maximum(first, second),
        )
