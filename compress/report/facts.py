"""What a report knows about a run, as the steps wrote it.

None and () mean that no step told it. Shares are in [0, 1], accuracies in per cent, MACs are
multiply-adds of one image.
"""

from dataclasses import dataclass

__all__ = [
    "BASELINE",
    "Chain",
    "Curve",
    "Dispatch",
    "Energy",
    "Environment",
    "Epoch",
    "Exit",
    "Exits",
    "Front",
    "Histogram",
    "Latency",
    "Layer",
    "Network",
    "Operation",
    "Parity",
    "Plan",
    "Point",
    "Profile",
    "RunFacts",
    "Slim",
]

BASELINE = "baseline"  # as recipes call the network that the others are compared with


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one image with a runtime such as "torch", "onnx" or "bundle"."""

    runtime: str
    median_ms: float
    p10_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """One row of the final comparison.

    Attributes:
        name: as the recipe calls it.
        params: weights.
        macs: of an image, on average where it may leave early.
        acc1: on test images, at the end of the chain.
        acc1_slimmed: after slimming, before fine-tuning.
        ratio: of channels that slimming was asked to remove.
        true_ratio: of channels that it removed.
        exit_threshold: at which images leave.
        latencies: one for each runtime.
        energy_mj: millijoules of one image.
        test_images: that accuracy was counted on.
    """

    name: str
    params: int | None = None
    macs: float | None = None
    acc1: float | None = None
    acc1_slimmed: float | None = None
    ratio: float | None = None
    true_ratio: float | None = None
    exit_threshold: float | None = None
    latencies: tuple[Latency, ...] = ()
    energy_mj: float | None = None
    test_images: int | None = None

    def latency_ms(self, runtime: str) -> float | None:
        """Return the median with a runtime; None where it was not timed."""
        found = [each.median_ms for each in self.latencies if each.runtime == runtime]
        return found[0] if found else None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Channels of a layer before and after slimming."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts between ascending edges, of which there is one more."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Slim:
    """How a network was slimmed, or how sparse training left it (then without layers).

    Attributes:
        network: its name.
        threshold: the smallest |γ| that stays.
        layers: widths.
        histogram: of |γ|.
        picture: content of an SVG file with that histogram.
        share_below_1pct: of |γ| below 1 % of the largest.
    """

    network: str
    threshold: float | None = None
    layers: tuple[Layer, ...] = ()
    histogram: Histogram | None = None
    picture: bytes = b""
    share_below_1pct: float | None = None


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What training told after an epoch; accuracy and the second loss are of validation images."""

    epoch: float
    train_loss: float | None
    validation_loss: float | None
    acc1: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The epochs of one training, and the kind of task that it belongs to."""

    name: str
    kind: str
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class Exit:
    """Images that leave at one exit, and how far its scores can be trusted.

    `place` is where it stands, in words.
    """

    place: str
    count: int
    share: float
    acc1: float | None
    auroc: float | None = None
    ece_before: float | None = None
    ece_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """Accuracy at a cost, which is a share of that of the whole network."""

    cost_share: float
    acc1: float
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Exits:
    """Where images leave at the chosen threshold, and what other thresholds give."""

    network: str
    threshold: str
    images: int
    exits: tuple[Exit, ...]
    sweep: tuple[Point, ...] = ()
    chosen: Point | None = None
    oracle: Point | None = None


@dataclass(frozen=True, kw_only=True)
class Front:
    """Accuracy against cost that several methods reach, by the name of the method.

    `held_out` says that the chosen point was counted on images that did not shape it.
    """

    network: str
    series: tuple[tuple[str, tuple[Point, ...]], ...]
    chosen: Point | None = None
    held_out: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan that was chosen for a network; texts are ready to be shown."""

    network: str
    exits: str
    thresholds: str
    objective: str
    cost_share: float | None
    acc1: float | None
    interval: tuple[float, float] | None
    guarantee: str


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an exported network computes what torch does."""

    network: str
    form: str
    opset: int | None
    segments: int | None
    images: int | None
    worst_relative_error: float | None
    worst_gate_error: float | None
    top1_agreement: float | None
    exit_agreement: float | None
    size_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Test images whose exit and class are those of torch."""

    network: str
    images: int
    same: int
    acc1: float | None
    exit_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One line of a profile."""

    name: str
    hits: int | None
    total_ms: float | None
    per_hit_ms: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the operations of a network took."""

    network: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Why there is no energy, where a benchmark looked for it in vain."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One chain of a recipe; the only one is called ""."""

    name: str
    networks: tuple[Network, ...] = ()
    slims: tuple[Slim, ...] = ()
    curves: tuple[Curve, ...] = ()
    exits: tuple[Exits, ...] = ()
    fronts: tuple[Front, ...] = ()
    plans: tuple[Plan, ...] = ()
    parities: tuple[Parity, ...] = ()
    dispatches: tuple[Dispatch, ...] = ()
    profiles: tuple[Profile, ...] = ()
    energy: Energy | None = None

    @property
    def baseline(self) -> Network | None:
        """The network that the others are compared with."""
        named = [each for each in self.networks if each.name == BASELINE]
        return next(iter([*named, *self.networks]), None)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions and hardware, and the steps that ran with them."""

    steps: tuple[str, ...]
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run.

    Attributes:
        name: of its recipe, or of its folder.
        folder: name of the folder, without those above it.
        settings: of the recipe: data, seed and the like.
        chains: in the order of the recipe.
        environments: that its figures come from.
        notes: sentences on what could not be read or is not finished.
    """

    name: str
    folder: str
    settings: tuple[tuple[str, str], ...]
    chains: tuple[Chain, ...]
    environments: tuple[Environment, ...]
    notes: tuple[str, ...]
