import contextlib
import io
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compress.errors import ToolchainError, UserInputError
from compress.runtime import pictures
from compress.runtime.pictures import (
    DamagedPictureError,
    open_picture,
    prepare,
    read_picture,
    readings,
)
from compress.runtime.preprocessing import Preprocessing

SIZE = 4
SHAPE = (3, SIZE, SIZE)
RECIPE = Preprocessing(
    image_size=SIZE,
    resize="pillow-bicubic",
    resize_size=5,
    mean=(0.5, 0.25, 0.0),
    std=(0.5, 0.25, 1.0),
)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(path: Path, array: np.ndarray) -> Path:
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version=(1, 0))
    return path


def read_all(path: Path, preprocessing: Preprocessing | None = RECIPE) -> list[np.ndarray]:
    return [each.read() for each in readings([path], SHAPE, preprocessing)]


def old_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow 7.0 has no `formats` and no `Resampling`."""

    def opened(file, mode="r"):
        return Image.open(file, mode)

    names = SimpleNamespace(
        open=opened, BICUBIC=Image.Resampling.BICUBIC, MAX_IMAGE_PIXELS=Image.MAX_IMAGE_PIXELS
    )
    monkeypatch.setattr(pictures, "pillow", lambda: names)


def test_a_picture_is_decoded_resized_and_cut(tmp_path):
    noise(10, 20).save(tmp_path / "a.png")
    whole = noise(10, 20).resize((5, 10), Image.Resampling.BICUBIC)
    # (10 - 4) / 2 = 3 rows from the top; (5 - 4) / 2 = 0.5, which rounds to the even 0
    expected = np.asarray(whole)[3:7, 0:4].transpose(2, 0, 1)
    found = read_picture(tmp_path / "a.png", RECIPE)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_mode_of_8_bits_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    noise(5, 5).convert("RGBA" if mode == "LA" else "RGB").convert(mode).save(path)
    with Image.open(path) as image:
        expected = prepare(image.convert("RGB"), RECIPE)
    assert np.array_equal(read_picture(path, RECIPE), expected)


def test_old_pillow_gives_the_same_pixels(tmp_path, monkeypatch):
    noise(10, 20).save(tmp_path / "a.png")
    expected = read_picture(tmp_path / "a.png", RECIPE)
    old_pillow(monkeypatch)
    assert np.array_equal(read_picture(tmp_path / "a.png", RECIPE), expected)


@pytest.mark.parametrize("old", [False, True])
def test_only_five_formats_are_opened(tmp_path, monkeypatch, old):
    if old:
        old_pillow(monkeypatch)
    noise(5, 5).save(tmp_path / "a.gif")
    noise(5, 5).save(tmp_path / "a.eps")
    (tmp_path / "a.gif").rename(tmp_path / "gif.png")
    (tmp_path / "a.eps").rename(tmp_path / "eps.png")
    for name in ("gif.png", "eps.png"):
        with pytest.raises(UserInputError, match="no image of the formats BMP, JPEG, PNG"):
            read_picture(tmp_path / name, RECIPE)


@pytest.mark.parametrize("old", [False, True])
def test_a_jpeg_with_a_second_one_behind_it_is_a_jpeg(tmp_path, monkeypatch, old):
    noise(5, 5).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise(5, 5)])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    if old:
        old_pillow(monkeypatch)
    assert read_picture(tmp_path / "a.jpg", RECIPE).shape == SHAPE


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "no image of the formats", id="empty"),
        pytest.param(b"hello", "no image of the formats", id="text"),
    ],
)
def test_damage_names_the_file(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=rf"image {path} cannot be decoded \({reason}"):
        read_picture(path, RECIPE)


def test_a_truncated_picture_is_damage(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"):
        noise(50, 50).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserInputError, match=f"{name} cannot be decoded"):
            read_picture(tmp_path / name, RECIPE)


def test_16_bits_are_refused_instead_of_a_white_picture(tmp_path):
    Image.fromarray(np.full((5, 5), 40_000, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserInputError, match="expected 8 bits a channel"):
        read_picture(tmp_path / "a.png", RECIPE)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserInputError, match="No such file"):
        read_picture(tmp_path / "a.png", RECIPE)


@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserInputError, match="it is not a file"):
        read_all(tmp_path / name)


def test_what_the_block_raises_is_damage_too():
    file = io.BytesIO()
    noise(5, 5).save(file, "PNG")
    with pytest.raises(DamagedPictureError, match=r"^no$"), open_picture(file):
        raise RuntimeError("no")


def test_readings_are_normalised(tmp_path):
    noise(5, 5).save(tmp_path / "a.png")
    (image,) = read_all(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png", RECIPE).astype(np.float64) / 255
    mean, std = (np.array(rgb)[:, None, None] for rgb in (RECIPE.mean, RECIPE.std))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, (pixels - mean) / std, rtol=0, atol=1e-6)


def test_nothing_is_decoded_before_it_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"damaged")
    (tmp_path / "b.npy").write_bytes(b"damaged")
    found = list(readings([tmp_path / "a.png", tmp_path / "b.npy"], SHAPE, RECIPE))
    assert [each.name for each in found] == [str(tmp_path / "a.png"), str(tmp_path / "b.npy")]
    for each in found:
        with pytest.raises(UserInputError, match=str(each.name)):
            each.read()


def test_without_pillow_pictures_are_refused_at_once_and_arrays_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    saved(tmp_path / "a.npy", np.zeros(SHAPE, np.float32))
    assert len(read_all(tmp_path / "a.npy")) == 1
    with pytest.raises(ToolchainError, match=r"pip install pillow, or give .* \.npy files"):
        readings([tmp_path / "a.npy", tmp_path / "a.png"], SHAPE, RECIPE)
    with pytest.raises(ToolchainError, match="Pillow"):  # never taken for damage of the file
        read_picture(tmp_path / "a.png", RECIPE)


def test_a_bundle_without_preprocessing_takes_prepared_images_alone(tmp_path):
    prepared = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    assert np.array_equal(read_all(saved(tmp_path / "a.npy", prepared), None)[0], prepared)
    with pytest.raises(UserInputError, match="does not say how to prepare"):
        readings([tmp_path / "a.png"], SHAPE, None)
    path = saved(tmp_path / "b.npy", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserInputError, match=r"holds uint8 .* expected float32 of shape"):
        read_all(path, None)


@pytest.mark.parametrize("count", [None, 1, 3])
def test_pixels_and_prepared_images_of_an_array(tmp_path, count):
    shape = SHAPE if count is None else (count, *SHAPE)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path, other = saved(tmp_path / "a.npy", pixels), tmp_path / "b.NPY"
    saved(other, RECIPE.normalize_array(pixels))
    names = [each.name for each in readings([path], SHAPE, RECIPE)]
    assert names == ([str(path)] if count is None else [f"{path}[{i}]" for i in range(count)])
    expected = RECIPE.normalize_array(pixels.reshape(-1, *SHAPE))
    for found in (read_all(path), read_all(other)):
        assert np.array_equal(np.stack(found), expected)
        assert found[0].dtype == np.float32


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        pytest.param(np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\); expected", id="size"),
        pytest.param(np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\); expected", id="layout"),
        pytest.param(np.zeros((0, *SHAPE), np.uint8), r"shape \(0, 3, 4, 4\)", id="none"),
        pytest.param(np.zeros((1, 1, *SHAPE), np.uint8), r"shape \(1, 1, 3, 4, 4\)", id="axes"),
        pytest.param(np.zeros((), np.uint8), r"shape \(\)", id="scalar"),
        pytest.param(np.zeros(SHAPE, np.float64), "float64", id="float64"),
        pytest.param(np.zeros(SHAPE, np.float16), "float16", id="float16"),
        pytest.param(np.zeros(SHAPE, np.int8), "int8", id="int8"),
        pytest.param(np.zeros(SHAPE, ">f4"), ">f4", id="byte order"),
        pytest.param(np.zeros(SHAPE, bool), "bool", id="bool"),
        pytest.param(np.zeros(SHAPE[::-1], np.uint8).T, "Fortran", id="Fortran"),
        pytest.param(np.full(SHAPE, np.nan, np.float32), "not finite", id="NaN"),
        pytest.param(np.full(SHAPE, np.inf, np.float32), "not finite", id="infinite"),
    ],
)
def test_another_array_is_refused(tmp_path, array, reason):
    path = saved(tmp_path / "a.npy", array)
    with pytest.raises(UserInputError, match=reason) as caught:
        read_all(path)
    assert str(path) in str(caught.value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickled_objects_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    Path("b.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(UserInputError, match=f"image {name} cannot be read"):
            read_all(Path(name))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("change", [-1, 1, -16 * 3])
def test_an_array_of_another_length_than_its_header_says(tmp_path, change):
    path = saved(tmp_path / "a.npy", np.zeros((2, *SHAPE), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x" * change)
    with pytest.raises(UserInputError, match="bytes, its header says"):
        read_all(path)


@pytest.mark.parametrize(
    "shape", ["(1000000000, 3, 4, 4)", "(1 << 70,)", "(-1, 3, 4, 4)", "(" * 50]
)
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    length = len(header).to_bytes(2, "little")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + length + header.encode())
    with pytest.raises(UserInputError, match="cannot be read"):
        read_all(tmp_path / "a.npy")


def test_an_array_that_is_cut_off_between_header_and_reading(tmp_path):
    path = saved(tmp_path / "a.npy", np.zeros((2, *SHAPE), np.uint8))
    first, second = readings([path], SHAPE, RECIPE)
    path.write_bytes(path.read_bytes()[:-1])
    assert first.read().shape == SHAPE
    with pytest.raises(UserInputError, match="was cut off"):
        second.read()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 127 + 48), st.integers(0, 255), st.integers(0, 200))
def test_spoiled_arrays_are_read_or_refused(tmp_path_factory, place, byte, length):
    path = saved(tmp_path_factory.mktemp("spoiled") / "a.npy", np.zeros(SHAPE, np.uint8))
    content = bytearray(path.read_bytes())
    content[place] = byte
    path.write_bytes(content[:length] if length < 100 else content)
    for each in readings([path], SHAPE, RECIPE):
        with contextlib.suppress(UserInputError):  # any other error fails this test
            image = each.read()
            assert image.shape == SHAPE
            assert image.dtype == np.float32
