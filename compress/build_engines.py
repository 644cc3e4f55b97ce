"""Build the TensorRT engines of a bundle on the device that will run them; torch is not needed."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from compress.cli import HelpFormatter, add_common_options, print_json, run_door
from compress.errors import ToolchainError
from compress.runtime.engine_builder import CHOICES, build_engines
from compress.runtime.engine_check import check_engines
from compress.runtime.manifest import read_manifest
from compress.runtime.trtexec import find_trtexec

__all__ = ["main"]

EPILOG = """examples:
  python -m compress.build_engines bundle
  python -m compress.build_engines --force --workspace-mib 1024 bundle
  python -m compress.build_engines --print-commands bundle

engines fit one TensorRT and one GPU: copy the bundle to the device and build there. On a Jetson,
TensorRT is part of JetPack; a virtual environment sees it when made with --system-site-packages.
Where its Python module is missing, trtexec builds; --print-commands only prints what it would run.
Engines are then run on the bundle's probe, images with what its graphs made of them: the exit code
is 5, and the engines are not used, where they are too far from that.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.build_engines",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="folder that python -m compress.export_trt wrote")
    words = "tensorrt (its Python module, else trtexec), tensorrt-rtx, or auto: what is installed"
    add("--builder", default="auto", choices=CHOICES, help=words)
    add("--force", action="store_true", help="build anew, even where engines are there that fit")
    words = "device memory that a layer may use besides its tensors (all that there is)"
    add("--workspace-mib", type=int, metavar="N", help=words)
    words = "0 builds fast, 5 builds engines that run fast (TensorRT's default, 3)"
    add("--optimization-level", type=int, metavar="N", help=words)
    words = "print the equivalent trtexec commands, and build nothing"
    add("--print-commands", action="store_true", help=words)
    add_common_options(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    if options.print_commands:
        return _print_commands(options)
    engines = build_engines(
        options.bundle,
        builder=options.builder,
        force=options.force,
        workspace_mib=options.workspace_mib,
        optimization_level=options.optimization_level,
    )
    tested = check_engines(options.bundle, engines)
    result = {"schema": "compress.build_engines/1", **engines.to_dict()}
    result["self_test"] = None if tested is None else tested.to_dict()
    if options.json:
        print_json(result)
    else:
        print(_text(options.bundle, result))
        if tested is not None:
            print(tested.to_text())
    return 0


def _print_commands(options: argparse.Namespace) -> int:
    manifest = read_manifest(options.bundle)
    trtexec = find_trtexec(
        workspace_mib=options.workspace_mib, optimization_level=options.optimization_level
    )
    if trtexec is None:
        raise ToolchainError(
            "trtexec is not found on PATH or in /usr/src/tensorrt/bin, and its options differ "
            "between versions; run --print-commands on the device"
        )
    commands = trtexec.commands(options.bundle, manifest)
    if options.json:
        print_json({"schema": "compress.build_engines.commands/1", "commands": commands})
    else:
        print("\n".join(commands))
    return 0


def _text(bundle: Path, result: Dict[str, Any]) -> str:
    device = "every GPU that it supports"
    if result["device_name"] is not None:
        device = f"{result['device_name']} ({result['compute_capability']})"
    lines = [f"{result['builder']} {result['tensorrt_version']}, for {device}"]
    for engine in result["segments"]:
        mib = (bundle / engine["file"]).stat().st_size / 2**20
        lines.append(f"{engine['file']:20} {mib:7.1f} MiB")
    return "\n".join(lines)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the door; return its exit code."""
    return run_door(_parser(), _work, argv)


if __name__ == "__main__":
    sys.exit(main())
