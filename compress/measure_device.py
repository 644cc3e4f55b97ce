"""Measure a bundle on its device: latency, exit rates, millijoules an image, a device profile."""

import argparse
import math
import platform
import sys
from itertools import islice
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np

from compress.cli import HelpFormatter, add_common_options, print_report, run_door
from compress.device_options import add_running, open_dispatcher
from compress.errors import ToolchainError, UserInputError
from compress.files import check_output
from compress.runtime.device_measure import measure_device
from compress.runtime.device_profile import write_device_profile
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.pictures import readings
from compress.runtime.power.sampling import PowerSource
from compress.runtime.power.sources import SOURCE_KINDS, find_source
from compress.runtime.power.state import board_name
from compress.runtime.probe import read_probe
from compress.runtime.stream import find_pictures

__all__ = ["main"]

MAX_IMAGES = 1000
MAX_BYTES = 1 << 29  # of prepared images, which wait in memory
MAX_SECONDS = 1e5

EPILOG = """examples:
  python -m compress.measure_device digits.bundle photos
  python -m compress.measure_device digits.bundle photos --seconds 60 -o orin.profile.json
  python -m compress.plan_exits --costs orin.profile.json network.pth

without IMAGE the images are those of the bundle's probe, which are few: exit rates are then of no
use. Pin the clocks first (jetson_clocks), as tools/jetson/jetson.sh does. Energy of an image is
net power times its mean latency, as in the published logs; idle power is measured first, so let
nothing else run
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.measure_device",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder that python -m compress.export_trt wrote")
    words = f"picture, .npy file, or folder; of many the first {MAX_IMAGES} images are taken"
    add("images", type=Path, nargs="*", metavar="IMAGE", help=words)
    words = "that images run at least; ten or more for figures to trust"
    add("--seconds", type=float, default=10.0, metavar="S", help=words)
    words = "sensor; auto measures no energy where there is none"
    add("--power", choices=("auto", "none", *SOURCE_KINDS), default="auto", help=words)
    add("-o", "--output", type=Path, metavar="FILE", help="device profile for the planner")
    add("--force", action="store_true", help="replace a profile that is there")
    add_running(parser)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> None:
    if not (math.isfinite(options.seconds) and 0 < options.seconds <= MAX_SECONDS):
        raise UserInputError(
            f"--seconds is {options.seconds:g}; expected more than 0, at most {MAX_SECONDS:g}"
        )
    if options.output is not None:
        check_output(options.output, force=options.force)
    with open_dispatcher(options) as dispatcher:
        images = _images(options, dispatcher)
        source, reason = _sensor(options.power, dispatcher.backend.name)
        found = measure_device(
            dispatcher,
            images,
            device=board_name() or platform.processor() or platform.machine(),
            seconds=options.seconds,
            source=source,
            no_energy=reason,
        )
    if options.output is not None:
        write_device_profile(found.profile, options.output)
    print_report(found, as_json=options.json)


def _images(options: argparse.Namespace, dispatcher: Dispatcher) -> List[np.ndarray]:
    manifest = dispatcher.manifest
    if not options.images:
        return list(read_probe(options.bundle, manifest).images)
    files = find_pictures(options.images)
    found = readings(files, manifest.image.shape, manifest.preprocessing)
    room = max(1, min(MAX_IMAGES, MAX_BYTES // manifest.image.image_bytes))
    return [reading.read() for reading in islice(found, room)]


def _sensor(kind: str, backend: str) -> Tuple[Optional[PowerSource], str]:
    """Return the sensor, or None and why there is none."""
    if kind == "none":
        return None, "it was not asked for"
    try:
        device = "cuda" if backend == "tensorrt" else "cpu"
        return find_source(None if kind == "auto" else kind, device=device), ""
    except ToolchainError as err:
        if kind != "auto":
            raise
        return None, str(err)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
