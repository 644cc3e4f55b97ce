"""Remove channels that training made unimportant: network slimming of a checkpoint."""

import argparse
import sys
from pathlib import Path

from compress.cli import HelpFormatter, add_common_options, print_json, run_door
from compress.door_options import add_data, add_opening, cache_of, opening_of
from compress.files import check_readable

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.slim --ratio 0.4 vgg16.pth
  python -m compress.slim --ratio 0.2 0.4 0.6 --input-size 32 runs/quickstart/vgg/train/best.pth
  python -m compress.slim --target-macs 0.5 --ignore 'features.1' --dry-run vgg16.pth
  python -m compress.slim --ratio 0.4 --groups hidden,frequency gfnet.pth
  python -m compress.slim --ratio 0.4 --data folder:photos resnet50.pth
  python -m compress.slim --ratio 0.3 --model mynets.resnet:resnet50 resnet50.pth

writes vgg16.slim-0.4.pth (compress.load opens it) and vgg16.slim-0.4.report.json

with --data the slim network is mended without training (constants folded, BatchNorm statistics
taken anew, layers fitted by least squares on images of the training split), and what is best on the
calibration split is written
"""


def _ratio(text: str) -> float:
    """Return a share of "0.4" or "40%".

    >>> _ratio("40%")
    0.4
    """
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _is_number(text: str) -> bool:
    try:
        _ratio(text)
    except ValueError:
        return False
    return True


def _ratios_last(arguments: list[str]) -> list[str]:
    """Move `--ratio` and its numbers to the end.

    argparse would take the checkpoint in `--ratio 0.4 vgg16.pth` for one more ratio.

    >>> _ratios_last(["--ratio", "0.2", "0.4", "vgg16.pth", "--json"])
    ['vgg16.pth', '--json', '--ratio', '0.2', '0.4']
    """
    if "--ratio" not in arguments:
        return arguments
    start = arguments.index("--ratio")
    end = start + 1
    while end < len(arguments) and _is_number(arguments[end]):
        end += 1
    return arguments[:start] + arguments[end:] + arguments[start:end]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.slim",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help=".pth, .pt or .safetensors file")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--ratio",
        type=_ratio,
        nargs="+",
        metavar="R",
        help="share of channels to remove, 0 <= R < 1 or 40%%; several give several networks",
    )
    for kind in ("macs", "params", "latency"):
        words = f"find the ratio that leaves at most this share of the {kind}"
        amount.add_argument(f"--target-{kind}", type=float, metavar="SHARE", help=words)
    add = parser.add_argument
    add("-o", "--output", type=Path, help="file to write; with several ratios a folder")
    add("--round-to", type=int, default=8, metavar="N", help="round widths up to a multiple of N")
    add("--min-channels", type=int, default=8, metavar="N", help="no layer gets narrower than N")
    words = "what to remove: of a GFNet 'hidden' (default), 'frequency' or 'hidden,frequency'"
    add("--groups", type=_listed, default=(), metavar="KINDS", help=words)
    words = "leave layers like 'features.1*' alone; must match something; may be repeated"
    add("--ignore", action="append", default=[], metavar="PATTERN", help=words)
    add("--no-absorb", action="store_true", help="do not fold removed constants into biases")
    add_data(parser, required=False, purpose="images to mend and judge the slim network with:")
    words = "images of each split to look at (2000, or fewer where that would take minutes)"
    add("--images", type=int, metavar="N", help=words)
    words = "with --data, also try to fit the layers anew by least squares, without training"
    add("--repair", action=argparse.BooleanOptionalAction, default=True, help=words)
    add("--no-latency", action="store_true", help="skip the timing")
    add("--dry-run", action="store_true", help="compute and print, write nothing")
    add("--device", default="cpu", help="where to measure, such as cuda")
    add("--seed", type=int, default=0, help="of the noise that outputs are compared on")
    add("--force", action="store_true", help="replace existing outputs")
    add_opening(parser)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    check_readable(options.checkpoint, "checkpoint")
    from compress.slimming.candidates import Mending
    from compress.slimming.job import SlimJob, slim_checkpoint
    from compress.slimming.slim import SlimOptions
    from compress.training.processes import resolve_device

    target = next(
        (
            (kind, share)
            for kind in ("macs", "params", "latency")
            if (share := getattr(options, f"target_{kind}")) is not None
        ),
        None,
    )
    job = SlimJob(
        checkpoint=options.checkpoint,
        ratios=tuple(dict.fromkeys(options.ratio or ())),
        target=target,
        options=SlimOptions(
            round_to=options.round_to,
            min_channels=options.min_channels,
            ignore=tuple(options.ignore),
            absorb=not options.no_absorb,
            groups=options.groups,
        ),
        output=options.output,
        force=options.force,
        write=not options.dry_run,
        opening=opening_of(options),
        data=options.data,
        mending=Mending(images=options.images, repair=options.repair) if options.data else None,
        latency=not options.no_latency,
        device=str(resolve_device(options.device)),
        seed=options.seed,
        cache=cache_of(options),
    )
    reports = []
    for report in slim_checkpoint(job):
        reports.append(report.to_dict())
        if not options.json:
            print(report.to_text())
    if options.json:
        several = {key: reports[0][key] for key in ("schema", "versions")} | {"results": reports}
        print_json(reports[0] if len(reports) == 1 else several)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, _ratios_last(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
