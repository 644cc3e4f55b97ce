import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from compress.data import cifar
from compress.data.image_data import ImageData
from compress.data.plain_pickle import load_plain_pickle
from compress.data.spec import load_data
from compress.errors import UserInputError

RECORDS = 40
TRAINING = [f"data_batch_{number}" for number in range(1, 6)]
NAMES = [*TRAINING, "test_batch"]
CLASSES = [f"class{number}" for number in range(10)]


def pixels_of(batch: int) -> NDArray[np.uint8]:
    return np.random.default_rng(batch).integers(0, 256, (RECORDS, 3072), dtype=np.uint8)


def labels_of(batch: int) -> list[int]:
    return [(batch + record) % 10 for record in range(RECORDS)]


def binary_files() -> dict[str, bytes]:
    files = {"batches.meta.txt": "\n".join([*CLASSES, "", ""]).encode()}
    for batch, name in enumerate(NAMES):
        records = zip(labels_of(batch), pixels_of(batch), strict=True)
        files[f"{name}.bin"] = b"".join(bytes([label]) + row.tobytes() for label, row in records)
    return files


def python2_pickle(labels: list[int], pixels: NDArray[np.uint8]) -> bytes:
    """Spell the opcodes as Python 2 with an old numpy wrote the official files."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}(",
            text(b"batch_label") + text(b"batch 1 of 5"),
            text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text(b"data"),
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb",
            b"u.",
        ]
    )


def python_files() -> dict[str, bytes]:
    meta = {b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}
    files = {"batches.meta": pickle.dumps(meta, protocol=2)}
    for batch, name in enumerate(NAMES):
        files[name] = python2_pickle(labels_of(batch), pixels_of(batch))
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def tarball(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.parent


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CIFAR10", "CIFAR100"):
        full = getattr(cifar, name)
        records = {stem: count * RECORDS // 10_000 for stem, count in full.records.items()}
        monkeypatch.setattr(cifar, name, replace(full, records=records))


def load(folder: Path, image_size: int | None = None) -> ImageData:
    return load_data(f"cifar10:{folder}", image_size=image_size)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "binary": lambda folder: write(folder, binary_files()),
    "binary-nested": lambda f: write(f / "cifar-10-batches-bin", binary_files()).parent,
    "python": lambda folder: write(folder, python_files()),
    "python-nested": lambda f: write(f / "cifar-10-batches-py", python_files()).parent,
    "binary-tarball": lambda folder: tarball(
        folder / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files()
    ),
    "python-tarball": lambda folder: tarball(
        folder / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files()
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    data = load(folder)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked
    assert data.classes == tuple(CLASSES)
    assert {split: len(part) for split, part in data.splits.items()} == {
        "train": 4 * RECORDS,
        "validation": RECORDS // 2,
        "calibration": RECORDS // 2,
        "test": RECORDS,
    }
    test = data.splits["test"]
    images = test.images(torch.arange(RECORDS))
    assert np.array_equal(images.numpy(), pixels_of(5).reshape(-1, 3, 32, 32))
    assert test.labels.tolist() == labels_of(5)
    training = np.concatenate([pixels_of(batch) for batch in range(5)]).reshape(-1, 3, 32, 32)
    for split in ("train", "validation", "calibration"):
        part = data.splits[split]
        held = part.images(torch.arange(len(part))).numpy()
        assert np.array_equal(held, training[part.positions.numpy()])
        assert np.bincount(part.labels.numpy()).tolist() == [len(part) // 10] * 10


def test_layouts_share_one_identity_and_a_pixel_changes_it(tmp_path: Path) -> None:
    binary = load(LAYOUTS["binary"](tmp_path / "a")).sha256
    assert load(LAYOUTS["python-tarball"](tmp_path / "b")).sha256 == binary
    changed = binary_files()
    changed["test_batch.bin"] = changed["test_batch.bin"][:-1] + b"\x00"
    assert load(write(tmp_path / "c", changed)).sha256 != binary


def test_other_sizes_are_resized_by_pillow_when_read(tmp_path: Path) -> None:
    data = load(LAYOUTS["binary"](tmp_path), image_size=48)
    images = data.splits["test"].images(torch.tensor([3, 0]))
    picture = Image.fromarray(pixels_of(5)[3].reshape(3, 32, 32).transpose(1, 2, 0))
    expected = np.asarray(picture.resize((48, 48), Image.Resampling.BICUBIC))
    assert images.shape == (2, 3, 48, 48)
    assert np.array_equal(images[0].numpy(), expected.transpose(2, 0, 1))
    assert data.preprocessing.resize_size == 48


def test_class_names_have_a_default(tmp_path: Path) -> None:
    files = binary_files()
    del files["batches.meta.txt"]
    assert load(write(tmp_path, files)).classes[::9] == ("airplane", "truck")


def test_pickles_of_a_newer_python_and_numpy_are_read(tmp_path: Path) -> None:
    files = python_files()
    for batch, name in enumerate(NAMES):
        value = {"data": pixels_of(batch), "labels": labels_of(batch)}
        files[name] = pickle.dumps(value, protocol=2 + batch % 3)
    assert load(write(tmp_path / "new", files)).sha256 == load(LAYOUTS["binary"](tmp_path)).sha256


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("victim", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_that_runs_code_is_refused_unrun(
    victim: str, packed: bool, tmp_path: Path
) -> None:
    mark = tmp_path / "was-run"
    files = python_files() | {victim: pickle.dumps({"data": Touch(mark)}, protocol=2)}
    if packed:
        folder = tarball(tmp_path / "d" / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    else:
        folder = write(tmp_path / "d", files)
    with pytest.raises(UserInputError, match=rf"{victim} .*asks for \w+\.mkdir.*was run"):
        load(folder)
    assert not mark.exists()
    pickle.loads(files[victim])  # the attack is real: Python's own reader runs it
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"cbuiltins\neval\n(S'1'\ntR.", id="eval"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.view\x93.", id="dotted name"),
        pytest.param(b"cnumpy\nndarray\n(K\x05tR.", id="ndarray called"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension registry"),
        pytest.param(b"\x80\x02U\x01aQ.", id="persistent id"),
        pytest.param(pickle.dumps(np.array([{}], dtype=object)), id="objects in an array"),
        pytest.param(pickle.dumps(np.zeros(3, dtype="f8")), id="floats"),
        pytest.param(pickle.dumps({"labels": [1, 2]})[:-4], id="truncated"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not a pickle", id="text"),
    ],
)
def test_plain_pickles_alone_are_read(content: bytes) -> None:
    with pytest.raises(UserInputError, match="file x cannot be read as a pickle of plain values"):
        load_plain_pickle(content, "file x")


def replaced(name: str, content: bytes) -> Callable[[Path], Path]:
    base = binary_files if name.endswith((".bin", ".txt")) else python_files
    return lambda folder: write(folder, base() | {name: content})


def without(name: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder, {n: c for n, c in binary_files().items() if n != name})


PIXELS = np.zeros((RECORDS, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        pytest.param(lambda folder: folder / "no", "does not exist", id="missing"),
        pytest.param(
            lambda folder: folder,
            "holds no CIFAR-10 as its publisher ships it; expected",
            id="empty",
        ),
        pytest.param(without("data_batch_2.bin"), r"has no data_batch_2\.bin", id="one missing"),
        pytest.param(
            replaced("data_batch_4.bin", b"\0" * 3073 * (RECORDS - 1)),
            rf"data_batch_4\.bin .* has \d+ bytes; expected {3073 * RECORDS}",
            id="short",
        ),
        pytest.param(
            replaced("test_batch.bin", b"\x0a" * 3073 * RECORDS), "label 10; expected", id="label"
        ),
        pytest.param(replaced("batches.meta.txt", b"cat\ndog\n"), "names 2 classes", id="names"),
        pytest.param(
            replaced("data_batch_1", python2_pickle(labels_of(0), PIXELS[:7])),
            r"shape \(7, 3072\)",
            id="few rows",
        ),
        pytest.param(
            replaced("data_batch_1", python2_pickle(labels_of(0)[:5], PIXELS)),
            "and 5 labels",
            id="few labels",
        ),
        pytest.param(
            replaced("data_batch_1", python2_pickle([200] * RECORDS, PIXELS)),
            "labels that are not whole numbers from 0 to 9",
            id="python label",
        ),
        pytest.param(replaced("data_batch_1", pickle.dumps([1])), "holds a list", id="no dict"),
        pytest.param(
            replaced("data_batch_1", pickle.dumps({1: 2})), "expected an array", id="keys"
        ),
        pytest.param(replaced("data_batch_1", b"\x80\x02}"), "cannot be read", id="cut pickle"),
        pytest.param(
            lambda folder: write(folder, {"cifar-10-binary.tar.gz": b"no tarball"}),
            "cannot be read as a gzipped tarball",
            id="no tarball",
        ),
    ],
)
def test_bad_data_is_told(make: Callable[[Path], Path], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=match):
        load(make(tmp_path))


def test_a_truncated_tarball_is_told(tmp_path: Path) -> None:
    folder = LAYOUTS["binary-tarball"](tmp_path / "d")
    archive = folder / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserInputError, match="cannot be read as a gzipped tarball"):
        load(folder)


def test_a_loose_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "LIMIT", 1000)
    with pytest.raises(UserInputError, match="at most 1000 bytes"):
        load(LAYOUTS["binary"](tmp_path / "b"))


@pytest.mark.parametrize("name", ["cifar-10-batches-bin/data_batch_1.bin", "README"])
def test_three_gigabytes_of_zeros_are_refused_by_their_header(name: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.size = 3 << 30
    content = gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    folder = write(tmp_path, {"cifar-10-binary.tar.gz": content})
    with pytest.raises(UserInputError, match=r"would unpack to 3221225472 bytes; expected at most"):
        load(folder)


def test_an_archive_that_goes_on_and_on_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "LIMIT", 1 << 20)
    many = {f"{number}.txt": bytes(600_000) for number in range(3)}
    folder = tarball(tmp_path / "d" / "cifar-10-python.tar.gz", "x", many)
    with pytest.raises(UserInputError, match="unpacks to more than 1048576 bytes"):
        load(folder)


def test_a_pickle_that_claims_billions_of_values_takes_no_memory() -> None:
    tracemalloc.start()
    assert load_plain_pickle(b"\x80\x02]r\xff\xff\xff\x0f.", "file x") == []
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_images_in_folders_name_the_reader_of_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / split / "cat" / "a.jpg")
    with pytest.raises(UserInputError, match=rf"--data folder:{tmp_path} reads"):
        load(tmp_path)


FINE = [f"fine{number:02}" for number in range(100)]


def fine_labels(batch: int) -> list[int]:
    return [(7 * record + batch) % 100 for record in range(RECORDS * (5 if batch == 0 else 1))]


def cifar100_files(kind: str) -> dict[str, bytes]:
    rows = {"train": np.concatenate([pixels_of(b) for b in range(5)]), "test": pixels_of(5)}
    files = {}
    for batch, (name, pixels) in enumerate(rows.items()):
        fine = fine_labels(batch)
        coarse = [label // 5 for label in fine]
        if kind == "binary":
            records = zip(coarse, fine, pixels, strict=True)
            files[f"{name}.bin"] = b"".join(bytes([c, f]) + row.tobytes() for c, f, row in records)
        else:
            value = {b"data": pixels, b"fine_labels": fine, b"coarse_labels": coarse}
            files[name] = pickle.dumps(value, protocol=2)
    if kind == "binary":
        return files | {"fine_label_names.txt": "\n".join(FINE).encode()}
    return files | {"meta": pickle.dumps({b"fine_label_names": [n.encode() for n in FINE]})}


def test_cifar100_has_the_fine_labels_in_every_layout(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", cifar100_files("binary")),
        write(tmp_path / "b" / "cifar-100-python", cifar100_files("python")).parent,
        tarball(
            tmp_path / "c" / "cifar-100-binary.tar.gz", "cifar-100-binary", cifar100_files("binary")
        ),
        tarball(
            tmp_path / "d" / "cifar-100-python.tar.gz", "cifar-100-python", cifar100_files("python")
        ),
    ]
    loaded = [load_data(f"cifar100:{folder}") for folder in folders]
    assert len({data.sha256 for data in loaded}) == 1
    data = loaded[0]
    assert data.classes == tuple(FINE)
    test = data.splits["test"]
    assert test.labels.tolist() == fine_labels(1)
    assert np.array_equal(
        test.images(torch.arange(RECORDS)).numpy(), pixels_of(5).reshape(-1, 3, 32, 32)
    )
    assert sum(len(part) for part in data.splits.values()) == 6 * RECORDS


def test_cifar100_without_names_is_told(tmp_path: Path) -> None:
    files = cifar100_files("binary")
    del files["fine_label_names.txt"]
    with pytest.raises(UserInputError, match=r"has no fine_label_names\.txt"):
        load_data(f"cifar100:{write(tmp_path, files)}")
