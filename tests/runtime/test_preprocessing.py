"""Preprocessing as data: what is done to a picture, by Pillow and numpy alone."""

import numpy as np
import pytest
from PIL import Image

from compress.errors import UserInputError
from compress.runtime.pictures import prepare, with_channels
from compress.runtime.preprocessing import Preprocessing

RGB = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def ramp(height: int, width: int) -> Image.Image:
    """A picture in which every pixel tells its place."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows, columns, rows + columns], -1).astype(np.uint8))


def planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def test_a_picture_of_the_size_is_taken_untouched_where_that_is_asked_for() -> None:
    image = ramp(8, 8)
    exact = Preprocessing(8, "pillow-bicubic", 9, **RGB, untouched_at_size=True)
    published = Preprocessing(8, "pillow-bicubic", 9, **RGB)
    assert (prepare(image, exact) == planes(image)).all()
    wanted = image.resize((9, 9), Image.Resampling.BICUBIC).crop((0, 0, 8, 8))
    assert (prepare(image, published) == planes(wanted)).all()


def test_bilinear_is_pillows_bilinear() -> None:
    image = ramp(20, 30)
    wanted = image.resize((15, 10), Image.Resampling.BILINEAR).crop((2, 0, 12, 10))
    assert (prepare(image, Preprocessing(10, "pillow-bilinear", 10, **RGB)) == planes(wanted)).all()


def test_a_rectangle_is_covered_and_cut_at_its_centre() -> None:
    image = ramp(40, 40)
    wanted = image.resize((16, 16), Image.Resampling.BICUBIC).crop((4, 0, 12, 16))
    prepared = prepare(image, Preprocessing((16, 8), "pillow-bicubic", 8, **RGB))
    assert prepared.shape == (3, 16, 8)
    assert (prepared == planes(wanted)).all()


def test_the_centre_is_cut_without_resizing() -> None:
    image = ramp(12, 10)
    wanted = planes(image)[:, 2:10, 1:9]
    assert (prepare(image, Preprocessing(8, "crop", 8, **RGB)) == wanted).all()
    with pytest.raises(ValueError, match="7x10 pixels, expected at least 8x8"):
        prepare(ramp(7, 10), Preprocessing(8, "crop", 8, **RGB))


def test_without_resizing_another_size_is_refused() -> None:
    only = Preprocessing(8, "none", 8, **RGB)
    assert (prepare(ramp(8, 8), only) == planes(ramp(8, 8))).all()
    with pytest.raises(ValueError, match="9x8 pixels, expected 8x8"):
        prepare(ramp(9, 8), only)


def test_grey_and_four_bands() -> None:
    grey = Preprocessing((2, 3), "none", 2, mean=(0.1,), std=(0.2,))
    assert prepare(with_channels(ramp(2, 3), 1), grey).shape == (1, 2, 3)
    bands = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "RGBA")
    four = Preprocessing((2, 3), "none", 2, mean=(0,) * 4, std=(1,) * 4)
    assert prepare(with_channels(bands, 4), four)[3].tolist() == [[3, 7, 11], [15, 19, 23]]
    with pytest.raises(ValueError, match="it has 3 channels, the network takes 4"):
        with_channels(ramp(2, 2), 4)


@pytest.mark.parametrize(
    "made",
    [
        Preprocessing((256, 128), "pillow-bilinear", 140, (0.1,), (0.2,), untouched_at_size=True),
        Preprocessing(32, "none", 32, **RGB),
    ],
)
def test_json_and_back(made: Preprocessing) -> None:
    assert Preprocessing.from_dict(made.to_dict()) == made


def test_what_was_written_before_there_was_a_choice_is_read_as_it_was() -> None:
    told = Preprocessing(224, "pillow-bicubic", 256, **RGB).to_dict()
    assert "untouched_at_size" not in told
    assert not Preprocessing.from_dict(told).untouched_at_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"image_size": "32"}, "a size in pixels is '32'", id="text"),
        pytest.param({"image_size": [1, 2, 3]}, "height and width", id="three sides"),
        pytest.param({"image_size": 1 << 30}, "at most 16384", id="giant"),
        pytest.param({"mean": [0.0]}, "one finite number a channel", id="lengths differ"),
        pytest.param({"std": [1, 1, float("nan")]}, "above 0", id="not a number"),
        pytest.param({"mean": None}, "expected numbers", id="none"),
        pytest.param({"mean": "555"}, "expected numbers", id="text for a list"),
        pytest.param({"std": ["0.5", "0.5", "0.5"]}, "expected numbers", id="text in a list"),
        pytest.param({"resize": "nearest"}, "expected one of", id="unknown filter"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str) -> None:
    told = {**Preprocessing(32, "none", 32, **RGB).to_dict(), **change}
    with pytest.raises(UserInputError, match=message):
        Preprocessing.from_dict(told)


def test_something_else_in_its_place_is_refused() -> None:
    with pytest.raises(UserInputError, match="preprocessing is a list"):
        Preprocessing.from_dict([1])


def test_told_in_one_line() -> None:
    made = Preprocessing(224, "pillow-bicubic", 256, **RGB)
    assert made.describe() == (
        "shorter side resized to 256 (bicubic), centre 224x224 cut out, "
        "RGB / 255, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    )
    assert Preprocessing(32, "none", 32, **RGB).describe().startswith("32x32 taken as it is, RGB")
