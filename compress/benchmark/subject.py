"""What a benchmark times: any network behind one face.

A run goes from normalised images on the host to classes on the host, for all kinds: the copy to the
device and the wait for its end are in it, decoding and normalising are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.data.image_data import Preprocessing
from compress.measure.op_profile import OpProfile
from compress.opened import Opening
from compress.runtime.device_profile import DeviceProfile
from compress.runtime.exit_spelling import Position

__all__ = ["OpenOptions", "Outcome", "Subject", "SubjectSpec"]

Outcome = tuple[list[int], list[int]]  # of each image its class, and the exit where it left


@dataclass(frozen=True, kw_only=True)
class SubjectSpec:
    """Something to time.

    Attributes:
        path: a checkpoint file, or the folder of a bundle.
        name: None takes the name of the file, or its path where names repeat.
        thresholds: one for all exits or one for each; None takes those of the bundle. A checkpoint
            with exits needs them; without exits they mean nothing.
        exits: positions of the exits that are deployed, of a checkpoint; None is all.
        opening: how it is opened, a checkpoint; None is as all others.
    """

    path: Path
    name: str | None = None
    thresholds: float | Sequence[float] | None = None
    exits: Sequence[Position] | None = None
    opening: Opening | None = None


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How subjects are opened.

    Attributes:
        device: where checkpoints run.
        backend: that runs bundles; None chooses.
        threads: inside an operation, on the processor.
        opening: how checkpoints are opened.
    """

    device: str = "cpu"
    backend: str | None = None
    threads: int
    opening: Opening = field(default_factory=Opening)


class Subject:
    """An opened network.

    Attributes:
        name: in the report.
        kind: "checkpoint" or "bundle".
        network: such as "gfnet_dynn_12_384".
        runtime: what runs it, such as "torch on cpu".
        sha256: of the checkpoint, or of the manifest of the bundle.
        image_shape: (C, H, W) that it takes.
        classes: K.
        thresholds: of its exits, none without.
        positions: where the exits stand, then what the final head is called: the last block, where
            the network is counted in blocks; None unknown.
        preprocessing: that it was trained with; None takes that of the data.
        max_batch: images that it takes at a time; None any number.
        uses_gpu: whether it runs there.
    """

    name: str
    kind: str
    network: str
    runtime: str
    sha256: str
    image_shape: tuple[int, ...]
    classes: int
    thresholds: tuple[float, ...] = ()
    positions: tuple[Position, ...] | None = None
    preprocessing: Preprocessing | None = None
    max_batch: int | None = None
    uses_gpu: bool = False

    def run(self, images: Tensor) -> Outcome:
        """Run a batch (B, C, H, W) float32 of the host to its end."""
        raise NotImplementedError

    def profile(self, images: Tensor) -> OpProfile:
        """Return what each operation or segment takes, over images (N, C, H, W) one at a time."""
        raise NotImplementedError

    def operators(self, images: Tensor) -> OpProfile | None:
        """Return what each operator takes by ONNX Runtime's profiler; None of other runtimes."""
        return None

    def device_profile(self, images: Tensor, **about: Any) -> DeviceProfile:
        """Return a profile to predict with; `about` is as in `segment_profile`."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds."""

    @property
    def exits(self) -> int:
        """E, the exits before the final head."""
        return len(self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Return what it is, as JSON values."""
        return {
            "kind": self.kind,
            "network": self.network,
            "runtime": self.runtime,
            "sha256": self.sha256,
            "thresholds": list(self.thresholds),
            "positions": None if self.positions is None else list(self.positions),
        }
