"""Which form of a transform is fastest: one matrix, two smaller ones, or a convolution.

One matrix costs length x bins. For length N = N1 N2 two products with twiddle factors between them
cost N (N1 + N2) (Cooley and Tukey, 1965). A length with a large prime in it is a convolution of
some longer, smooth length (Bluestein, 1970). What they cost in time was measured with ONNX Runtime
1.31 on one core by `tools/benchmarks/fourier.py`; only the order of the three matters, and near a
crossing any of them will do.
"""

from dataclasses import dataclass, replace
from functools import cache

from compress.export.fourier.axis_map import AxisMap, Dft, Part, Rows

__all__ = ["bins_read", "form_of", "merges", "smooth_length", "split", "to_real_signal"]

# By the shorter side of the matrix, up to which it holds: small products are not worth their setup.
NANOSECONDS_PER_MAC = ((32, 1 / 20), (100, 1 / 25), (1 << 62, 1 / 33))
NANOSECONDS_PER_WEIGHT = 0.2  # a matrix is read from memory once for all signals
NANOSECONDS_PER_VALUE = 0.35  # of one elementwise operation, and of a transpose
NANOSECONDS_PER_PRODUCT = 250.0  # of each of many small ones in one node
NANOSECONDS_PER_NODE = 1500.0
LONGEST_DIRECT = 64  # up to here one matrix always wins
SMALLEST_FACTOR = 4

# Two axes become one matrix while it is small, and costs at most so many times what they cost.
MERGED_WEIGHTS = 1 << 15
MERGED_COST = 4.0


@dataclass(frozen=True, kw_only=True)
class _Demand:
    """What is asked of a transform: `taken` values in, `given` out, of some signals at once."""

    length: int
    taken: int
    given: int
    signals: int
    real_in: bool
    real_out: bool

    @property
    def blocks(self) -> int:
        return (1 if self.real_in else 2) * (1 if self.real_out else 2)


def form_of(axis_map: AxisMap, signals: int, *, real_in: bool) -> str:
    """Return how a map is applied: "simple", "direct", "split" or "convolution".

    Args:
        axis_map: the map.
        signals: how many it is applied to at once, where that is known.
        real_in: they are real.
    """
    if axis_map.transforms == 0:
        return "simple"
    if axis_map.transforms > 1:
        return "direct"
    (dft,) = (factor for factor in axis_map.factors if isinstance(factor, Dft))
    to_real = any(isinstance(factor, Part) for factor in axis_map.factors)
    demand = _Demand(
        length=dft.length,
        taken=min(axis_map.n, dft.length),
        given=axis_map.size,
        signals=signals,
        real_in=real_in,
        real_out=to_real,
    )
    return _cheapest(demand)[1]


def to_real_signal(axis_map: AxisMap) -> bool:
    """Whether a map leads from half a spectrum to the real signal it belongs to."""
    place = next(i for i, factor in enumerate(axis_map.factors) if isinstance(factor, Dft))
    before = axis_map.factors[place - 1] if place else None
    behind = axis_map.factors[place + 1 : place + 2]
    mirrored = isinstance(before, Rows) and before.is_mirrored and bool(before.conjugated)
    return mirrored and any(isinstance(factor, Part) for factor in behind)


def bins_read(axis_map: AxisMap) -> int:
    """Return how many of the first values of its transform a map reads."""
    place = next(i for i, factor in enumerate(axis_map.factors) if isinstance(factor, Dft))
    dft = axis_map.factors[place]
    read = dft.size(0)
    for factor in axis_map.factors[place + 1 :]:
        if isinstance(factor, Rows):
            return max(factor.places) + 1
    return read


def merges(first: AxisMap, second: AxisMap, *, real_in: bool) -> bool:
    """Whether maps along neighbouring axes are better applied as one matrix."""
    weights = first.n * second.n * first.size * second.size
    if weights > MERGED_WEIGHTS:
        return False
    separate = (1 if real_in else 2) * 2 * first.n * first.size * second.n
    separate += 4 * first.size * second.n * second.size
    return (1 if real_in else 2) * 2 * weights <= MERGED_COST * separate


@cache
def split(length: int) -> tuple[int, int] | None:
    """Return the two factors N1, N2 nearest to each other, N1 the smaller; None where none are.

    >>> split(360)
    (18, 20)
    """
    for small in range(int(length**0.5), SMALLEST_FACTOR - 1, -1):
        if length % small == 0:
            return small, length // small
    return None


@cache
def smooth_length(least: int) -> int:
    """Return the length from `least` on whose two factors cost least."""
    candidates = range(least, least + max(8, least // 8))
    rated = [(n * sum(split(n) or (n, 1)), n) for n in candidates]
    return min(rated)[1]


@cache
def _cheapest(demand: _Demand) -> tuple[float, str]:
    """Return nanoseconds and the form."""
    choices = [(_direct_cost(demand), "direct")]
    if demand.length > LONGEST_DIRECT:
        factors = split(demand.length)
        if factors is not None:
            choices.append((_split_cost(demand, *factors), "split"))
        choices.append((_convolution_cost(demand), "convolution"))
    return min(choices)


def _direct_cost(demand: _Demand) -> float:
    weights = demand.taken * demand.given
    shorter = min(demand.taken, demand.given)
    per_mac = next(cost for side, cost in NANOSECONDS_PER_MAC if shorter <= side)
    return demand.blocks * (
        weights * demand.signals * per_mac + weights * NANOSECONDS_PER_WEIGHT + NANOSECONDS_PER_NODE
    )


def _split_cost(demand: _Demand, n1: int, n2: int) -> float:
    """Cost of N1 points for every n2, then N2 points for every k1; backwards to a real signal."""
    taken, given = demand.taken, demand.given
    if demand.real_out and not demand.real_in:
        taken, given = given, taken
    first = _Demand(
        length=n1,
        taken=-(-taken // n2),
        given=n1,
        signals=demand.signals * n2,
        real_in=demand.real_in or demand.real_out,
        real_out=False,
    )
    second = _Demand(
        length=n2,
        taken=n2,
        given=-(-given // n1),
        signals=demand.signals * n1,
        real_in=False,
        real_out=False,
    )
    between = (9 * NANOSECONDS_PER_VALUE * demand.length + 4 * NANOSECONDS_PER_PRODUCT) * (
        demand.signals
    )
    return _cheapest(first)[0] + _cheapest(second)[0] + between + 9 * NANOSECONDS_PER_NODE


def _convolution_cost(demand: _Demand) -> float:
    m = smooth_length(2 * demand.length - 1)
    factors = split(m)
    if factors is None:
        return float("inf")
    there = _Demand(
        length=m,
        taken=demand.taken,
        given=m,
        signals=demand.signals,
        real_in=False,
        real_out=False,
    )
    back = replace(there, taken=m, given=demand.given)
    between = 20 * NANOSECONDS_PER_VALUE * m * demand.signals
    return _split_cost(there, *factors) + _split_cost(back, *factors) + between
