import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compress.data.folder import load_folder
from compress.data.image_data import ImageData, Preprocessing
from compress.data.spec import load_data
from compress.data.splits import SHARES, SPLITS, split_counts
from compress.errors import UserInputError

SIZE = 14  # 256/224 of it is 16


def picture(seed: int, size: tuple[int, int] = (16, 16), format_: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_)
    return file.getvalue()


def make(root: Path, counts: dict[str, int], extension: str = "png", format_: str = "PNG") -> Path:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            content = picture(1000 * label + number, format_=format_)
            (root / name / f"{name}_{number:03}.{extension}").write_bytes(content)
    return root


def load(folder: Path, seed: int = 0) -> ImageData:
    return load_data(f"folder:{folder}", image_size=SIZE, seed=seed)


def files_of(data: ImageData, split: str) -> list[str]:
    part = data.splits[split]
    return [Path(part.source.paths[place]).name for place in part.positions.tolist()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("nest", "extension", "format_"),
    [
        pytest.param("NWPU-RESISC45", "jpg", "JPEG", id="RESISC45"),
        pytest.param("UCMerced_LandUse/Images", "tif", "TIFF", id="UC Merced"),
        pytest.param("x", "JPEG", "JPEG", id="upper case"),
        pytest.param("x", "bmp", "BMP", id="bmp"),
        pytest.param("x", "webp", "WEBP", id="webp"),
    ],
)
def test_class_folders_as_they_are_shipped(
    nest: str, extension: str, format_: str, tmp_path: Path
) -> None:
    root = make(tmp_path / nest, {"beach": 20, "airport": 10}, extension, format_)
    (root / "readme.txt").write_text("hello")
    (root / "beach" / "Thumbs.db").write_bytes(b"x")
    (root / "beach" / "._beach_000.jpg").write_bytes(b"x")
    (root / ".git").mkdir()
    data = load(tmp_path / Path(nest).parts[0])
    assert data.classes == ("airport", "beach")
    for split in SPLITS:
        names = files_of(data, split)
        labels = data.splits[split].labels.tolist()
        assert [data.classes[label] for label in labels] == [n.split("_")[0] for n in names]
        assert labels.count(1) == split_counts(20, SHARES)[split]
        assert labels.count(0) == split_counts(10, SHARES)[split]


def test_images_are_prepared_by_the_published_recipe(tmp_path: Path) -> None:
    data = load(make(tmp_path, {"a": 8, "b": 8}))
    assert data.preprocessing.resize_size == 16
    assert data.preprocessing.mean == (0.485, 0.456, 0.406)
    train = data.splits["train"]
    images = train.images(torch.tensor([2, 0]))
    path = tmp_path / "a" / files_of(data, "train")[2]
    expected = np.asarray(Image.open(path))[1:15, 1:15].transpose(2, 0, 1)  # 16, so not resized
    assert images.dtype == torch.uint8
    assert np.array_equal(images[0].numpy(), expected)


def test_the_size_is_that_of_the_images_where_they_have_one(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 4, "b": 4})
    data = load_data(f"folder:{root}")
    assert data.preprocessing.size == (16, 16)
    test = data.splits["test"]
    expected = np.asarray(Image.open(root / "a" / files_of(data, "test")[0])).transpose(2, 0, 1)
    assert np.array_equal(test.images(torch.tensor([0]))[0].numpy(), expected)


def test_a_size_is_asked_for_where_images_have_several(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 100, "b": 100})
    (root / "a" / "a_001.png").write_bytes(picture(0, (16, 20)))  # not among those looked at first
    with pytest.raises(UserInputError, match=r"several sizes, .*give one with --image-size"):
        load_data(f"folder:{root}")
    (root / "a" / "a_000.png").write_bytes(picture(0, (16, 20)))
    with pytest.raises(UserInputError, match=r"as a/a_000\.png 20x16 and a/a_004\.png 16x16"):
        load_data(f"folder:{root}")
    assert load_data(f"folder:{root}", image_size=(20, 16)).preprocessing.size == (20, 16)


def test_images_of_the_asked_size_are_neither_resized_nor_cut(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 4, "b": 4})
    data = load_data(f"folder:{root}", image_size=16)
    expected = np.asarray(Image.open(root / "a" / files_of(data, "test")[0])).transpose(2, 0, 1)
    assert np.array_equal(data.splits["test"].images(torch.tensor([0]))[0].numpy(), expected)


