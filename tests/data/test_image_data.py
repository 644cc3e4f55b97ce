import json
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.data.image_data import ImageData, Preprocessing, Split, assemble
from compress.data.pictures import MemorySource
from compress.data.splits import SPLITS
from compress.errors import UserInputError


def preprocessing(**changes: object) -> Preprocessing:
    fields: dict[str, object] = {
        "image_size": 4,
        "resize": "pillow-bicubic",
        "resize_size": 5,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.25, 1.0),
    }
    return Preprocessing(**{**fields, **changes})  # type: ignore[arg-type]


class SlowSource:
    """Images whose pixels are their position; each read takes a while and is written down."""

    lazy = True
    shape = (3, 2, 2)

    def __init__(self, delay_s: float = 0.0, broken: int | None = None) -> None:
        self.delay_s, self.broken = delay_s, broken
        self.reads: list[tuple[list[int], str]] = []

    def read(self, positions: Tensor) -> Tensor:
        self.reads.append((positions.tolist(), threading.current_thread().name))
        time.sleep(self.delay_s)
        if self.broken in positions.tolist():
            raise UserInputError("image broken.jpg cannot be decoded")
        return positions.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_preprocessing_survives_json() -> None:
    original = preprocessing()
    assert Preprocessing.from_dict(json.loads(json.dumps(original.to_dict()))) == original


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        pytest.param({"image_size": 0}, "image size is 0; expected at least 1", id="size"),
        pytest.param({"resize_size": 3}, "resize size is 3", id="crop larger than picture"),
        pytest.param({"resize": "torch"}, "expected one of pillow-bicubic", id="filter"),
        pytest.param({"std": (1.0, 0.0, 1.0)}, "std above 0", id="std"),
        pytest.param({"mean": (1.0,)}, "one finite number a channel", id="mean"),
        pytest.param({"std": (1.0, float("nan"), 1.0)}, "std above 0", id="nan"),
    ],
)
def test_preprocessing_refuses(changes: Mapping[str, object], match: str) -> None:
    with pytest.raises(UserInputError, match=match):
        preprocessing(**changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"extra": 1}, "expected .*image_size", id="unknown field"),
        pytest.param({"image_size": "big"}, "expected a whole number", id="no number"),
        pytest.param({"mean": 3}, "expected numbers", id="no list"),
    ],
)
def test_preprocessing_refuses_foreign_dicts(change: dict[str, object], match: str) -> None:
    with pytest.raises(UserInputError, match=match):
        Preprocessing.from_dict({**preprocessing().to_dict(), **change})


def test_normalize_by_hand() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    inputs = preprocessing().normalize(images)
    expected = torch.tensor([(0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (1 - 0.3) / 1.0])
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.flatten(), expected, atol=1e-6, rtol=0)  # float32 rounding


def test_batches_come_in_order_and_the_last_is_smaller() -> None:
    split = Split(SlowSource(), torch.tensor([9, 7, 5, 3, 1]), torch.arange(5))
    batches = list(split.batches(2))
    assert [images[:, 0, 0, 0].tolist() for images, _ in batches] == [[9, 7], [5, 3], [1]]
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images(torch.arange(5)))


def test_batches_follow_a_given_order() -> None:
    split = Split(SlowSource(), torch.tensor([9, 7, 5]), torch.arange(3))
    batches = list(split.batches(2, order=torch.tensor([2, 0, 2])))
    assert [labels.tolist() for _, labels in batches] == [[2, 0], [2]]
    assert [images[:, 0, 0, 0].tolist() for images, _ in batches] == [[5, 9], [5]]


def test_the_next_batch_is_read_while_one_is_worked_on() -> None:
    source = SlowSource()
    batches = Split(source, torch.arange(6), torch.arange(6)).batches(2)
    next(batches)
    deadline = time.monotonic() + 5
    while len(source.reads) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [positions for positions, _ in source.reads] == [[0, 1], [2, 3]]  # one ahead, not two
    assert all(thread.startswith("images") for _, thread in source.reads)
    batches.close()  # type: ignore[attr-defined]  # a consumer may stop early
    assert not any(thread.name.startswith("images") for thread in threading.enumerate())


def test_an_unreadable_image_stops_the_batches_where_it_lies() -> None:
    batches = Split(SlowSource(broken=3), torch.arange(6), torch.arange(6)).batches(2)
    next(batches)
    with pytest.raises(UserInputError, match=r"broken\.jpg"):
        next(batches)


@pytest.mark.parametrize("lazy", [True, False])
def test_an_empty_split_has_no_batches(lazy: bool) -> None:
    source = SlowSource() if lazy else MemorySource(torch.zeros(0, 3, 2, 2, dtype=torch.uint8))
    split = Split(source, torch.arange(0), torch.arange(0))
    assert list(split.batches(4)) == []
    assert split.images(torch.arange(0)).shape == (0, 3, 2, 2)


def test_a_batch_size_below_one_is_refused_at_once() -> None:
    with pytest.raises(UserInputError, match="--batch-size is 0"):
        Split(SlowSource(), torch.arange(3), torch.arange(3)).batches(0)


def identity(**changes: object) -> str:
    positions = {split: np.array([place], dtype=np.int64) for place, split in enumerate(SPLITS)}
    fields: dict[str, object] = {
        "classes": ("a", "b"),
        "labels": np.array([0, 1, 0, 1]),
        "positions": positions,
        "preprocessing": preprocessing(),
        "seed": 0,
        "content": [b"one", b"two"],
    }
    source = MemorySource(torch.zeros(4, 3, 4, 4, dtype=torch.uint8))
    data: ImageData = assemble("toy", source, **{**fields, **changes})  # type: ignore[arg-type]
    return data.sha256


def test_identity_is_stable_across_versions() -> None:
    assert identity() == identity()
    assert identity() == "fd94514955c2ca4312f67e2eb0613cea47abb48290ac5eafdbef83fada5b48d0"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"classes": ("a", "c")}, id="class name"),
        pytest.param({"labels": np.array([0, 1, 1, 1])}, id="label"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"content": [b"one", b"tw0"]}, id="content"),
        pytest.param({"content": [b"onet", b"wo"]}, id="boundary"),
        pytest.param({"preprocessing": preprocessing(image_size=5)}, id="size"),
        pytest.param(
            {"positions": {s: np.array([3 - p]) for p, s in enumerate(SPLITS)}}, id="split"
        ),
    ],
)
def test_identity_changes_with(changes: Mapping[str, object]) -> None:
    assert identity(**changes) != identity()
