"""Options of the doors that run bundles on a device: which backend, and how it waits."""

import argparse

from compress.cli import one_or_each, parse_numbers
from compress.errors import UserInputError
from compress.runtime.backends import BACKENDS
from compress.runtime.cuda_wait import WAITS
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.first_call import FIRST_CALL_SECONDS
from compress.runtime.onnxruntime_session import PROVIDERS

__all__ = ["LARGEST", "add_running", "check_count", "open_dispatcher"]

LARGEST = 1 << 12  # threads, or images at a time


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options that `open_dispatcher` reads."""
    add = parser.add_argument
    words = (
        "leave at gate >= T: one for all exits, or one for each as in 0.9,0.8 (those of the bundle)"
    )
    add("--thresholds", metavar="T", help=words)
    words = "auto takes TensorRT where the bundle has engines and this machine a GPU"
    add("--backend", choices=("auto", *BACKENDS), default="auto", help=words)
    words = "processor threads of ONNX Runtime (as many as it likes)"
    add("--threads", type=int, metavar="N", help=words)
    words = "of ONNX Runtime: auto takes cuda where it starts"
    add("--provider", choices=("auto", *sorted(PROVIDERS)), default="auto", help=words)
    words = "that ONNX Runtime may take to open the bundle and to run it once"
    add("--first-call-seconds", type=float, default=FIRST_CALL_SECONDS, metavar="S", help=words)
    words = "load TensorRT engines that this user did not build on this machine, too"
    add("--trust-engines", action="store_true", help=words)
    words = "for the GPU: spin is fastest and keeps a core busy, yield shares it, block sleeps"
    add("--wait", choices=WAITS, default="spin", help=words)


def check_count(options: argparse.Namespace, name: str) -> None:
    """Raise UserInputError unless the option is left out or a number from 1 to `LARGEST`."""
    value = getattr(options, name)
    if value is not None and not 1 <= value <= LARGEST:
        raise UserInputError(f"--{name} is {value}; expected at least 1, at most {LARGEST}")


def open_dispatcher(options: argparse.Namespace) -> Dispatcher:
    """Open `options.bundle` as the options say.

    Raises:
        UserInputError: an option, the bundle or its engines cannot be used.
        ToolchainError: the backend is missing or fails.
    """
    check_count(options, "threads")
    return Dispatcher(
        options.bundle,
        None if options.backend == "auto" else options.backend,
        thresholds=one_or_each(parse_numbers(options.thresholds, "--thresholds", float)),
        threads=options.threads,
        provider=None if options.provider == "auto" else options.provider,
        first_call_seconds=options.first_call_seconds,
        trust_engines=options.trust_engines,
        wait=options.wait,
    )
