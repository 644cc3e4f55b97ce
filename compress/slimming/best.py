"""The network that is kept of all that slimming at one ratio can make.

Without images of the data: the plain cut or the fold, whichever has its outputs closer to those of
the unslimmed network. With them: the best of all candidates (`compress.slimming.candidates`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from compress.slimming.candidates import Candidate, Choice, Mending, candidates, choose
from compress.slimming.judge import Evidence
from compress.slimming.output_error import relative_error
from compress.slimming.report import Absorption
from compress.slimming.slim import SlimOptions, SlimResult, slim_model
from compress.slimming.source import SlimSource

__all__ = ["Best", "best_network"]


@dataclass(frozen=True, kw_only=True)
class Best:
    """What is kept, and what it was compared with.

    Attributes:
        result: the slim network and how it came to be.
        absorption: how close the outputs of plain cut and fold are.
        choice: all candidates, where there were images to judge them with.
    """

    result: SlimResult
    absorption: Absorption
    choice: Choice | None = None


def best_network(
    source: SlimSource,
    ratio: float,
    options: SlimOptions,
    *,
    evidence: Evidence | None = None,
    mending: Mending | None = None,
    look: Callable[[Candidate], None] | None = None,
) -> Best:
    """Slim the network of a checkpoint and keep the best that can be made without training.

    Args:
        source: the opened checkpoint.
        ratio: share of the channels to remove, in [0, 1).
        options: how to slim; without `absorb` the fold is measured, but not kept.
        evidence: images to mend and to judge with; None keeps the plain cut or the fold.
        mending: what may be tried with them.
        look: is shown every candidate, and leaves it as it is.

    Raises:
        UserInputError: an option is out of range.
        UnsupportedModelError: the network cannot be slimmed.
    """
    plain = slim_model(source.model, ratio, replace(options, absorb=False), example=source.example)
    fold = None
    if plain.absorbable:
        fold = slim_model(
            source.model, ratio, replace(options, absorb=True), example=source.example
        )
    absorption = _absorption(source, plain, fold, wanted=options.absorb)
    if evidence is None:
        kept = fold if absorption.applied and fold is not None else plain
        return Best(result=kept, absorption=absorption)
    results = [plain, fold] if fold is not None and options.absorb else [plain]
    choice = choose(_shown(candidates(results, evidence, mending or Mending()), look), evidence)
    folded = len(results) > 1 and choice.best.name != "plain"
    return Best(
        result=replace(results[-1] if folded else plain, model=choice.best.network),
        absorption=replace(absorption, applied=folded),
        choice=choice,
    )


def _shown(
    made: Iterator[Candidate], look: Callable[[Candidate], None] | None
) -> Iterator[Candidate]:
    for candidate in made:
        if look is not None:
            look(candidate)
        yield candidate


def _absorption(
    source: SlimSource, plain: SlimResult, fold: SlimResult | None, *, wanted: bool
) -> Absorption:
    error = relative_error(plain.model, source.model, source.images)
    if fold is None:
        return Absorption(
            applied=False,
            wanted=wanted,
            error_plain=error,
            error_absorbed=None,
            images=source.images_name,
            not_absorbed=plain.not_absorbed,
        )
    folded = relative_error(fold.model, source.model, source.images)
    return Absorption(
        applied=wanted and (folded <= error or math.isnan(error)),  # NaN is never the better
        wanted=wanted,
        error_plain=error,
        error_absorbed=folded,
        images=source.images_name,
        not_absorbed=fold.not_absorbed,
    )
