"""What can be made of a cut network without training, and which of it is the best.

    plain          channels removed, nothing else
    fold           what they were worth on average added to the next layers (`absorb`); no images
    re-estimate    BatchNorm statistics taken anew from images of the training split
    blend S        statistics between those of the fold and those taken anew, S of the latter
    repair         weights and biases fitted anew by least squares, then statistics

Which is best depends on how much was removed and on what the network is, so all are tried and
judged on the calibration split.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.slimming.judge import Evidence, Score
from compress.slimming.reestimate import blend_, norms, reestimate_, statistics
from compress.slimming.repair import Repaired, images_within, repair_
from compress.slimming.slim import SlimResult

__all__ = ["Candidate", "Choice", "Mending", "candidates", "choose"]

BLENDS = (0.25, 0.5, 0.75)
DEFAULT_IMAGES = 2000
FEWEST_IMAGES = 64
MACS_A_PASS = 1e12  # a minute or two on one core
MEMORY_MIB = 2048  # that the maps of a repair may take


@dataclass(frozen=True, kw_only=True)
class Mending:
    """What may be tried with images at hand.

    Attributes:
        images: of each split to look at; None for 2,000, or fewer (at least 64) where these would
            take more than 1e12 multiply-adds.
        repair: try the least-squares repair.
    """

    images: int | None = None
    repair: bool = True

    def images_for(self, macs: int) -> int:
        """Return how many images a network of so many multiply-adds is to look at."""
        if self.images is not None:
            return self.images
        return max(FEWEST_IMAGES, min(DEFAULT_IMAGES, int(MACS_A_PASS / max(macs, 1))))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A slimmed network.

    Attributes:
        name: how it was made.
        network: in eval mode.
        repaired: what a repair did.
    """

    name: str
    network: nn.Module
    repaired: Repaired | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was tried, and the best of it.

    Attributes:
        best: the candidate to keep.
        scores: of all candidates by name, in the order in which they were tried.
        looked_at: what they were judged on.
        repaired: what the repair did, where it was tried.
    """

    best: Candidate
    scores: dict[str, Score]
    looked_at: dict[str, Any]
    repaired: Repaired | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the networks as JSON values."""
        repair = self.repaired
        return {
            "chosen": self.best.name,
            "candidates": {name: score.to_dict() for name, score in self.scores.items()},
            **self.looked_at,
            "repair": None
            if repair is None
            else {
                "images": repair.images,
                "unexplained": dict(repair.left),
                "unfitted": dict(repair.unfitted),
            },
        }

    def sentence(self) -> str:
        """Return one line for the console."""
        by_accuracy = self.looked_at["judged_by"] == "accuracy"
        told = ", ".join(
            f"{name} {score.acc1:.2f}" if by_accuracy else f"{name} {score.error:.3g}"
            for name, score in self.scores.items()
        )
        where = (
            f"{self.looked_at['images_of_calibration']} calibration images of "
            f"{self.looked_at['data']}"
        )
        if by_accuracy:
            whole = self.looked_at["unslimmed"]["acc1"]
            judged = f"top-1 on {where} (unslimmed {whole:.2f} %)"
        else:
            judged = f"relative output error on {where}"
        return f"without training, {judged}: {told}; written: {self.best.name}"


def choose(made: Iterator[Candidate], evidence: Evidence) -> Choice:
    """Judge candidates and return the best; of equal ones the first.

    Args:
        made: at least one; only the best so far and the one at hand are held.
        evidence: to judge with.
    """
    scores: dict[str, Score] = {}
    best: Candidate | None = None
    repaired = None
    for candidate in made:
        scores[candidate.name] = evidence.score(candidate.network)
        repaired = candidate.repaired or repaired
        if best is None or scores[candidate.name].rank < scores[best.name].rank:
            best = candidate
    if best is None:
        raise ValueError("expected at least one candidate")
    return Choice(best=best, scores=scores, looked_at=evidence.to_dict(), repaired=repaired)


def candidates(
    results: Sequence[SlimResult], evidence: Evidence, mending: Mending
) -> Iterator[Candidate]:
    """Yield what can be made of a cut network, one after the other.

    Args:
        results: the plain cut, and where there is one the fold.
        evidence: images to mend with.
        mending: what may be tried.
    """
    names = ("plain", "fold")[: len(results)]
    for name, result in zip(names, results, strict=True):
        yield Candidate(name=name, network=result.model)
    base = results[-1]
    if norms(base.model):
        yield from _reestimated(base.model, evidence)
    if mending.repair:
        network = copy.deepcopy(base.model)
        most = images_within(evidence.reference, evidence.together(1), MEMORY_MIB)
        images = evidence.together(most)
        repaired = repair_(network, evidence.reference, images, base.kept_outputs)
        yield Candidate(name="repair", network=network, repaired=repaired)


def _reestimated(base: nn.Module, evidence: Evidence) -> Iterator[Candidate]:
    new = copy.deepcopy(base)
    reestimate_(new, evidence.batches())
    yield Candidate(name="re-estimate", network=new)
    for share in BLENDS:
        blended = copy.deepcopy(new)
        blend_(blended, statistics(base), share)
        yield Candidate(name=f"blend {share}", network=blended)
