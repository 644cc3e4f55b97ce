"""Time checkpoints and bundles side by side: latency, FPS, memory, profiles, energy of an image."""

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
from compress.door_options import add_data, add_opening, cache_of, opening_of, parse_positions

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.benchmark --data digits gfnet.pth gfnet_dynn.pth --threshold 0.8
  python -m compress.benchmark --data folder:RESISC45 gfnet_dynn.pth gfnet_dynn.bundle --batch 8,32
  python -m compress.benchmark --data digits dynn.bundle --energy jetson --save-power-trace p.jsonl
  python -m compress.benchmark --data digits dynn.bundle --predict jetson_log_resisc45
  python -m compress.benchmark --data digits dynn.bundle --save-profile this_device.json

the first network is the baseline of the percentages. Where there is no power sensor it is said, and
no energy is printed; idle power is measured first, so let nothing else run
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.benchmark",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    words = "checkpoint file, or folder of a bundle; several are timed in turn"
    add("subjects", type=Path, nargs="+", metavar="NETWORK", help=words)
    add_data(parser, required=True)
    words = "images of the test split to time, spread evenly over it"
    add("--images", type=int, default=64, metavar="N", help=words)
    add("--batch", metavar="SIZES", help="batch sizes to time besides 1, such as 8,32")
    words = (
        "leave at gate >= T: one for all exits, or one for each as in 0.8,0.7 (those of a bundle)"
    )
    add("--threshold", metavar="T", help=words)
    words = "exits that are deployed, of a checkpoint, such as 7,8,9 or layer2.4,layer3.1 (all)"
    add("--exits", metavar="WHERE", help=words)
    words = "that each network runs in each measurement; 10 or more for energy"
    add("--seconds", type=float, default=10.0, metavar="S", help=words)
    add("--threads", type=int, metavar="N", help="inside an operation (as many as torch takes)")
    add("--device", default="cpu", help="where checkpoints run, such as cpu or cuda")
    words = "that runs bundles: auto, onnxruntime or tensorrt"
    add("--backend", default="auto", metavar="NAME", help=words)
    add("--no-profile", action="store_true", help="do not time operations and segments")
    words = "also time the operators of bundles by ONNX Runtime's profiler"
    add("--profile-operators", action="store_true", help=words)
    add("--no-memory", action="store_true", help="do not measure peak memory")
    words = "auto, none, jetson, rapl or nvml: the power sensor"
    add("--energy", default="auto", metavar="SENSOR", help=words)
    words = "to measure idle power, which is subtracted"
    add("--idle-seconds", type=float, default=10.0, metavar="S", help=words)
    words = "take power from this recorded trace in place of a sensor"
    add("--power-trace", type=Path, metavar="FILE", help=words)
    add("--save-power-trace", type=Path, metavar="FILE", help="record power in this file")
    words = "predict for a device: a file, or jetson_log_cifar10, _resisc45 or _ucm"
    add("--predict", metavar="PROFILE", help=words)
    words = "write what each part takes on this device, for --predict elsewhere"
    add("--save-profile", type=Path, metavar="FILE", help=words)
    add("--force", action="store_true", help="replace existing files")
    add("--seed", type=int, default=0, help="of the split of the data")
    words = "where a checkpoint does not record it; a GFNet is resampled to any other"
    add_opening(parser, size=words)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    batches = parse_numbers(options.batch, "--batch", int)
    thresholds = parse_numbers(options.threshold, "--threshold", float)
    exits = parse_positions(options.exits, "--exits")
    from compress.benchmark.job import BenchmarkJob, SubjectSpec, benchmark
    from compress.training.processes import resolve_device

    report = benchmark(
        BenchmarkJob(
            subjects=tuple(
                SubjectSpec(path=path, thresholds=thresholds, exits=exits)
                for path in options.subjects
            ),
            data=options.data,
            images=options.images,
            batches=batches or (),
            seconds=options.seconds,
            idle_seconds=options.idle_seconds,
            threads=options.threads,
            device=str(resolve_device(options.device)),
            backend=None if options.backend == "auto" else options.backend,
            opening=opening_of(options, resample=True),
            profile=not options.no_profile,
            operators=options.profile_operators,
            memory=not options.no_memory,
            energy=options.energy,
            power_trace=options.power_trace,
            save_power_trace=options.save_power_trace,
            predict=options.predict,
            save_profile=options.save_profile,
            force=options.force,
            seed=options.seed,
            cache=cache_of(options),
            progress=not options.quiet,
        )
    )
    print_report(report, as_json=options.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
