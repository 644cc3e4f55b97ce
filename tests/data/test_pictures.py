from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data.decode_worker import Run, Task, decode_runs
from compress.data.image_data import Preprocessing
from compress.data.pictures import prepare

MEAN = STD = (0.5, 0.5, 0.5)


def recipe(image_size: int, resize_size: int) -> Preprocessing:
    return Preprocessing(
        image_size=image_size,
        resize="pillow-bicubic",
        resize_size=resize_size,
        mean=MEAN,
        std=STD,
    )


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height", "resized", "top", "left"),
    [
        pytest.param(30, 30, (16, 16), 1, 1, id="square"),
        pytest.param(40, 30, (21, 16), 1, 4, id="wide: 16*40/30 = 21.3, (21-14)/2 = 3.5 to even 4"),
        pytest.param(30, 40, (16, 21), 4, 1, id="tall"),
        pytest.param(8, 9, (16, 18), 2, 1, id="enlarged"),
    ],
)
def test_shorter_side_is_resized_and_the_centre_cut(
    width: int, height: int, resized: tuple[int, int], top: int, left: int
) -> None:
    picture = noise(width, height)
    whole = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    expected = whole[top : top + 14, left : left + 14].transpose(2, 0, 1)
    assert np.array_equal(prepare(picture, recipe(14, 16)), expected)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = noise(14, 14)
    assert np.array_equal(prepare(picture, recipe(14, 14)), np.asarray(picture).transpose(2, 0, 1))


def test_a_thread_of_pixels_is_refused_instead_of_filling_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="900 x 1 would be resized to 14400 x 16"):
        prepare(noise(900, 1), recipe(14, 16))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", id="PostScript"),
        pytest.param(b"\xff\xd8\xff\xe0" + b"\0" * 50, id="no JPEG"),
    ],
)
def test_foreign_bytes_are_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    run = Run(first=0, paths=[str(tmp_path / "a.jpg")])
    [[found]] = decode_runs(Task(preprocessing=None), [run])
    assert found.damage is not None
    assert "no image of the formats" in found.damage
