"""Make a checkpoint describe itself: image size, normalisation, class names; once and for all."""

import argparse
import sys
from pathlib import Path

from compress.cli import (
    HelpFormatter,
    add_common_options,
    parse_numbers,
    print_report,
    run_door,
)
from compress.door_options import add_data, add_opening, cache_of, opening_of
from compress.errors import UserInputError
from compress.files import check_readable

__all__ = ["main"]

LARGEST_LIST = 1 << 20  # bytes of a file of class names
EPILOG = """examples:
  python -m compress.adopt resnet56.th --image-size 32 --resize none \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --data folder:cifar10 -o resnet56.pth
  python -m compress.adopt --resize 256 --crop 224 --interpolation bilinear \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --classes classes.txt resnet50.pth
  python -m compress.adopt --model mynets.unet:small --image-size 1x256x128 --mean 0.1 --std 0.3 \\
      mine.pth

every later command takes all this from the file that is written; only --model is named again,
because code is never run because a file says so
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.adopt",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help=".pth, .pt, .th or .safetensors file")
    add("-o", "--output", type=Path, metavar="FILE", help="file to write (NAME.adopted.pth)")
    group = parser.add_argument_group("how a picture becomes an input")
    words = "of pixels / 255, one a channel or one for all, such as 0.485,0.456,0.406"
    group.add_argument("--mean", metavar="NUMBERS", help=words)
    group.add_argument("--std", metavar="NUMBERS", help="the same")
    words = (
        "'none', or the length that the shorter side is resized to, whatever the picture's size "
        "(to the image size; a picture that has it already stays as it is)"
    )
    group.add_argument("--resize", metavar="none|PIXELS", help=words)
    words = "side of the centre that is cut out after resizing (the image size)"
    group.add_argument("--crop", type=int, metavar="PIXELS", help=words)
    words = "of the resizing, by Pillow"
    names = ("bicubic", "bilinear")
    group.add_argument("--interpolation", choices=names, default=names[0], help=words)
    words = "names in the order of the logits: a file with one a line, or a,b,c"
    add("--classes", metavar="FILE|NAMES", help=words)
    add_data(parser, required=False, purpose="measure accuracy before writing, on")
    add_opening(parser)
    add("--device", default="cpu", help="where to measure, such as cuda")
    add("--seed", type=int, default=0, help="of the split of the data")
    add("--force", action="store_true", help="replace an existing file")
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    check_readable(options.checkpoint, "checkpoint")
    mean = parse_numbers(options.mean, "--mean", float)
    std = parse_numbers(options.std, "--std", float)
    resize, classes = _resize(options.resize), _classes(options.classes)
    from compress.adoption import AdoptJob, Pixels, adopt_checkpoint
    from compress.training.processes import resolve_device

    report = adopt_checkpoint(
        AdoptJob(
            checkpoint=options.checkpoint,
            output=options.output or options.checkpoint.with_suffix(".adopted.pth"),
            opening=opening_of(options),
            pixels=Pixels(
                mean=mean,
                std=std,
                resize=resize,
                crop=options.crop,
                interpolation=options.interpolation,
            ),
            classes=classes,
            data=options.data,
            force=options.force,
            device=str(resolve_device(options.device)),
            seed=options.seed,
            cache=cache_of(options),
            progress=not options.quiet,
        )
    )
    print_report(report, as_json=options.json)
    return 0


def _resize(text: str | None) -> str | int | None:
    if text is None or text == "none":
        return text
    if not text.isdecimal():
        raise UserInputError(f"--resize is {text!r}; expected none, or pixels such as 256")
    return int(text)


def _classes(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = _listed(Path(text)) if Path(text).is_file() else text.split(",")
    names = [name.strip() for name in names]
    bad = [name for name in names if not name or not name.isprintable()]
    if bad or len(set(names)) < len(names) or len(names) < 2:
        why = f"{len(names)} names, {len(set(names))} different"
        if bad:
            why = f"{bad[0]!r} is no name"
        raise UserInputError(
            f"--classes {text[:80]!r}: {why}; expected a file with one name a line, or a,b,c, all "
            "different"
        )
    return tuple(names)


def _listed(path: Path) -> list[str]:
    if path.stat().st_size > LARGEST_LIST:
        raise UserInputError(
            f"--classes {path} has {path.stat().st_size} bytes; expected names, at most "
            f"{LARGEST_LIST} bytes"
        )
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as err:
        raise UserInputError(
            f"--classes {path} is no text in UTF-8 ({err}); save it as that"
        ) from err


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
