"""`early-exit VERB …` and `python -m compress VERB …` are `python -m compress.VERB …`."""

import importlib
import importlib.metadata
import os
import sys

from compress.cli import PROGRAM

DISTRIBUTION = "early-exit-compress"
VERBS = {
    "adopt": "make a checkpoint describe its images and classes",
    "benchmark": "latency, memory, operations and energy, side by side",
    "build_engines": "build the TensorRT engines of a bundle, on its device",
    "dispatch": "classify images with a bundle",
    "doctor": "what this machine has, and what is missing for what",
    "evaluate": "accuracy, exits, thresholds, calibration",
    "exits": "where early exits can stand, and their training",
    "export_trt": "one ONNX file and engine for each exit segment",
    "finetune": "train a checkpoint further, or for slimming",
    "lower": "an ONNX file for a target, Fourier transforms as real products",
    "measure_device": "latency, exits and energy of a bundle on its device",
    "monitor": "watch a dispatcher for drift",
    "plan_exits": "choose exits and thresholds, with a guarantee",
    "report": "one page of a run, or of several",
    "run": "run a recipe",
    "slim": "remove channels that training made unimportant",
}


def main() -> int:
    """Hand over to the door of the verb."""
    if len(sys.argv) > 1 and sys.argv[1] in VERBS:
        door = importlib.import_module(f"compress.{sys.argv[1]}")
        code: int = door.main(sys.argv[2:])
        return code
    wanted = " ".join(sys.argv[1:2])
    if wanted == "--version":
        print(f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}")
        return 0
    asked_for_help = wanted in ("-h", "--help")
    program = os.path.basename(sys.argv[0])
    program = program if program == PROGRAM else "python -m compress"
    lines = [f"usage: {program} VERB [options]", ""]
    lines += [f"  {verb:14} {words}" for verb, words in VERBS.items()]
    lines += ["", f"{program} VERB -h tells more, {program} --version which version this is"]
    if wanted and not asked_for_help:
        lines.insert(0, f"{program}: error: {wanted!r} is no verb")
    print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main())
