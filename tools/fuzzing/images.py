"""Pictures of every format, and the archives that data sets come in."""

import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.data.cifar import load_cifar10
from compress.errors import UserInputError
from compress.runtime.pictures import readings
from compress.runtime.preprocessing import Preprocessing
from tools.fuzzing.kind import Kind
from tools.fuzzing.mutations import damage_bytes, damage_file

__all__ = ["archives", "pictures"]

FORMATS = ("png", "jpg", "bmp", "tiff", "webp", "npy")
SIDE = 16


class _RunsCode:
    """Its pickle makes a folder "canary" in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def pictures(folder: Path) -> Kind:
    """Return the kind of single pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    seeds = []
    for suffix in FORMATS:
        seed = folder / f"picture_{suffix}"
        seed.mkdir()
        if suffix == "npy":
            np.save(seed / "picture.npy", np.zeros((3, SIDE, SIDE), np.float32))
        else:
            Image.fromarray(pixels).save(seed / f"picture.{suffix}")
        seeds.append(seed)
    return Kind(name="picture", seeds=tuple(seeds), mutate=_mutate_picture, read=_read_picture)


def archives(folder: Path) -> Kind:
    """Return the kind of CIFAR-10's archive, much too small, so that reading ends early."""
    seed = folder / "archive"
    seed.mkdir()
    batch = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
    files = {f"data_batch_{i}": pickle.dumps(batch, 2) for i in (1, 2)}
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")}, 2)
    _write_tar(seed / "cifar-10-python.tar.gz", files)
    return Kind(
        name="archive",
        seeds=(seed,),
        mutate=_mutate_archive,
        read=lambda case: _nothing(load_cifar10(case)),
        refusals=(UserInputError,),
    )


def _nothing(_value: object) -> None:
    return None


def _read_picture(case: Path) -> None:
    preprocessing = Preprocessing(
        image_size=SIDE,
        resize="pillow-bicubic",
        resize_size=SIDE,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )
    for reading in readings(sorted(case.iterdir()), (3, SIDE, SIDE), preprocessing):
        reading.read()


def _mutate_picture(rng: random.Random, case: Path) -> None:
    path = next(iter(case.iterdir()))
    if path.suffix == ".png" and rng.random() < 0.4:
        path.write_bytes(_hostile_png(rng))
    elif path.suffix == ".npy" and rng.random() < 0.6:
        path.write_bytes(_hostile_array(rng))
    elif rng.random() < 0.05:
        path.rename(path.with_suffix(f".{rng.choice((*FORMATS, 'gif', 'ppm'))}"))
    else:
        damage_file(rng, path)


def _hostile_png(rng: random.Random) -> bytes:
    """Huge sides, or text that unpacks to a gibibyte."""
    depth, color = rng.choice(((1, 0), (8, 2), (16, 6), (8, 3)))
    side = rng.choice((1, 13_000, 100_000, 2**31 - 1))
    head = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", head)]
    if rng.random() < 0.5:
        text = zlib.compress(bytes(1 << rng.choice((10, 24, 27))), 9)
        chunks.append((rng.choice((b"zTXt", b"iCCP")), b"key\x00\x00" + text))
    chunks += [(b"IDAT", zlib.compress(bytes(1 << rng.choice((4, 20))), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _hostile_array(rng: random.Random) -> bytes:
    file = io.BytesIO()
    if rng.random() < 0.3:
        np.save(file, np.array([_RunsCode()], dtype=object), allow_pickle=True)
        return file.getvalue()
    shape = rng.choice(("(1099511627776,)", "(3, 16, 1048576)", "(-1, 2)", "()", "(0, 3, 16, 16)"))
    dtype = rng.choice(("'<f4'", "'|O'", "'|u1'", "'<f8'", "'|V9'"))
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(64)


def _mutate_archive(rng: random.Random, case: Path) -> None:
    path = case / "cifar-10-python.tar.gz"
    way = rng.randrange(5)
    if way == 0:
        damage_file(rng, path)
    elif way == 1:  # damaged before it is compressed
        plain = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(damage_bytes(rng, plain), 1))
    elif way == 2:
        _write_tar(path, {"data_batch_1": pickle.dumps({"data": _RunsCode()}, 2)})
    elif way == 3:
        _write_tar(path, {rng.choice(("data_batch_1", "other")): bytes(1 << rng.choice((20, 27)))})
    else:
        names = ("../data_batch_1", "/tmp/data_batch_1", "data_batch_1\n", "a" * 300)
        _write_tar(path, {rng.choice(names): rng.randbytes(1000)})


def _write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