def test_what_a_checkpoint_records_is_done_to_the_pixels(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 4, "b": 4})
    recorded = Preprocessing(
        image_size=(8, 12), resize="crop", resize_size=8, mean=(0.5,), std=(0.25,)
    )
    data = load_data(f"folder:{root}", preprocessing=recorded)
    path = root / "a" / files_of(data, "test")[0]
    expected = np.asarray(Image.open(path).convert("L"))[4:12, 2:14]
    images = data.splits["test"].images(torch.tensor([0]))
    assert np.array_equal(images[0, 0].numpy(), expected)
    assert data.normalize(images).shape == (1, 1, 8, 12)
    with pytest.raises(UserInputError, match=r"--image-size is 8x8, but .* 8x12"):
        load_data(f"folder:{root}", preprocessing=recorded, image_size=8)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(4, 40), min_size=2, max_size=4),
    st.integers(0, 2**31),
)
def test_splits_never_overlap_and_leave_nothing_out(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    content = picture(0, (1, 1), "BMP")
    root = tmp_path_factory.mktemp("data")
    for label, size in enumerate(sizes):
        (root / f"c{label}").mkdir()
        for number in range(size):
            (root / f"c{label}" / f"c{label}_{number}.bmp").write_bytes(content)
    data = load(root, seed)
    held = [set(files_of(data, split)) for split in SPLITS]
    assert sum(map(len, held)) == len(set.union(*held)) == sum(sizes)
    for part in data.splits.values():
        assert part.labels.unique().tolist() == list(range(len(sizes)))


def test_a_split_depends_on_seed_and_class_alone(tmp_path: Path) -> None:
    first = load(make(tmp_path / "one", {"a": 20, "b": 20}))
    second = load(make(tmp_path / "two", {"a": 20, "b": 7, "c": 5}))
    for split in SPLITS:
        mine = [name for name in files_of(first, split) if name.startswith("a_")]
        assert mine == [name for name in files_of(second, split) if name.startswith("a_")]
    assert files_of(load(tmp_path / "one", seed=1), "test") != files_of(first, "test")


def test_identity_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    root = make(tmp_path / "one", {"a": 5, "b": 5})
    before = load(root).sha256
    assert load(make(tmp_path / "two", {"a": 5, "b": 5})).sha256 == before
    (root / "a" / "a_003.png").write_bytes(picture(77))
    changed = load(root).sha256
    assert changed != before
    (root / "a" / "a_003.png").rename(root / "a" / "a_009.png")
    assert load(root).sha256 not in (before, changed)


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Training", "TESTING"), ("TRAIN", "Test")]
)
def test_given_splits_are_kept(
    train: str, test: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "set" / train, {"a": 20, "b": 10})
    make(tmp_path / "set" / test, {"a": 3, "b": 2})
    (tmp_path / "set" / "labels.csv").write_text("a,b")
    with caplog.at_level("INFO"):
        data = load(tmp_path)
    testing = data.splits["test"]
    places = [Path(testing.source.paths[place]) for place in testing.positions.tolist()]  # type: ignore[attr-defined]
    assert {path.parent.parent.name for path in places} == {test}
    counts = {split: len(part) for split, part in data.splits.items()}
    assert counts == {"train": 24, "validation": 3, "calibration": 3, "test": 5}
    line = next(line for line in caplog.messages if line.startswith("folder:"))
    assert f"{test}/ is test" in line
    assert f"{train}/ is train" in line
    assert "2 classes, train 24, validation 3, calibration 3, test 5" in line
    assert "validation and calibration out of train" in line
    assert "passed over 1 file (.csv 1)" in line


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_given_validation_images_are_kept_too(name: str, tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": 20, "b": 10})
    make(tmp_path / name, {"a": 2, "b": 2})
    data = load(tmp_path)
    assert len(data.splits["validation"]) == 4
    assert sum(len(data.splits[split]) for split in ("train", "calibration", "test")) == 30
    assert min(len(part) for part in data.splits.values()) >= 2


def test_a_folder_of_test_images_alone_gives_them_and_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "test", {"a": 1, "b": 2})
    with caplog.at_level("INFO"):
        data = load(tmp_path)
    assert "there is no train folder" in caplog.text
    assert {split: len(part) for split, part in data.splits.items()} == {"test": 3}
    with pytest.raises(UserInputError, match="has test images alone, and train images are needed"):
        data.splits["train"]


def test_a_folder_of_training_images_alone_is_divided(tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": 20, "b": 20})
    counts = {split: len(part) for split, part in load(tmp_path).splits.items()}
    assert counts == {split: 2 * count for split, count in split_counts(20, SHARES).items()}


def test_train_is_a_class_beside_other_vehicles(tmp_path: Path) -> None:
    root = make(tmp_path, {"bus": 4, "car": 4, "train": 4})
    assert load(root).classes == ("bus", "car", "train")


def test_images_without_labels_are_no_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "train", {"a": 20, "b": 20})
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.png").write_bytes(picture(1))
    with caplog.at_level("INFO"):
        data = load(tmp_path)
    assert "folders not used: test" in caplog.text
    assert len(data.splits["test"]) == 8  # out of train


def test_deeper_folders_belong_to_their_class(tmp_path: Path) -> None:
    make(tmp_path / "a", {"2019": 3, "2020": 3})  # the same file names in both would clash
    make(tmp_path / "b" / "x" / "y", {"z": 5})
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert sum(len(part) for part in data.splits.values()) == 11


def test_litter_is_counted_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make(tmp_path, {"a": 5, "b": 5})
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "._a_000.png"):
        (root / "a" / name).write_bytes(b"x")
    make(root / "a" / "@eaDir", {"a_000.png": 1})
    make(root / "__MACOSX", {"a": 3})
    (root / "annotations").mkdir()
    (root / "annotations" / "a.xml").write_text("<a/>")
    (root / "loop").symlink_to(root)
    (root / "cover.png").write_bytes(picture(0))
    with caplog.at_level("INFO"):
        data = load(root)
    assert data.classes == ("a", "b")
    assert sum(len(part) for part in data.splits.values()) == 10
    assert "passed over 9 files (hidden 2, " in caplog.text
    assert "folders not used: annotations" in caplog.text


