"""Which form of a transform is fastest: one matrix, stages, or a convolution.

One matrix costs length x bins. For length N = N1…Nm a stage for every factor costs N Ni (Cooley and
Tukey, 1965). A length with a large prime in it is a convolution of some longer, smooth length
(Bluestein, 1970). What they cost in time was measured with ONNX Runtime 1.31 on one core by
`tools/benchmarks/fourier.py`; only the order of them matters, and near a crossing any will do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from compress.export.fourier.axis_map import AxisMap, Dft, Part, Rows

__all__ = [
    "Demand",
    "bins_read",
    "chirp_factors",
    "factors",
    "form_of",
    "merges",
    "to_real_signal",
]

# By the shorter side of the matrix, up to which it holds: small products are not worth their setup.
NANOSECONDS_PER_MAC = ((31, 1 / 20), (100, 1 / 30), (1 << 62, 1 / 34))
NANOSECONDS_PER_WEIGHT = 0.2  # a matrix is read from memory once for all signals
NANOSECONDS_PER_VALUE = 0.35  # of one elementwise operation, and of a transpose
NANOSECONDS_PER_PRODUCT = 100.0  # of each of many small ones in one node
NANOSECONDS_PER_NODE = 1500.0
LANES = 16  # a product computes so many columns at a time
LONGEST_DIRECT = 64  # up to here one matrix always wins
SMALLEST_FACTOR, LARGEST_FACTOR = 4, 256
LONGEST_OF_THREE = 1 << 14  # longer ones may take four stages

# Two axes become one matrix while it is small, and costs at most so many times what they cost.
MERGED_WEIGHTS = 1 << 15
MERGED_COST = 4.0


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of a transform: `taken` values in, `given` out, of some signals at once."""

    length: int
    taken: int
    given: int
    signals: int
    real_in: bool
    real_out: bool

    @property
    def blocks(self) -> int:
        """How many real matrices one complex matrix is here."""
        return (1 if self.real_in else 2) * (1 if self.real_out else 2)


def form_of(axis_map: AxisMap, signals: int, *, real_in: bool) -> str:
    """Return how a map is applied: "simple", "direct", "staged" or "convolution".

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
    demand = Demand(
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
def factors(demand: Demand) -> tuple[int, ...]:
    """Return N1…Nm, the factors of the stages that cost least; none where there are no factors."""
    rated = [(_staged_cost(demand, sizes), sizes) for sizes in _factored(demand.length)]
    return min(rated)[1] if rated else ()


@cache
def chirp_factors(demand: Demand) -> tuple[int, ...]:
    """Return the factors of the length of the convolution that costs least."""
    least = demand.taken + demand.given - 1
    rated = [
        (_circulant_cost(demand, sizes), sizes)
        for length in _smooth_lengths(least)
        for sizes in _factored(length)
    ]
    return min(rated)[1]


def _factored(length: int) -> Iterator[tuple[int, ...]]:
    """Yield the ordered factors that a length has, two of them or three, or four of long ones."""
    stages = 3 if length <= LONGEST_OF_THREE else 4
    return (sizes for sizes in _products_of(length, stages) if len(sizes) > 1)


def _products_of(length: int, stages: int) -> Iterator[tuple[int, ...]]:
    if SMALLEST_FACTOR <= length <= LARGEST_FACTOR:
        yield (length,)
    if stages == 1:
        return
    for first in range(SMALLEST_FACTOR, min(LARGEST_FACTOR, length // SMALLEST_FACTOR) + 1):
        if length % first == 0:
            for others in _products_of(length // first, stages - 1):
                yield (first, *others)


def _smooth_lengths(least: int) -> list[int]:
    """Return lengths from `least` on that are products of small primes."""
    step = 4 if least < 1024 else 16
    start = max(ceil(least / step), SMALLEST_FACTOR) * step
    found = [n for n in range(start, 2 * start + 1, step) if _is_smooth(n)]
    return [n for n in found if n <= max(1.25 * least, found[0])]


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


@cache
def _cheapest(demand: Demand) -> tuple[float, str]:
    """Return nanoseconds and the form."""
    choices = [(_direct_cost(demand), "direct")]
    if demand.length > LONGEST_DIRECT:
        sizes = factors(demand)
        if sizes:
            choices.append((_staged_cost(demand, sizes), "staged"))
        choices.append((_circulant_cost(demand, chirp_factors(demand)), "convolution"))
    return min(choices)


def _direct_cost(demand: Demand) -> float:
    weights = demand.taken * demand.given
    return demand.blocks * (
        weights * demand.signals * _per_mac(min(demand.taken, demand.given))
        + weights * NANOSECONDS_PER_WEIGHT
        + NANOSECONDS_PER_NODE
    )


def _staged_cost(demand: Demand, sizes: tuple[int, ...]) -> float:
    """Cost of the stages there, or of the same backwards to a real signal."""
    n, s = demand.length, demand.signals
    half = demand.real_in or demand.real_out
    carried, total = n, 0.0
    for i, size in enumerate(sizes):
        taken, given = 2 * size, 2 * size
        if half and i == 0:
            taken, given = size, 2 * (size // 2 + 1)
            carried = n // size * (size // 2 + 1)
        elif i == len(sizes) - 1 and not half:
            given = 2 * ceil(demand.given * size / n)
        groups = carried // prod(sizes[i:]) if i else 1
        total += _product_cost(groups, given, taken, n // prod(sizes[: i + 1]) * s)
    moved = 3 * s * (demand.taken * (2 - demand.real_in) + demand.given * (2 - demand.real_out))
    return total + moved * NANOSECONDS_PER_VALUE + 8 * NANOSECONDS_PER_NODE


def _circulant_cost(demand: Demand, sizes: tuple[int, ...]) -> float:
    """Cost of stages there and back, and of the chirps around them."""
    m, s = prod(sizes), demand.signals
    later = m // sizes[0]
    total = _product_cost(m // sizes[-1], 2 * sizes[-1], 2 * sizes[-1], s)
    for read in (demand.taken, demand.given):
        total += _product_cost(1, 2 * sizes[0], 2 * ceil(read / later), later * s)
        for i in range(1, len(sizes) - 1):
            behind = prod(sizes[i + 1 :])
            total += _product_cost(prod(sizes[:i]), 2 * sizes[i], 2 * sizes[i], behind * s)
    moved = s * (2 * m + 5 * demand.taken + 8 * demand.given)
    return total + moved * NANOSECONDS_PER_VALUE + 16 * NANOSECONDS_PER_NODE


def _product_cost(groups: int, rows: int, inner: int, columns: int) -> float:
    """Cost of a batch of products (rows, inner) x (inner, columns), the left ones constant."""
    padded = ceil(columns / LANES) * LANES
    return (
        groups * rows * inner * padded * _per_mac(max(inner, 32))
        + groups * rows * inner * NANOSECONDS_PER_WEIGHT / 2
        + groups * NANOSECONDS_PER_PRODUCT
        + groups * rows * columns * NANOSECONDS_PER_VALUE / 4
        + NANOSECONDS_PER_NODE
    )


def _per_mac(shorter: int) -> float:
    return next(cost for side, cost in NANOSECONDS_PER_MAC if shorter <= side)
