"""Pictures that take gigabytes or minutes are refused by what their headers say."""

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.errors import UserInputError
from compress.runtime import pictures
from compress.runtime.pictures import read_picture
from compress.runtime.preprocessing import Preprocessing

RECIPE = Preprocessing(
    image_size=16, resize="pillow-bicubic", resize_size=18, mean=(0.5,) * 3, std=(0.5,) * 3
)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def zeros(count: int) -> bytes:
    pack = zlib.compressobj(9)
    parts = [pack.compress(bytes(min(1 << 24, count - at))) for at in range(0, count, 1 << 24)]
    return b"".join(parts) + pack.flush()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_one_bit_picture_of_176_million_pixels_is_refused_at_once(tmp_path: Path) -> None:
    rows = zeros(13_300 * (1 + 13_304 // 8))
    (tmp_path / "a.png").write_bytes(png(13_300, 13_300, 1, 0, rows))
    started = time.process_time()
    with pytest.raises(UserInputError, match="13300 x 13300 are 176 million pixels, expected at"):
        read_picture(tmp_path / "a.png", RECIPE)
    assert time.process_time() - started < 0.5  # decoding takes seconds and 0.9 GB


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_gigabyte_of_compressed_text_is_refused_at_once(kind: bytes, tmp_path: Path) -> None:
    text = chunk(kind, b"a\0\0" + zeros(1 << 26) * 16)
    rows = zlib.compress(bytes(16 * 49))
    (tmp_path / "a.png").write_bytes(png(16, 16, 8, 2, rows, text))
    started = time.process_time()
    with pytest.raises(UserInputError, match=r"a\.png cannot be decoded"):
        read_picture(tmp_path / "a.png", RECIPE)
    assert time.process_time() - started < 0.5


def test_a_file_of_more_bytes_than_any_picture_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.bmp", "wb") as file:
        os.truncate(file.fileno(), pictures.MOST_BYTES + 1)
    with pytest.raises(UserInputError, match="536870913 bytes, expected at most 536870912"):
        read_picture(tmp_path / "a.bmp", RECIPE)


def smooth(side: int) -> Image.Image:
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (side, 1))] * 3, axis=2))


def test_a_jpeg_of_many_pixels_is_decoded_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth(400).save(tmp_path / "a.jpg", quality=95)
    expected = read_picture(tmp_path / "a.jpg", RECIPE).astype(int)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 10_000)
    drafted = read_picture(tmp_path / "a.jpg", RECIPE).astype(int)
    assert np.abs(drafted - expected).max() <= 3
    assert (drafted != expected).any()  # so it did go another way


@pytest.mark.parametrize(
    ("resize", "progressive"),
    [
        pytest.param("pillow-bicubic", True, id="progressive, which is held whole"),
        pytest.param("crop", False, id="not resized, so a smaller one shows something else"),
    ],
)
def test_a_jpeg_that_cannot_be_decoded_smaller_is_refused(
    resize: str, progressive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth(400).save(tmp_path / "a.jpg", progressive=progressive)
    recipe = Preprocessing(
        image_size=16, resize=resize, resize_size=18, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    monkeypatch.setattr(pictures, "MOST_PIXELS", 10_000)
    with pytest.raises(UserInputError, match="400 x 400 are 0 million pixels"):
        read_picture(tmp_path / "a.jpg", recipe)