@pytest.mark.parametrize(("extension", "mode"), [("ppm", "RGB"), ("pgm", "L"), ("pbm", "1")])
def test_portable_pixmaps_are_images(extension: str, mode: str, tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 4, "b": 4})
    for path in sorted(root.rglob("*.png")):
        Image.open(path).convert(mode).save(path.with_suffix(f".{extension}"), "PPM")
        path.unlink()
    data = load_data(f"folder:{root}")
    name = files_of(data, "test")[0]
    expected = np.asarray(Image.open(root / "a" / name).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(data.splits["test"].images(torch.tensor([0]))[0].numpy(), expected)


def damaged(content: Callable[[bytes], bytes], format_: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content(picture(5, (64, 64), format_)))

    return damage


def deep(path: Path) -> None:
    Image.fromarray(np.full((16, 16), 4000, dtype=np.uint16)).save(path, "PNG")


def gif(path: Path) -> None:
    path.write_bytes(picture(0, format_="GIF"))


DAMAGES = {
    "empty": damaged(lambda content: b"", "PNG"),
    "text": damaged(lambda content: b"hello", "PNG"),
    "truncated jpeg": damaged(lambda content: content[: len(content) // 2], "JPEG"),
    "jpeg short of 40 bytes": damaged(lambda content: content[:-40], "JPEG"),
    "truncated png": damaged(lambda content: content[: len(content) // 2], "PNG"),
    "flipped png": damaged(lambda c: c[:300] + bytes([c[300] ^ 1]) + c[301:], "PNG"),
    "truncated tiff": damaged(lambda content: content[: len(content) // 2], "TIFF"),
    "truncated webp": damaged(lambda content: content[: len(content) // 2], "WEBP"),
    "16 bits": deep,
    "another format": gif,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_named(damage: str, tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 5, "b": 5})
    DAMAGES[damage](root / "b" / "b_002.png")
    with pytest.raises(UserInputError, match=r"1 of 10 images cannot be decoded: .*b_002\.png \("):
        load(root)


def test_many_damaged_images_are_counted(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 9, "b": 9})
    for path in sorted((root / "a").iterdir())[:7]:
        path.write_bytes(b"")
    with pytest.raises(UserInputError, match="7 of 18 images cannot be decoded") as caught:
        load(root)
    assert str(caught.value).count(".png") == 5
    assert "and 2 more" in str(caught.value)


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path, {"a": 4, "b": 4})
    (root / "a" / "a_001.png").write_bytes(picture(0, (60, 60)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserInputError, match=r"a_001\.png .*decompression bomb"):
        load(root)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda path: path.unlink(), "No such file", id="gone"),
        pytest.param(lambda path: path.write_bytes(b"x"), "no image of the formats", id="bytes"),
        pytest.param(gif, "no image of the formats", id="another format"),
        pytest.param(deep, "expected 8 bits", id="deep"),
    ],
)
def test_an_image_that_is_spoiled_later_is_named(
    spoil: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    root = make(tmp_path, {"a": 5, "b": 5})
    data = load_data(f"folder:{root}", image_size=SIZE, cache="off")
    victim = root / "a" / files_of(data, "train")[1]
    spoil(victim)
    with pytest.raises(UserInputError, match=rf"{victim.name} cannot be decoded \(.*{reason}"):
        list(data.splits["train"].batches(2))


def presplit(**classes: list[str]) -> Callable[[Path], Path]:
    def arrange(root: Path) -> Path:
        for split, names in classes.items():
            make(root / split, dict.fromkeys(names, 9))
        return root

    return arrange


@pytest.mark.parametrize(
    ("arrange", "match"),
    [
        pytest.param(lambda root: root / "no", "does not exist", id="missing"),
        pytest.param(lambda root: root, "holds no class folders", id="empty"),
        pytest.param(lambda root: make(root, {"a": 9}), "the class folder a alone", id="one class"),
        pytest.param(
            lambda root: make(root, {"a": 9, "b": 3}),
            "class b in .* has 3 images; expected at least 4",
            id="few",
        ),
        pytest.param(
            lambda root: make(root, {"a": 9, "b": 0}), "class b in .* has 0 images", id="none"
        ),
        pytest.param(
            presplit(train=["a", "b"], test=["a", "c"]),
            r"the test folder lacks or adds the classes \['b', 'c'\]",
            id="other classes",
        ),
        pytest.param(
            presplit(train=["a", "b"], val=["a", "b"], validation=["a", "b"]),
            "two of them for one split",
            id="twice",
        ),
    ],
)
def test_a_bad_layout_is_told(arrange: Callable[[Path], Path], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=match):
        load(arrange(tmp_path))


def test_a_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="image size is 0"):
        load_folder(make(tmp_path, {"a": 4, "b": 4}), image_size=0)
