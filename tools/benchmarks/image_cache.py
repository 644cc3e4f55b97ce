"""Decoded images in a file against a loop of Pillow: first pass, later passes, memory.

    python tools/benchmarks/image_cache.py ../shared/data/cifar10 [--json]

Rounds alternate, so that a busy machine slows both. The plain loop opens and converts every file
and keeps nothing, in as many processes as there are processors, each with an equal share; it pays
no hash, no checksum and no table.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from compress.data.image_data import ImageData
from compress.data.spec import load_data

BATCH = 128
PLAIN = """
import sys
import numpy as np
from PIL import Image
for line in sys.stdin:
    with Image.open(line.rstrip("\\n")) as image:
        np.asarray(image.convert("RGB"))
"""


def main() -> None:
    """Print rates in images a second, their ratios, and memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="images in one folder a class")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = measure(options.folder, options.rounds)
    print(json.dumps(figures, indent=2) if options.json else _table(figures))


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Return the best of the rounds."""
    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    for path in paths:
        Path(path).read_bytes()  # both find the files in memory
    plain, first, later = [], [], []
    before = _peak_mib()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            data = load_data(f"folder:{folder}", cache=cache)
            first.append(time.perf_counter() - started)
            plain.append(_plain(paths))
            _pass(data)  # which compares every image with its checksum
            later.append(_pass(data))
    count = len(paths)
    return {
        "images": count,
        "plain_ips": count / min(plain),
        "first_pass_ips": count / min(first),
        "later_pass_ips": count / min(later),
        "first_to_plain": min(plain) / min(first),
        "later_to_plain": min(plain) / min(later),
        "memory_above_framework_mib": _peak_mib() - before,
    }


def _plain(paths: Sequence[str]) -> float:
    """Return the seconds that the plain loop takes."""
    count = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    processes = [
        subprocess.Popen([sys.executable, "-c", PLAIN], stdin=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        shares = ["\n".join(paths[number::count]) for number in range(count)]
        list(pool.map(lambda process, share: process.communicate(share), processes, shares))
    return time.perf_counter() - started


def _pass(data: ImageData) -> float:
    """Return the seconds that one pass over all images takes, in random order."""
    started = time.perf_counter()
    for split in data.splits.values():
        order = torch.randperm(len(split))
        for _images, _labels in split.batches(BATCH, order=order):
            pass
    return time.perf_counter() - started


def _peak_mib() -> float:
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _table(figures: dict[str, float]) -> str:
    return "\n".join(f"{name:28} {value:12,.2f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
