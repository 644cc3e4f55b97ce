"""Write the Fourier transforms of an ONNX file as real matrix products, and fit it to a target."""

import argparse
import sys
from pathlib import Path

from compress.cli import HelpFormatter, add_common_options, print_report, run_door
from compress.files import check_output, check_readable

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.lower fno.onnx -o fno.real.onnx --check
  python -m compress.lower lama.onnx -o lama.trt.onnx --target jetpack6.2
  python -m compress.lower vocoder.onnx -o out.onnx --check --shape features=1x512x200

the file may come from any exporter. DFT and STFT nodes of any constant length become products with
constant matrices; no complex tensor is left, so TensorRT before 11.2 takes the result
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.lower",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, help=".onnx file of any origin, opset 17 or newer for transforms")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    words = "jetpack5.1, jetpack6.0, jetpack6.2, jetpack7, tensorrt10, tensorrt11, tensorrt-rtx or "
    words += "onnxruntime: also rewrite what it lacks, and refuse what it would refuse"
    add("--target", metavar="NAME", help=words)
    words = "compare both graphs on random input before the file is kept"
    add("--check", action="store_true", help=words)
    words = "sizes of an input for --check, where more than its first is free; may be repeated"
    add("--shape", action="append", metavar="INPUT=SIZES", help=words)
    add("--force", action="store_true", help="replace the output if it is there")
    add("--seed", type=int, default=0, help="of the random input")
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    check_readable(options.model, "model")
    check_output(options.output, force=options.force)
    from compress.export.lower_file import LowerJob, lower_file, parse_shapes

    report = lower_file(
        LowerJob(
            model=options.model,
            output=options.output,
            target=options.target,
            check=options.check,
            shapes=parse_shapes(options.shape),
            force=options.force,
            seed=options.seed,
        )
    )
    print_report(report, as_json=options.json)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
