"""One process or many: what the loop needs from Hugging Face Accelerate.

Started by `accelerate launch` or torchrun, every process runs the same code on its part of each
step; otherwise there is one process, and all of this does nothing. Only the main process touches
files.
"""

import atexit
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from compress.errors import CompressError, ToolchainError, UserInputError
from compress.optional import require
from compress.training.config import TrainingConfig

__all__ = [
    "average_running_statistics",
    "gathered",
    "is_main_process",
    "make_accelerator",
    "on_main",
    "released",
    "resolve_device",
    "seed_generators",
]

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process writes files and prints; known before anything starts."""
    return int(os.environ.get("RANK", "0")) == 0


def resolve_device(name: str | None) -> torch.device:
    """Return the device of that name, or the best that there is.

    Raises:
        UserInputError: there is no device of that name.
        ToolchainError: this machine or this build of torch does not have it.
    """
    if name is None:
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise UserInputError(f"device is {name!r}; expected cpu, cuda, cuda:1, mps, …") from err
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise ToolchainError(
            f"device {name!r} cannot be used here ({str(err).splitlines()[0]}); expected one that "
            "this machine and this build of torch have, such as cpu"
        ) from err
    return device


def make_accelerator(config: TrainingConfig, device: str | None) -> Any:
    """Set up Accelerate for one run; settings of an earlier run in this process are dropped.

    Raises:
        UserInputError: the device cannot compute in that precision.
    """
    accelerate = require("accelerate", "training")
    _forget_earlier_run(accelerate)
    _choose_device(accelerate, device)
    plugin = accelerate.utils.GradientAccumulationPlugin(num_steps=config.gradient_accumulation)
    # The running statistics are averaged by us, see `average_running_statistics`.
    handler = accelerate.utils.DistributedDataParallelKwargs(broadcast_buffers=False)
    try:
        accelerator = accelerate.Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=plugin,
            kwargs_handlers=[handler],
        )
    except ValueError as err:
        raise _cannot(config.mixed_precision, str(err)) from err
    if config.mixed_precision != "no" and not accelerator.native_amp:  # fp16 on a CPU, unnoticed
        raise _cannot(config.mixed_precision, str(accelerator.device))
    if accelerator.num_processes > 1:
        _leave_group_at_exit()
    return accelerator


@functools.cache
def _leave_group_at_exit() -> None:
    """Leave the process group before the interpreter ends, once a process.

    Its threads abort a process that ends while they still run, after all work was done.
    """

    def leave() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def on_main(accelerator: Any, work: Callable[[], T]) -> T:
    """Do `work` in the main process alone, and return its result in every process.

    An error that is meant for the user is raised in every process, so that none waits for another.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = work()
        except CompressError as err:
            answer[1] = err
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in the order of the processes."""
    from accelerate.utils import gather_object

    return gather_object([value])


def average_running_statistics(accelerator: Any, model: nn.Module) -> None:
    """Make the running statistics of BatchNorm the mean over the processes.

    Each process saw other images. The mean uses them all, and leaves every process with the same
    statistics, so that the main process's are the state of the run.
    """
    if accelerator.num_processes == 1:
        return
    buffers = [
        buffer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
    if buffers:
        together = torch.cat([buffer.flatten() for buffer in buffers])
        mean = accelerator.reduce(together, reduction="mean")
        for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


@contextmanager
def released(model: nn.Module) -> Iterator[None]:
    """Take off the model, when the block ends, what Accelerate put on it, and move it to the CPU.

    Accelerate replaces `forward` on the object itself, and takes a marked model for prepared, so a
    second run over the same model would go without its own settings.
    """
    own = model.__dict__.get("forward")
    try:
        yield
    finally:
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)
        if own is not None:
            model.forward = own
        model.eval().cpu()


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators that a network on `device` draws from.

    `torch.manual_seed` would queue a call for every kind of device that is not in use, and keep
    them all: at one call a step that is slow, and a leak.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _cannot(mixed_precision: str, why: str) -> UserInputError:
    return UserInputError(
        f"mixed_precision is {mixed_precision!r}, which this device cannot do ({why}); expected "
        "'no' or 'bf16'"
    )


def _forget_earlier_run(accelerate: Any) -> None:
    """Accelerate keeps its settings in globals and refuses others; the process group must stay."""
    alone = not torch.distributed.is_initialized()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=alone)
    accelerate.state.GradientState._reset_state()


def _choose_device(accelerate: Any, name: str | None) -> None:
    # Accelerate starts no processes on a machine without accelerator unless it is told "cpu".
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    on_cpu = forced or resolve_device(name).type == "cpu"
    state = accelerate.PartialState(cpu=on_cpu)
    if state.num_processes == 1:
        state.device = torch.device("cpu") if on_cpu else resolve_device(name)
        if state.device.index is not None:  # seeds go to the current device
            torch.accelerator.set_device_index(state.device.index)
