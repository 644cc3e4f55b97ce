"""Classify pictures with a bundle: its segments in order, stopped at the first gate that fires."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import List, Optional

from compress.cli import (
    HelpFormatter,
    add_common_options,
    print_report,
    run_door,
)
from compress.device_options import add_running, check_count, open_dispatcher
from compress.errors import UserInputError
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.pictures import ARRAY_SUFFIX, readings
from compress.runtime.probe import read_probe
from compress.runtime.self_test import self_test
from compress.runtime.stream import Tally, find_pictures, predictions, prefetched

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.dispatch digits.bundle photo.jpg
  python -m compress.dispatch digits.bundle photos --json --times > results.jsonl
  python -m compress.dispatch digits.bundle images.npy --thresholds 0.9,0.8,0.8 --batch 32
  python -m compress.dispatch digits.bundle --self-test

a .npy file holds pixels, uint8 (3, S, S) or (N, 3, S, S) at the size that the network takes, or
normalised float32; it needs no Pillow. With --json every line is one object: one of each image,
as soon as it is known, and the summary last. An image that cannot be read does not stop the
others; the exit code is 3 then
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.dispatch",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder that python -m compress.export_trt wrote")
    words = "picture, .npy file, or folder, of which all pictures at any depth are taken"
    add("images", type=Path, nargs="*", metavar="IMAGE", help=words)
    words = "run the images that the bundle carries, and tell how far it is from what was exported"
    add("--self-test", action="store_true", help=words)
    add("--batch", type=int, default=1, metavar="N", help="images at a time")
    add_running(parser)
    add("--times", action="store_true", help="also tell the milliseconds in each segment")
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> None:
    check_count(options, "batch")
    if options.self_test == bool(options.images):
        raise UserInputError(
            "IMAGE and --self-test, which brings images of its own, were both given or both left "
            "out; expected one of them"
        )
    if options.self_test:
        _test_itself(options)
        return
    files = find_pictures(options.images)
    with open_dispatcher(options) as dispatcher:
        _check_classes(dispatcher, options.bundle)
        largest = dispatcher.backend.max_batch
        if options.batch > largest:
            raise UserInputError(f"--batch is {options.batch}; the bundle takes at most {largest}")
        _tell_pixels(dispatcher, files, options)
        tally = _classify(dispatcher, files, options)
    summary = {"backend": dispatcher.backend.name, **tally.to_dict()}
    print(json.dumps({"summary": summary}) if options.json else tally.to_text(), flush=True)
    if tally.errors:
        raise UserInputError(
            f"{tally.errors} of {tally.images} images have errors; see their lines"
        )


def _test_itself(options: argparse.Namespace) -> None:
    with open_dispatcher(options) as dispatcher:
        tested = self_test(dispatcher, read_probe(options.bundle, dispatcher.manifest))
    print_report(tested, as_json=options.json)
    sys.stdout.flush()
    tested.check(options.bundle)


def _check_classes(dispatcher: Dispatcher, bundle: Path) -> None:
    manifest = dispatcher.manifest
    if not manifest.classes:
        names = ", ".join(spec.name for spec in manifest.further_outputs)
        raise UserInputError(
            f"bundle {bundle} has no classes: {manifest.name} gives {names:.200}; expected a "
            "classifier, so call compress.runtime.dispatcher.Dispatcher from Python, whose `run` "
            "returns these as `outputs`"
        )


def _tell_pixels(dispatcher: Dispatcher, files: List[Path], options: argparse.Namespace) -> None:
    """Say what is done to pictures, where people read."""
    prepared = dispatcher.manifest.preprocessing
    pictures = any(path.suffix.lower() != ARRAY_SUFFIX for path in files)
    if prepared is not None and pictures and not options.quiet and not options.json:
        print(f"images: {prepared.describe()}", file=sys.stderr, flush=True)


def _classify(dispatcher: Dispatcher, files: List[Path], options: argparse.Namespace) -> Tally:
    manifest, batch = dispatcher.manifest, options.batch
    images = readings(files, manifest.image.shape, manifest.preprocessing)
    tally, progress = Tally(manifest), _Progress(files, options.quiet)
    try:
        with prefetched(images, ahead=2 * batch + 2) as items:
            for found in predictions(dispatcher, items, batch=batch, times=options.times):
                tally.add(found)
                print(json.dumps(found.to_dict()) if options.json else found.to_text(), flush=True)
                progress.show(tally)
    finally:
        progress.clear()
    return tally


class _Progress:
    """One line on a terminal, where the results do not show how far the run is."""

    def __init__(self, files: List[Path], quiet: bool) -> None:
        has_arrays = any(path.suffix.lower() == ARRAY_SUFFIX for path in files)  # images unknown
        self.of = "" if has_arrays else f" of {len(files)}"
        self.shown = sys.stderr.isatty() and not sys.stdout.isatty() and not quiet
        self.next = 0.0

    def show(self, tally: Tally) -> None:
        if self.shown and time.monotonic() >= self.next:
            self.next = time.monotonic() + 0.2
            line = f"\r{tally.images}{self.of} images, {tally.errors} with errors"
            print(line, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
