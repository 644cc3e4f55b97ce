import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.splits import SPLITS, split_counts, split_names, stratified_split

SHARES = {"train": 650, "validation": 75, "calibration": 75, "test": 200}
shares = st.fixed_dictionaries({split: st.integers(1, 1000) for split in SPLITS})


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        pytest.param(700, [455, 53, 52, 140], id="a class of RESISC45"),
        pytest.param(100, [65, 8, 7, 20], id="a class of UC Merced"),
        pytest.param(4, [1, 1, 1, 1], id="one each"),
        pytest.param(3, [2, 0, 0, 1], id="fewer than splits"),
        pytest.param(0, [0, 0, 0, 0], id="none"),
    ],
)
def test_counts_by_hand(total: int, expected: list[int]) -> None:
    assert list(split_counts(total, SHARES).values()) == expected


@given(st.integers(0, 5000), shares)
def test_counts_add_up_and_stay_near_their_shares(total: int, shares: dict[str, int]) -> None:
    counts = split_counts(total, shares)
    assert sum(counts.values()) == total
    whole = sum(shares.values())
    if total >= 4:
        assert min(counts.values()) >= 1
    for split, count in counts.items():
        ideal = total * shares[split] / whole
        # Four splits: at most three of them take one from the fullest.
        assert ideal - 4 < count < ideal + 1 + 1e-9


@given(st.lists(st.integers(0, 5), max_size=120), st.integers(0, 2**40))
def test_splits_are_disjoint_complete_and_stratified(labels: list[int], seed: int) -> None:
    parts = stratified_split(labels, SHARES, seed)
    everything = np.concatenate(list(parts.values()))
    assert sorted(everything.tolist()) == list(range(len(labels)))
    for label in set(labels):
        size = labels.count(label)
        held = {s: sum(labels[p] == label for p in part) for s, part in parts.items()}
        assert held == split_counts(size, SHARES)


@given(st.sets(st.text(min_size=1), max_size=30), st.integers(0, 2**40), st.randoms())
def test_split_does_not_depend_on_the_order_of_the_names(names, seed, random) -> None:  # type: ignore[no-untyped-def]
    mixed = list(names)
    random.shuffle(mixed)
    assert split_names(mixed, SHARES, seed) == split_names(sorted(names), SHARES, seed)


def test_split_follows_the_documented_rank() -> None:
    names = [f"beach{number:02}.tif" for number in range(100)]
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"7/{name}".encode()).digest())
    parts = split_names(names, SHARES, seed=7)
    assert parts["train"] == sorted(ranked[:65])
    assert parts["test"] == sorted(ranked[80:])


def test_another_seed_gives_another_split_and_other_classes_do_not_matter() -> None:
    labels = [0] * 40 + [1] * 40
    first = stratified_split(labels, SHARES, 0)
    assert not np.array_equal(first["test"], stratified_split(labels, SHARES, 1)["test"])
    alone = stratified_split([0] * 40, SHARES, 0)["test"].tolist()
    assert [place for place in first["test"].tolist() if place < 40] == alone


def test_names_that_are_no_utf8_can_be_split() -> None:
    names = [f"caf\udce9{number}.jpg" for number in range(8)]
    assert sum(map(len, split_names(names, SHARES, 0).values())) == 8
