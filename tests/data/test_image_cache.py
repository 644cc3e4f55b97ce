import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from compress.data import first_pass, image_cache
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import ToolchainError, UserInputError


def make(root: Path, count: int = 6, *, side: int = 12) -> Path:
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg", quality=90)
    return root


def load(root: Path, cache: Path | str, seed: int = 0) -> ImageData:
    return load_data(f"folder:{root}", image_size=12, cache=cache, seed=seed)


def pixels_of(data: ImageData) -> dict[str, np.ndarray]:
    return {
        name: split.images(torch.arange(len(split))).numpy() for name, split in data.splits.items()
    }


def assert_same(first: ImageData, second: ImageData) -> None:
    assert first.sha256 == second.sha256
    for name, pixels in pixels_of(first).items():
        assert np.array_equal(pixels, pixels_of(second)[name])


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.images"))


def test_the_second_epoch_and_the_second_run_touch_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data")
    fresh = load(root, "off")
    expected = pixels_of(fresh)
    load(root, tmp_path / "cache")
    monkeypatch.setattr(Image, "open", None)  # any call fails
    again = load(root, tmp_path / "cache")
    for pixels in (pixels_of(again), pixels_of(again)):
        assert all(np.array_equal(pixels[name], expected[name]) for name in expected)
    assert again.sha256 == fresh.sha256
    batches = list(again.splits["train"].batches(3, order=torch.tensor([4, 0, 4, 1])))
    got = torch.cat([images for images, _ in batches]).numpy()
    assert np.array_equal(got, expected["train"][[4, 0, 4, 1]])


def test_one_file_serves_every_seed_and_normalisation(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    first = load(root, tmp_path / "cache")
    assert load(root, tmp_path / "cache", seed=3).sha256 != first.sha256
    assert len(files(tmp_path / "cache")) == 1
    load_data(f"folder:{root}", image_size=8, cache=tmp_path / "cache")
    assert len(files(tmp_path / "cache")) == 2


def test_a_changed_picture_is_seen(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    before = load(root, tmp_path / "cache")
    path = root / "a" / "3.jpg"
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 64
    path.write_bytes(content)  # of the same size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # and said to be as old
    after = load(root, tmp_path / "cache")
    assert after.sha256 != before.sha256
    assert_same(after, load(root, "off"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "magic": lambda path: flip(path, 3),
    "header": lambda path: flip(path, 40),
    "table": lambda path: flip(path, 4096 + 7),
    "pixels": lambda path: flip(path, path.stat().st_size - 5),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no json": lambda path: path.write_bytes(
        b"compress.images/1\n[]".ljust(path.stat().st_size, b"\0")
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_never_believed(damage: str, tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    expected = load(root, tmp_path / "cache")
    held = pixels_of(expected)
    [file] = files(tmp_path / "cache")
    DAMAGES[damage](file)
    again = load(root, tmp_path / "cache")
    assert again.sha256 == expected.sha256
    assert all(np.array_equal(pixels_of(again)[name], held[name]) for name in held)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_flipped_bit_gives_the_same_images(tmp_path: Path, data: st.DataObject) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    if not root.exists():
        make(root, 4)
    expected = pixels_of(load(root, "off"))
    load(root, cache)
    [file] = files(cache)
    flip(file, data.draw(st.integers(0, file.stat().st_size - 1)))
    got = pixels_of(load(root, cache))
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_damaged_pictures_leave_no_file(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    (root / "a" / "0.jpg").write_bytes(b"x")
    with pytest.raises(UserInputError, match="1 of 12 images cannot be decoded"):
        load(root, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_too_many_pixels_are_decoded_in_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make(tmp_path / "data")
    monkeypatch.setattr(image_cache, "LARGEST", 5000)
    with caplog.at_level(logging.INFO):
        data = load(root, tmp_path / "cache")
    assert "12 images would take" in caplog.text
    assert "decoded in every epoch" in caplog.text
    assert_same(data, load(root, "off"))
    [file] = files(tmp_path / "cache")
    assert file.stat().st_size == 8192  # header and table alone, so that files are not read again
    monkeypatch.setattr(first_pass, "decode_runs", None)
    assert load(root, tmp_path / "cache").sha256 == data.sha256


def test_files_that_were_not_used_for_longest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    roots = [make(tmp_path / name, side=12 + n) for n, name in enumerate("xyz")]
    load(roots[0], cache)
    load(roots[1], cache)
    size = files(cache)[0].stat().st_size
    foreign = cache / "mine.images"
    foreign.write_bytes(b"not of this program")
    os.utime(foreign, (1, 1))
    for age, path in enumerate(sorted(files(cache), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (2 + age, 2 + age))
    load(roots[0], cache)  # used again, so the other is the older one
    first, second = sorted(set(files(cache)) - {foreign}, key=lambda path: path.stat().st_mtime_ns)
    monkeypatch.setattr(image_cache, "MOST_KEPT", 2 * size + 1000)
    load(roots[2], cache)
    assert not first.exists()
    assert second.exists()
    assert foreign.exists()
    assert len(files(cache)) == 3


def test_a_folder_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserInputError, match=r"for decoded images cannot be used .*--cache"):
        load(root, tmp_path / "file" / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nobody asked for this one
    assert_same(load_data(f"folder:{root}", image_size=12), load(root, "off"))


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_data(f"folder:{make(tmp_path / 'data')}", image_size=12)
    assert len(files(tmp_path / "xdg" / "early-exit-compress" / "images")) == 1


PROGRAM = """
import sys
from compress.data.spec import load_data
print(load_data("folder:" + sys.argv[1], image_size=12, cache=sys.argv[2]).sha256)
"""


def start(root: Path, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.slow
def test_two_processes_that_start_at_once_make_one_file(tmp_path: Path) -> None:
    root, cache = make(tmp_path / "data", 510), tmp_path / "cache"
    told = [process.communicate() for process in [start(root, cache) for _ in range(2)]]
    assert told[0][0] == told[1][0] == load(root, cache).sha256 + "\n", told
    assert len(files(cache)) == 1
    assert not list(cache.glob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", [0.02, 0.3])
def test_a_killed_first_pass_starts_anew(wait_s: float, tmp_path: Path) -> None:
    root, cache = make(tmp_path / "data", 600), tmp_path / "cache"
    process = start(root, cache)
    while not list(cache.glob(".*.part")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(wait_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert_same(load(root, cache), load(root, "off"))
    assert len(files(cache)) == 1
    assert not list(cache.glob(".*.part"))


def test_processes_decode_as_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "data", 150)
    here = load(root, tmp_path / "one")
    monkeypatch.setattr(first_pass, "FEW", 0)
    monkeypatch.setattr(first_pass, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(first_pass, "decode_runs", None)
    assert_same(load(root, tmp_path / "two"), here)
    (root / "b" / "7.jpg").write_bytes(b"x")
    with pytest.raises(UserInputError, match=r"1 of 300 .*b/7\.jpg \(no image of the formats"):
        load(root, tmp_path / "two")


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "data")
    monkeypatch.setattr(first_pass, "FEW", 0)
    monkeypatch.setattr(first_pass, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ToolchainError, match=r"ended early \(exit code 1\)"):
        load(root, tmp_path / "cache")
    assert not files(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".*.part"))
