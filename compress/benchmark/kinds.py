"""The two kinds that a benchmark times: torch networks of a checkpoint, and bundles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.benchmark.profiles import (
    positions_of,
    profile_operators,
    profile_segments,
)
from compress.benchmark.subject import OpenOptions, Outcome, Subject, SubjectSpec
from compress.data.image_data import Preprocessing
from compress.data.sample import noise
from compress.errors import UserInputError
from compress.exits.replay import exit_numbers
from compress.files import sha256_of
from compress.measure.op_profile import OpProfile, device_profile_of, profile_operations
from compress.measure.op_ranges import has_alike_blocks
from compress.measure.segment_times import segment_profile_of
from compress.models.outputs import logits_of
from compress.models.with_exits import WithExits, depth_of
from compress.opened import check_forward, open_checkpoint
from compress.runtime.device_measure import segment_profile
from compress.runtime.device_profile import DeviceProfile
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.exit_spelling import Position, last_position
from compress.runtime.manifest import MANIFEST
from compress.runtime.thresholds import check_thresholds

__all__ = ["BundleSubject", "CheckpointSubject"]


class CheckpointSubject(Subject):
    """A torch network of a file.

    Raises:
        UserInputError: the file or the thresholds cannot be used.
        UnsupportedModelError: the network is not known, or computes NaN.
    """

    kind = "checkpoint"

    def __init__(self, spec: SubjectSpec, name: str, options: OpenOptions) -> None:
        opened = open_checkpoint(spec.path, spec.opening or options.opening)
        model = _deployed(opened.model, spec)
        example, _ = noise(opened.image_shape(), count=1)
        self.classes = logits_of(check_forward(model, example)).shape[-1]
        self.image_shape = tuple(example.shape[1:])
        self.name, self.sha256 = name, opened.checkpoint.sha256
        self.network = opened.display_name
        self.thresholds = _bars(model, spec)
        self.positions = _positions(model)
        self.preprocessing = opened.preprocessing
        self.device = torch.device(options.device)
        self.uses_gpu = self.device.type == "cuda"
        self.runtime = f"torch on {options.device}"
        self.model = model.to(self.device)
        self._run = self._chosen_run()

    def run(self, images: Tensor) -> Outcome:
        """Run a batch; reading the classes waits for the device."""
        with torch.inference_mode():
            return self._run(images.to(self.device))

    def profile(self, images: Tensor) -> OpProfile:
        """Return what each operation takes, by torch's profiler."""
        return profile_operations(
            self.model, images.split(1), thresholds=self.thresholds if self.exits else None
        )

    def device_profile(self, images: Tensor, **about: Any) -> DeviceProfile:
        """Return a profile of images that all run the whole way.

        By operations of a network whose blocks are alike, which predicts other exits too; else by
        segments, with exit checks told apart.
        """
        singles = images.split(1)
        if isinstance(self.model, WithExits) and not has_alike_blocks(self.model):
            return segment_profile_of(self.model, singles, **about)
        never = [1.0] * self.exits
        return device_profile_of(profile_operations(self.model, singles, thresholds=never), **about)

    def _chosen_run(self) -> Callable[[Tensor], Outcome]:
        model = self.model
        if not isinstance(model, WithExits):
            return lambda images: _whole(logits_of(model(images)), 0)
        bars = list(self.thresholds)

        def early(images: Tensor) -> Outcome:
            if len(images) > 1:
                logits, exits = model.forward_early_batch(images, bars)
                return logits.argmax(-1).tolist(), exits
            logits, number = model.forward_early(images, bars)
            return _whole(logits, number)

        return early


class BundleSubject(Subject):
    """A bundle behind its dispatcher.

    Raises:
        UserInputError: the bundle or the thresholds cannot be used.
        ToolchainError: its backend is missing, or cannot run it.
    """

    kind = "bundle"

    def __init__(self, spec: SubjectSpec, name: str, options: OpenOptions) -> None:
        self.path, self.threads = spec.path, options.threads
        self.dispatcher = Dispatcher(spec.path, options.backend, threads=options.threads)
        if spec.thresholds is not None and self.dispatcher.manifest.exits:
            self.dispatcher.set_thresholds(_plain(spec.thresholds))
        manifest, backend = self.dispatcher.manifest, self.dispatcher.backend
        self.name, self.sha256 = name, sha256_of(spec.path / MANIFEST)
        self.network, self.classes = manifest.name, len(manifest.classes)
        self.image_shape = manifest.image.shape
        self.thresholds = tuple(manifest.thresholds)
        self.positions = positions_of(manifest)
        recorded = manifest.preprocessing
        self.preprocessing = Preprocessing.from_dict(recorded.to_dict()) if recorded else None
        self.max_batch = backend.max_batch
        place = getattr(backend, "device", "cuda")
        self.uses_gpu = place == "cuda"
        self.runtime = f"{backend.name} on {place}"

    def run(self, images: Tensor) -> Outcome:
        """Run a batch through the dispatcher."""
        found = self.dispatcher.run(images.numpy())
        return found.classes.tolist(), found.exits.tolist()

    def profile(self, images: Tensor) -> OpProfile:
        """Return what each segment takes, by the dispatcher's times."""
        return profile_segments(self.dispatcher, _arrays(images), threads=self.threads)

    def operators(self, images: Tensor) -> OpProfile | None:
        """Return what each operator takes on the CPU; None where another backend runs."""
        if self.runtime != "onnxruntime on cpu":
            return None
        return profile_operators(
            self.path, self.dispatcher.manifest, _arrays(images), threads=self.threads
        )

    def device_profile(self, images: Tensor, **about: Any) -> DeviceProfile:
        """Return a profile by segments, of images that all run the whole way."""
        return segment_profile(self.dispatcher, _arrays(images), **about)

    def close(self) -> None:
        """Give back what the backend holds."""
        self.dispatcher.close()


def _whole(logits: Tensor, number: int) -> Outcome:
    return logits.argmax(-1).tolist(), [number] * len(logits)


def _deployed(model: nn.Module, spec: SubjectSpec) -> nn.Module:
    if not isinstance(model, WithExits) or spec.exits is None:
        return model
    exit_numbers(spec.exits, model.positions)  # they must be there: heads are not invented
    return model.with_positions(spec.exits)


def _bars(model: nn.Module, spec: SubjectSpec) -> tuple[float, ...]:
    if not isinstance(model, WithExits):
        return ()
    if spec.thresholds is None:
        raise UserInputError(
            f"{spec.path} has early exits, and no threshold is given; expected one for all exits "
            "or one for each, such as --threshold 0.8"
        )
    return tuple(check_thresholds(_plain(spec.thresholds), len(model.gates)))


def _positions(model: nn.Module) -> tuple[Position, ...] | None:
    """Of a network without exits the last block alone, where it has blocks."""
    ends, depth = model.positions if isinstance(model, WithExits) else (), depth_of(model)
    return (*ends, last_position(depth)) if ends or depth else None


def _plain(thresholds: float | Sequence[float]) -> float | Sequence[float]:
    """One in a list means all exits, as on a command line."""
    is_single = not isinstance(thresholds, int | float) and len(thresholds) == 1
    return thresholds[0] if is_single else thresholds  # type: ignore[index]


def _arrays(images: Tensor) -> list[NDArray[np.float32]]:
    return list(images.numpy())
