import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data.image_data import ImageData, Preprocessing
from compress.data.spec import load_data
from compress.errors import UserInputError

COUNT = 40
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (COUNT, 6, 8, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 2


def save(path: Path, **arrays: Any) -> Path:
    values = {"images": IMAGES, "labels": LABELS} | arrays
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return path


def load(path: Path, **options: Any) -> ImageData:
    return load_data(f"numpy:{path}", **options)


def all_images(data: ImageData) -> dict[int, np.ndarray]:
    """Return every image by its place in the file."""
    held = {}
    for split in data.splits.values():
        images = split.images(torch.arange(len(split))).numpy()
        held |= dict(zip(split.positions.tolist(), images, strict=True))
    return held


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_come_back_as_they_are(
    write: Callable[..., None], order: str, tmp_path: Path
) -> None:
    images = np.asarray(IMAGES, order=order)  # type: ignore[call-overload]
    write(tmp_path / "a.npz", images=images, labels=LABELS)
    data = load(tmp_path / "a.npz")
    assert data.classes == ("0", "1")
    assert data.preprocessing.size == (6, 8)
    held = all_images(data)
    assert sorted(held) == list(range(COUNT))
    for place, image in held.items():
        assert np.array_equal(image, IMAGES[place].transpose(2, 0, 1))
    for split in data.splits.values():
        assert split.labels.tolist() == [place % 2 for place in split.positions.tolist()]
    counts = {name: len(split) for name, split in data.splits.items()}
    assert counts == {"train": 26, "validation": 4, "calibration": 2, "test": 8}


def test_identity_is_the_content(tmp_path: Path) -> None:
    first = load(save(tmp_path / "a.npz")).sha256
    np.savez_compressed(tmp_path / "b.npz", images=IMAGES, labels=LABELS)
    assert load(tmp_path / "b.npz").sha256 == first
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] ^= 1
    assert load(save(tmp_path / "c.npz", images=changed)).sha256 != first


def test_given_splits_and_names_are_taken(tmp_path: Path) -> None:
    split = np.array(["Train"] * 20 + ["test"] * 12 + ["val"] * 8)
    data = load(save(tmp_path / "a.npz", split=split, classes=np.array(["cat", "dog"])))
    assert data.classes == ("cat", "dog")
    assert data.splits["test"].positions.tolist() == list(range(20, 32))
    assert data.splits["validation"].positions.tolist() == list(range(32, 40))
    training = sorted(
        data.splits["train"].positions.tolist() + data.splits["calibration"].positions.tolist()
    )
    assert training == list(range(20))


def test_test_images_alone_are_no_others(tmp_path: Path) -> None:
    data = load(save(tmp_path / "a.npz", split=np.array([b"test"] * COUNT)))
    assert list(data.splits) == ["test"]
    with pytest.raises(UserInputError, match="test images alone, and calibration images are"):
        data.splits["calibration"]


def test_grey_images_of_a_size_of_their_own(tmp_path: Path) -> None:
    data = load(save(tmp_path / "a.npz", images=IMAGES[..., 0]))
    assert data.preprocessing.shape == (1, 6, 8)
    assert np.array_equal(all_images(data)[5][0], IMAGES[5, :, :, 0])


def test_four_bands_are_resized_each_for_itself(tmp_path: Path) -> None:
    bands = RNG.integers(0, 256, (COUNT, 16, 16, 4), dtype=np.uint8)
    data = load(save(tmp_path / "a.npz", images=bands), image_size=14)
    place = data.splits["test"].positions[0].item()
    image = data.splits["test"].images(torch.tensor([0]))[0].numpy()
    for band in range(4):
        plane = Image.fromarray(np.ascontiguousarray(bands[place, :, :, band]))
        assert np.array_equal(image[band], np.asarray(plane)[1:15, 1:15])  # 16 of 16, then 14


