"""What every exit says of every image, and when that counts as success."""

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError
from compress.exits.replay import ReplayTable, decide
from compress.planning.cuts import Settings
from compress.runtime.decision import fires

__all__ = ["firing", "harmless", "leaving", "predictions", "right", "without_unused"]

CHUNK = 4096  # images: the test for NaN needs a copy of the shape of the logits


def predictions(table: ReplayTable) -> NDArray[np.int64]:
    """Return the class (N, E+1) that each exit says; -1 where a logit is not a number."""
    said = np.empty(table.logits.shape[:2], dtype=np.int64)
    for start in range(0, len(table), CHUNK):
        logits = table.logits[start : start + CHUNK]
        broken = np.isnan(logits).any(axis=2)
        said[start : start + CHUNK] = np.where(broken, -1, logits.argmax(axis=2))
    return said


def right(table: ReplayTable) -> NDArray[np.bool_]:
    """Return (N, E+1), whether each exit says the right class; as `ReplayTable.correct`."""
    return predictions(table) == table.labels[:, None]


def harmless(table: ReplayTable, loss: str) -> NDArray[np.bool_]:
    """Return (N, E+1), whether an image that leaves at an exit loses nothing.

    Args:
        table: of the images.
        loss: "consistency": an image loses where the exit says another class than the whole
            network. "accuracy": where the whole network is right and the exit is not; an image
            that the exit alone gets right counts for nothing, so the share of images that lose is
            at least the accuracy that is lost.

    Raises:
        UserInputError: the loss is another.
    """
    said = predictions(table)
    if loss == "consistency":
        return said == said[:, -1:]
    if loss == "accuracy":
        correct = said == table.labels[:, None]
        return correct | ~correct[:, -1:]
    raise UserInputError(f"the loss is {loss!r}; expected consistency or accuracy")


def leaving(table: ReplayTable, settings: Settings) -> NDArray[np.int64]:
    """Return the exit (N,) that each image takes, E for the final head."""
    exits = np.array(settings.exits, dtype=np.int64)
    return decide(table, list(settings.thresholds), exits=exits)


def firing(table: ReplayTable, settings: Settings) -> NDArray[np.bool_]:
    """Return (N, E+1), which exits would let each image go; the final head always does."""
    exits = list(settings.exits)
    reached = np.zeros((len(table), table.exits + 1), dtype=bool)
    reached[:, exits] = fires(table.scores[:, exits], settings.thresholds)
    reached[:, -1] = True
    return reached


def without_unused(table: ReplayTable, settings: Settings, images: NDArray[np.int64]) -> Settings:
    """Return the settings without the exits that none of these images takes.

    Of these images every one still leaves where it left, and pays no check that lets nobody go.
    """
    taken = set(leaving(table, settings)[images].tolist())
    pairs = zip(settings.exits, settings.thresholds, strict=True)
    kept = [(number, bar) for number, bar in pairs if number in taken]
    return Settings(
        exits=tuple(number for number, _ in kept), thresholds=tuple(bar for _, bar in kept)
    )
