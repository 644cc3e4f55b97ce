"""Export a network as a bundle: one ONNX file and one TensorRT engine for each exit segment."""

import argparse
import sys
from pathlib import Path

from compress.cli import (
    HelpFormatter,
    add_common_options,
    one_or_each,
    parse_numbers,
    print_report,
    run_door,
)
from compress.door_options import add_data, add_opening, cache_of, opening_of, parse_positions
from compress.files import check_readable

__all__ = ["main"]

TARGETS = "jetpack5.1, jetpack6.0, jetpack6.2, jetpack7, tensorrt10, tensorrt11, tensorrt-rtx"
EPILOG = """examples:
  python -m compress.export_trt --split-exits
  python -m compress.export_trt --split-exits --exits 7,8,9 --thresholds 0.8 gfnet_dynn.pth
  python -m compress.export_trt --split-exits --plan plan.json --precision fp16 gfnet_dynn.pth
  python -m compress.export_trt --target onnxruntime vgg16.slim-0.4.pth

engines fit the device they are built on: copy the bundle there and run
python -m compress.build_engines BUNDLE, which needs numpy and the device's TensorRT alone
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.export_trt",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    words = ".pth, .pt or .safetensors file (the newest one with early exits under runs/)"
    add("checkpoint", type=Path, nargs="?", help=words)
    words = "one segment up to each exit, with its head and gate inside"
    add("--split-exits", action="store_true", help=words)
    words = "exits that are exported, by blocks or modules: 7,8,9 or layer1.8,layer2.4 (all)"
    add("--exits", metavar="POSITIONS", help=words)
    words = "leave where gate >= T; or one for each exit, such as 0.8,0.7,0.9"
    add("--thresholds", metavar="T", help=words)
    add("--plan", type=Path, metavar="FILE", help="plan.json that names exits and thresholds")
    add("--target", default="jetpack6.2", metavar="NAME", help=f"{TARGETS} or onnxruntime")
    add("--precision", default="fp32", choices=("fp32", "fp16", "int8"), help="of the weights")
    words = "images that a segment takes at a time: 1, or 1:N for up to N"
    add("--batch", default="1", metavar="N", help=words)
    words = "auto, tensorrt, tensorrt-rtx or none; auto builds where the target is this machine"
    add("--builder", default="auto", metavar="NAME", help=words)
    add_data(parser, required=False, purpose="images to compare on:")
    add("-o", "--output", type=Path, metavar="DIR", help="the bundle (CHECKPOINT's name.bundle)")
    add("--force", action="store_true", help="replace a bundle that is there")
    words = "largest relative error of the logits of an image (1e-3 fp32, 3e-2 fp16)"
    add("--tolerance", type=float, metavar="E", help=words)
    words = "with int8 for onnxruntime: keep it also in segments that it makes no faster here"
    add("--keep-int8", action="store_true", help=words)
    words = "also write a Triton Inference Server model repository of the segments"
    add("--triton", type=Path, metavar="DIR", help=words)
    add("--seed", type=int, default=0, help="of the split of the data, and of noise")
    add_opening(parser)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    if options.checkpoint is not None:
        check_readable(options.checkpoint, "checkpoint")
    exits = parse_positions(options.exits, "--exits")
    thresholds = parse_numbers(options.thresholds, "--thresholds", float)
    from compress.export.export_job import (
        ExportJob,
        checkpoint_bundle,
        export_checkpoint,
        parse_batch,
    )
    from compress.export.source import newest_checkpoint
    from compress.export.triton import write_triton

    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = newest_checkpoint(Path("runs"))
        print(f"checkpoint: {checkpoint}", file=sys.stderr)
    report = export_checkpoint(
        ExportJob(
            checkpoint=checkpoint,
            output=options.output or checkpoint_bundle(checkpoint),
            split_exits=options.split_exits,
            exits=exits,
            thresholds=one_or_each(thresholds),
            plan=options.plan,
            target=options.target,
            precision=options.precision,
            max_batch=parse_batch(options.batch),
            builder=options.builder,
            data=options.data,
            opening=opening_of(options),
            tolerance=options.tolerance,
            keep_int8=options.keep_int8,
            force=options.force,
            seed=options.seed,
            cache=cache_of(options),
            progress=not options.quiet,
        )
    )
    if options.triton is not None:
        write_triton(report.bundle, options.triton, force=options.force)
    print_report(report, as_json=options.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
