"""What the segments of a torch network with exits take, and what its exit checks take of that.

Any network with exits has segments: what runs up to an exit, and that exit's check, its head, its
gate and the decision, which reads one value back from the device. They are timed one image at a
time while every image runs the whole way, by hooks on heads and gates; the network without exits is
timed in turn with it, in one piece.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.models.with_exits import WithExits
from compress.runtime.device_profile import DeviceProfile

__all__ = ["segment_profile_of"]

PASSES = 3  # over the images
WARMUP = 5  # runs of the first image


def segment_profile_of(
    model: WithExits,
    images: Sequence[Tensor],
    *,
    name: str,
    device: str,
    net_power_w: float | None = None,
) -> DeviceProfile:
    """Measure a profile by segments, with exit checks and the whole network told apart.

    Args:
        model: in eval mode, on the device where it is measured; left as it is.
        images: normalised, (1, C, H, W) each, at least one.
        name: of the profile.
        device: what is measured, in words.
        net_power_w: power under load less idle power, where it was measured.

    Raises:
        UserInputError: there is no image.
    """
    if not images:
        raise UserInputError("the profile was given no image; expected at least one")
    place = next(model.parameters()).device
    ready = [image.to(place) for image in images]
    with torch.inference_mode():
        for _ in range(WARMUP):
            _parts_ms(model, ready[0])
            _whole_ms(model, ready[0])
        rounds = [image for _ in range(PASSES) for image in ready]
        runs = [(_parts_ms(model, image), _whole_ms(model, image)) for image in rounds]
    bodies, checks = (
        [median(times) for times in zip(*(parts[kind] for parts, _ in runs), strict=True)]
        for kind in (0, 1)
    )
    return DeviceProfile(
        name=name,
        device=device,
        network=str(getattr(model, "display_name", type(model).__name__)),
        source=f"{len(rounds)} images in torch, {torch.get_num_threads()} threads",
        segments_ms=tuple(a + b for a, b in zip(bodies, [*checks, 0.0], strict=True)),
        checks_ms=tuple(checks),
        exits=model.positions,
        whole_ms=median(whole for _, whole in runs),
        net_power_w=net_power_w,
    )


def _parts_ms(model: WithExits, image: Tensor) -> tuple[list[float], list[float]]:
    """Return milliseconds of every segment without its check (E+1), and of every check (E)."""
    marks: list[float] = []
    with _marked(model, marks):
        marks.append(_now(image))
        model.every_exit(image)
        marks.append(_now(image))
    gaps = [1e3 * (after - before) for before, after in pairwise(marks)]
    return gaps[::2], gaps[1::2]  # body, check, body, …, body


def _whole_ms(model: WithExits, image: Tensor) -> float:
    start = _now(image)
    model(image)
    return 1e3 * (_now(image) - start)


@contextmanager
def _marked(model: WithExits, marks: list[float]) -> Iterator[None]:
    """Note the time when each check begins, and when its decision is there."""

    def begins(_module: nn.Module, inputs: Any) -> None:
        marks.append(_now(inputs[0]))

    def decided(_module: nn.Module, _inputs: Any, gate: Tensor) -> None:
        torch.sigmoid(gate).item()  # as the early return reads it
        marks.append(time.perf_counter())

    hooks: list[Any] = []
    try:
        for number, gate in enumerate(model.gates):
            hooks.append(model.heads_of(number)[0].register_forward_pre_hook(begins))
            hooks.append(gate.register_forward_hook(decided))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _now(on: Tensor) -> float:
    """Return the time in seconds when the device of a tensor has done its work."""
    wait: Callable[..., Any] = torch.cuda.synchronize if on.is_cuda else lambda _: None
    wait(on.device)
    return time.perf_counter()
