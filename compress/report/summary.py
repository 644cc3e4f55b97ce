"""What a run comes to, in plain sentences built from its figures."""

from compress.report.facts import Chain, Exits, Network, RunFacts
from compress.report.layout import Tile
from compress.report.numbers import count_text, ms_text, number_text, percent_text, points_text

__all__ = ["best_of", "summary", "tiles"]

HOW = {
    "torch": "With torch",
    "onnx": "With ONNX Runtime",
    "bundle": "From its bundle",
    "benchmark": "In the benchmark",
}
SMALL_DROP = 1.0  # points of accuracy that a smaller network may cost and still be the headline


def summary(run: RunFacts) -> list[str]:
    """Return the sentences on a run."""
    found = [_headline(chain) for chain in run.chains]
    found += [_leaving(exits) for chain in run.chains for exits in chain.exits]
    found += [_exports(run), _decisions(run), _energy(run)]
    return [sentence for sentence in found if sentence]


def tiles(run: RunFacts) -> list[Tile]:
    """Return the large numbers of a run: what the best network of each chain saves."""
    found = []
    for chain in run.chains:
        best, base = best_of(chain), chain.baseline
        if best is None or base is None:
            continue
        label = f"{chain.name}: {best.name}" if chain.name else best.name
        if best.macs is not None and base.macs:
            words = f"of the MACs, {_accuracy(best, base)}"
            found.append(Tile(label=label, number=_share(best.macs / base.macs), words=words))
        if best.params is not None and base.params:
            words = f"of the parameters: {count_text(best.params)} of {count_text(base.params)}"
            found.append(Tile(label=label, number=_share(best.params / base.params), words=words))
    return found


def best_of(chain: Chain) -> Network | None:
    """Return the network of fewest MACs whose accuracy is at most a point below the baseline.

    Where none keeps the accuracy so well it is the most accurate one besides the baseline; None
    where there is no other network with both figures.
    """
    base = chain.baseline
    others = [
        each
        for each in chain.networks
        if each is not base and each.macs is not None and each.acc1 is not None
    ]
    if base is None or base.acc1 is None or not others:
        return None
    bar = base.acc1 - SMALL_DROP
    good = [each for each in others if (each.acc1 or 0.0) >= bar]
    if good:
        return min(good, key=lambda each: each.macs or 0.0)
    return max(others, key=lambda each: each.acc1 or 0.0)


def _headline(chain: Chain) -> str:
    best, base = best_of(chain), chain.baseline
    if best is None or base is None or best.acc1 is None:
        return ""
    where = f"In the chain {chain.name}, {best.name}" if chain.name else f"The network {best.name}"
    text = f"{where} is right for {percent_text(best.acc1)} of the test images"
    if base.acc1 is not None:
        text += f" (the baseline for {percent_text(base.acc1)})"
    if best.macs is not None and base.macs:
        text += f" with {_share(best.macs / base.macs)} of its MACs"
        if best.params is not None and base.params:
            text += f" and {_share(best.params / base.params)} of its parameters"
    return f"{text}.{_faster(best, base)}"


def _faster(best: Network, base: Network) -> str:
    """Return the latency with the last runtime that both were timed with: the one to deploy."""
    for each in reversed(best.latencies):
        before = base.latency_ms(each.runtime)
        if before is not None:
            return (
                f" {HOW.get(each.runtime, each.runtime)} an image takes {ms_text(each.median_ms)}, "
                f"where the baseline takes {ms_text(before)}."
            )
    return ""


def _leaving(found: Exits) -> str:
    early = sum(each.share for each in found.exits[:-1])
    if found.chosen is None:
        return ""
    how_many = (
        "All test images"
        if not found.exits[-1].count
        else f"Of the test images, {percent_text(100 * early, 1)}"
    )
    return (
        f"{how_many} leave {found.network} before its final head: an image costs "
        f"{_share(found.chosen.cost_share)} of the whole network on average, at "
        f"{percent_text(found.chosen.acc1)} accuracy."
    )


def _exports(run: RunFacts) -> str:
    errors = [
        each.worst_relative_error
        for chain in run.chains
        for each in chain.parities
        if each.worst_relative_error is not None
    ]
    if not errors:
        return ""
    return (
        f"{_networks(len(errors))} exported; relative to torch's, the logits are off by at most "
        f"{number_text(max(errors))}."
    )


def _decisions(run: RunFacts) -> str:
    found = [each for chain in run.chains for each in chain.dispatches]
    images, same = sum(each.images for each in found), sum(each.same for each in found)
    if not images:
        return ""
    which = "all" if same == images else f"{same} of"
    return f"Dispatched from bundles, {which} {images} images got the class and the exit of torch."


def _energy(run: RunFacts) -> str:
    reasons = dict.fromkeys(chain.energy.reason for chain in run.chains if chain.energy)
    return " ".join(f"Energy was not measured: {reason.rstrip('.')}." for reason in reasons)


def _networks(count: int) -> str:
    return "One network was" if count == 1 else f"{count} networks were"


def _share(value: float) -> str:
    return percent_text(100 * value, 0 if value >= 0.095 else 1)


def _accuracy(best: Network, base: Network) -> str:
    if best.acc1 is None or base.acc1 is None:
        return "accuracy not told"
    if best.acc1 == base.acc1:
        return "at the same accuracy"
    return f"accuracy {points_text(best.acc1 - base.acc1)}"