def test_a_network_of_other_channels_is_told(tmp_path: Path) -> None:
    recorded = Preprocessing(image_size=6, resize="crop", resize_size=6, mean=(0.5,), std=(0.5,))
    data = load(save(tmp_path / "a.npz"), preprocessing=recorded)  # RGB shown grey
    assert data.splits["test"].images(torch.tensor([0])).shape == (1, 1, 6, 6)
    bands = save(tmp_path / "b.npz", images=np.zeros((COUNT, 6, 6, 4), dtype=np.uint8))
    with pytest.raises(UserInputError, match="4 channels and the network takes 1"):
        load(bands, preprocessing=recorded)


def claiming(shape: tuple[int, ...], content: bytes, path: Path, **zipping: Any) -> Path:
    """Write images whose header claims a shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", **zipping) as archive:
        archive.writestr("labels.npy", labels.getvalue())
        archive.writestr("images.npy", header.getvalue() + content)
    return path


def test_a_header_that_claims_more_than_is_there_takes_no_memory(tmp_path: Path) -> None:
    path = claiming((10**6, 500, 500, 3), b"x" * 100, tmp_path / "a.npz")
    with pytest.raises(UserInputError, match=r"has 228 bytes, its header says 750000000128"):
        load(path)


def test_zeros_that_are_packed_a_thousand_times_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.data.npz.SMALL", 1 << 16)
    path = claiming(
        (40, 300, 300, 3),
        bytes(40 * 300 * 300 * 3),
        tmp_path / "a.npz",
        compression=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(UserInputError, match=r"would unpack from .* write it with numpy\.savez"):
        load(path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_file_that_is_cut_off_is_told(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write(path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserInputError, match=r"a\.npz cannot be read"):
        load(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "was-run").touch, ()

    path = save(tmp_path / "a.npz", labels=np.array([Touch()] * COUNT, dtype=object))
    with pytest.raises(UserInputError, match=r"labels of .* holds Python objects"):
        load(path)
    assert not (tmp_path / "was-run").exists()
    pickle.loads(pickle.dumps(Touch()))  # the attack is real
    assert (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        pytest.param({"labels": None}, "has no array labels", id="no labels"),
        pytest.param({"images": IMAGES / 255.0}, "float64 .* expected uint8", id="floats"),
        pytest.param({"images": IMAGES[:0]}, "expected uint8 of shape", id="none"),
        pytest.param(
            {"images": IMAGES.transpose(0, 3, 1, 2)}, "channels first", id="channels first"
        ),
        pytest.param({"labels": LABELS[:3]}, r"shape \(3,\); expected .*\(40,\)", id="few labels"),
        pytest.param({"labels": LABELS / 2}, "float64 .* whole numbers", id="float labels"),
        pytest.param({"labels": LABELS - 1}, "from -1 to 0", id="negative"),
        pytest.param({"labels": LABELS * 1000}, "from 0 to 1000", id="far labels"),
        pytest.param({"labels": LABELS * 0}, "at least two classes", id="one class"),
        pytest.param({"classes": np.array(["a"])}, "names 1 classes", id="few names"),
        pytest.param({"classes": np.array(["a", "a"])}, "names 1 classes", id="same names"),
        pytest.param({"classes": np.array([1, 2])}, "list of short texts", id="numbers"),
        pytest.param({"split": np.array(["train"])}, r"expected \(40,\)", id="short split"),
        pytest.param(
            {"split": np.array(["holdout"] * COUNT)}, r"values \['holdout'\]", id="unknown split"
        ),
        pytest.param(
            {"split": np.array(["train"] * 3 + ["test"] * 37)},
            "class 0 of .* has 2 training images; expected at least 3",
            id="few training images",
        ),
    ],
)
def test_bad_arrays_are_told(arrays: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=match):
        load(save(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_other_files_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserInputError, match=r"a\.npz"):
        load(tmp_path / "a.npz")
    with pytest.raises(UserInputError, match="does not exist"):
        load(tmp_path / "b.npz")
