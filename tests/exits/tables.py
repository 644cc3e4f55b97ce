"""Replay tables with known outcomes."""

from collections.abc import Sequence

import numpy as np

from compress.exits.replay import ReplayTable, Source

SOURCE = Source(data="made up", split="test", data_sha256="d", checkpoint_sha256="c")


def table_of(
    positions: Sequence[int],
    counts: Sequence[int],
    correct: Sequence[int],
    *,
    depth: int = 12,
    classes: int = 10,
    first_macs: int = 57,
    block_macs: int = 232,
) -> ReplayTable:
    """A table in which `counts[i]` images leave at exit i at any threshold in (0, 1)."""
    images, exits = sum(counts), len(positions)
    leaves = np.repeat(np.arange(exits + 1), counts)
    labels = np.arange(images) % classes
    scores = (np.arange(exits) == leaves[:, None]).astype(np.float32)
    right = np.concatenate([np.arange(n) < k for n, k in zip(counts, correct, strict=True)])
    said = np.where(right, labels, (labels + 1) % classes)
    logits = np.zeros((images, exits + 1, classes), dtype=np.float32)
    logits[np.arange(images), :, said] = 5.0
    blocks = np.array([*positions, depth - 1]) + 1
    return ReplayTable(
        logits=logits,
        scores=scores,
        labels=labels.astype(np.int64),
        positions=tuple(positions),
        depth=depth,
        macs=(first_macs + block_macs * blocks).astype(np.int64),
        check_macs=np.zeros(exits, dtype=np.int64),
        source=SOURCE,
    )


def random_table(images: int, exits: int, classes: int, seed: int) -> ReplayTable:
    """A table of noise, some of whose scores are not numbers."""
    rng = np.random.default_rng(seed)
    scores = rng.random((images, exits)).astype(np.float32).round(2)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    checks = rng.integers(1, 9, exits)
    return ReplayTable(
        logits=rng.normal(size=(images, exits + 1, classes)).astype(np.float32),
        scores=scores,
        labels=rng.integers(0, classes, images),
        positions=tuple(range(exits)),
        depth=exits + 1,
        macs=np.cumsum([*(100 + checks), 100]).astype(np.int64),
        check_macs=checks.astype(np.int64),
        source=SOURCE,
    )
