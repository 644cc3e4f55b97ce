"""Fixed, stratified splits that never overlap and do not depend on any random generator.

The members of a class are put in the order of sha256(seed, name) and cut into runs, one a split. No
generator is involved, so the split is the same with every version of numpy, torch and Python, and
it depends on the seed and on the names in that class alone.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SHARES",
    "SPLITS",
    "shares_of_train",
    "split_counts",
    "split_names",
    "stratified_split",
]

SPLITS = ("train", "validation", "calibration", "test")
SHARES = {"train": 650, "validation": 75, "calibration": 75, "test": 200}  # per thousand
BESIDE_TEST = {"train": 8, "validation": 1, "calibration": 1}  # as CIFAR-10's training images


def shares_of_train(given: Collection[str]) -> dict[str, int]:
    """Return how training images are divided among train and the splits that are not given.

    >>> shares_of_train({"train", "test"})
    {'train': 8, 'validation': 1, 'calibration': 1}

    Args:
        given: the splits that the data give themselves; "train" may be among them.
    """
    shares = BESIDE_TEST if "test" in given else SHARES
    return {name: share for name, share in shares.items() if name == "train" or name not in given}


def split_counts(total: int, shares: Mapping[str, int]) -> dict[str, int]:
    """Divide `total` members in proportion to `shares`, whole numbers that add up to `total`.

    Every split gets the floor of its part, and the rest goes to the largest remainders, the earlier
    split first where they are equal. A split left empty then takes one from the fullest, if there
    are at least as many members as splits.

    >>> split_counts(100, {"train": 650, "validation": 75, "calibration": 75, "test": 200})
    {'train': 65, 'validation': 8, 'calibration': 7, 'test': 20}

    Args:
        total: members to divide, at least 0.
        shares: whole positive weights, such as parts of a thousand: floats would round differently.
    """
    whole = sum(shares.values())
    counts = {name: total * share // whole for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: -(total * shares[name] % whole))  # stable
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    if total >= len(shares):
        for name in shares:
            if counts[name] == 0:
                counts[max(counts, key=lambda other: counts[other])] -= 1
                counts[name] = 1
    return counts


def split_names(names: Iterable[str], shares: Mapping[str, int], seed: int) -> dict[str, list[str]]:
    """Divide the names of one class among the splits; each part comes back sorted.

    Args:
        names: distinct names, in any order.
        shares: weight of each split, see `split_counts`.
        seed: another seed gives another split.
    """
    shuffled = sorted(names, key=lambda name: (_rank(seed, name), name))
    parts: dict[str, list[str]] = {}
    start = 0
    for split, count in split_counts(len(shuffled), shares).items():
        parts[split] = sorted(shuffled[start : start + count])
        start += count
    return parts


def stratified_split(
    labels: Sequence[int] | NDArray[np.int64], shares: Mapping[str, int], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Divide positions 0 … N-1 among the splits, class by class.

    Args:
        labels: the class of each position, (N,).
        shares: weight of each split, see `split_counts`.
        seed: another seed gives another split.

    Returns:
        Per split its positions, ascending.
    """
    classes = np.asarray(labels)
    parts: dict[str, list[int]] = {split: [] for split in shares}
    for label in np.unique(classes):
        members = (str(position) for position in np.flatnonzero(classes == label))
        for split, names in split_names(members, shares, seed).items():
            parts[split] += map(int, names)
    return {split: np.array(sorted(part), dtype=np.int64) for split, part in parts.items()}


def _rank(seed: int, name: str) -> bytes:
    # File names may hold bytes that are no UTF-8; Python keeps them as lone surrogates.
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
