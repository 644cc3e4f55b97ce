"""What the operators of torch do to pairs.

Moves are done on each part; sums and products are written out. Every rule takes the arguments of
the operator, complex tensors among them being `Pair`, and returns what the operator would.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.export.real_form import transforms
from compress.export.real_form.values import Pair, Placed, Stacked

__all__ = ["MOVES", "RULES", "on_each_part"]

aten = torch.ops.aten
Rule = Callable[..., Any]

# Done on real and imaginary part alike, with the same other arguments.
MOVES_NAMES = """
    _unsafe_view alias cat clone constant_pad_nd contiguous detach diagonal expand expand_as
    flatten flip gather index index_select masked_fill mean mH movedim narrow neg pad
    permute repeat reshape roll rot90 select slice split split_with_sizes squeeze stack sum
    t tile transpose unbind unflatten unfold unsafe_split unsqueeze view where chunk
    lift_fresh_copy lift_fresh broadcast_to swapaxes tril triu cumsum select_scatter
    new_zeros zeros_like
"""
MOVES = frozenset(MOVES_NAMES.split())


def _parts(x: Any) -> tuple[Any, Any]:
    """Return real and imaginary part of a tensor or number; the latter None where it is zero."""
    if isinstance(x, Pair):
        return x.real, x.imaginary
    if isinstance(x, complex):
        return x.real, x.imag or None
    if isinstance(x, Tensor) and x.is_complex():
        return x.real.clone(), x.imag.clone()
    return x, None


def _product(a: Any, b: Any, multiply: Rule) -> Pair:
    """Return a bilinear product of complex numbers."""
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    real, imaginary = multiply(ar, br), None
    if ai is not None and bi is not None:
        real = real - multiply(ai, bi)
    if bi is not None:
        imaginary = multiply(ar, bi)
    if ai is not None:
        term = multiply(ai, br)
        imaginary = term if imaginary is None else imaginary + term
    return Pair(real, imaginary)


def _mul(a: Any, b: Any) -> Pair:
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    ar = None if not isinstance(ar, Tensor) and ar == 0 else ar  # as of 1j
    br = None if not isinstance(br, Tensor) and br == 0 else br
    if ar is None or br is None:
        xr: Any = br if ar is None else ar
        xi, factor = (bi, ai) if ar is None else (ai, bi)
        real = torch.zeros_like(xr) if xi is None else -(xi * factor)
        return Pair(real, xr * factor)
    return _product(Pair(ar, ai), Pair(br, bi), lambda x, y: x * y)


def _add(a: Any, b: Any, *, alpha: float = 1) -> Pair:
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    if alpha != 1:
        br, bi = br * alpha, None if bi is None else bi * alpha
    imaginary = ai if bi is None else bi if ai is None else ai + bi
    real = ar + br
    if isinstance(imaginary, float):
        imaginary = torch.full_like(real, imaginary)
    return Pair(real, imaginary)


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Pair:
    (br, bi) = _parts(b)
    return _add(a, Pair(-br, None if bi is None else -bi), alpha=alpha)


def _div(a: Any, b: Any) -> Pair:
    (br, bi) = _parts(b)
    if bi is None:
        (ar, ai) = _parts(a)
        return Pair(ar / br, None if ai is None else ai / br)
    size = br * br + bi * bi
    return _mul(a, Pair(br / size, -bi / size))


def _conj(x: Pair) -> Pair:
    return Pair(x.real, None if x.imaginary is None else -x.imaginary)


def _abs(x: Pair) -> Tensor:
    if x.imaginary is None:
        return x.real.abs()
    return torch.sqrt(x.real * x.real + x.imaginary * x.imaginary)


def _angle(x: Pair) -> Tensor:
    return torch.atan2(x.whole_imaginary, x.real)


def _exp(x: Pair) -> Pair:
    size, turn = torch.exp(x.real), x.whole_imaginary
    return Pair(size * torch.cos(turn), size * torch.sin(turn))


def _polar(size: Tensor, angle: Tensor) -> Pair:
    return Pair(size * torch.cos(angle), size * torch.sin(angle))


def _pow(x: Pair, exponent: float) -> Pair:
    if exponent != int(exponent) or not 1 <= exponent <= 8:
        raise NotImplementedError(f"a complex tensor to the power {exponent}")
    result = x
    for _ in range(int(exponent) - 1):
        result = _mul(result, x)
    return result


def _view_as_complex(x: Any) -> Pair:
    if isinstance(x, Stacked):
        return x.pair
    return Pair(x.select(-1, 0), x.select(-1, 1))


def _einsum(equation: str, operands: Sequence[Any], **_: Any) -> Pair:
    if len(operands) == 1:
        return on_each_part(aten.einsum.default, equation, [operands[0]])
    if len(operands) > 2:
        raise NotImplementedError(f"an einsum of {len(operands)} complex tensors")
    left, right = operands
    return _product(left, right, lambda a, b: torch.einsum(equation, a, b))


def on_each_part(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operator to each part."""

    def part(value: Any, imaginary: bool) -> Any:
        if isinstance(value, Pair):
            return value.whole_imaginary if imaginary else value.real
        if isinstance(value, list | tuple):
            return type(value)(part(v, imaginary) for v in value)
        return value

    both = [
        operator(*part(args, which), **{k: part(v, which) for k, v in kwargs.items()})
        for which in (False, True)
    ]
    return _zipped(*both)


def _zipped(real: Any, imaginary: Any) -> Any:
    if isinstance(real, Tensor):
        return Pair(real, imaginary)
    return [_zipped(r, i) for r, i in zip(real, imaginary, strict=True)]


def _empty(size: Sequence[Any], *_: Any, dtype: Any = None, **__: Any) -> Placed:
    part = torch.float64 if dtype == torch.complex128 else torch.float32
    return Placed(tuple(size), part)


def _full(size: Sequence[Any], value: Any, *, dtype: Any = None, **_: Any) -> Any:
    if value == 0:
        return _empty(size, dtype=dtype)
    part = torch.float64 if dtype == torch.complex128 else torch.float32
    number = complex(value)
    return Pair(
        torch.full(size, number.real, dtype=part), torch.full(size, number.imag, dtype=part)
    )


def _to_complex(x: Any, *_: Any, **__: Any) -> Pair:
    return x if isinstance(x, Pair) else Pair(x)


RULES: Mapping[str, Rule] = {
    "_conj": _conj,
    "_fft_c2c": transforms.complex_to_complex,
    "_fft_c2r": transforms.complex_to_real,
    "_fft_r2c": transforms.real_to_complex,
    "_conj_physical": _conj,
    "_to_copy": _to_complex,
    "abs": _abs,
    "add": _add,
    "angle": _angle,
    "bmm": lambda a, b: _product(a, b, torch.bmm),
    "complex": Pair,
    "conj": _conj,
    "conj_physical": _conj,
    "div": _div,
    "einsum": _einsum,
    "exp": _exp,
    "full": _full,
    "imag": lambda x: x.whole_imaginary,
    "matmul": lambda a, b: _product(a, b, torch.matmul),
    "mm": lambda a, b: _product(a, b, torch.mm),
    "mul": _mul,
    "polar": _polar,
    "pow": _pow,
    "real": lambda x: x.real if isinstance(x, Pair) else x,
    "reciprocal": lambda x: _div(1.0, x),
    "resolve_conj": lambda x: x,
    "resolve_neg": lambda x: x,
    "stft": transforms.short_time,
    "sub": _sub,
    "to": _to_complex,
    "view_as_complex": _view_as_complex,
    "view_as_real": Stacked,
    "zeros": _empty,
}
