"""What a benchmark is asked for."""

from dataclasses import dataclass, field
from pathlib import Path

from compress.benchmark.energy import ENERGY_CHOICES
from compress.benchmark.subject import SubjectSpec
from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.opened import Opening

__all__ = ["BenchmarkJob"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """What to time, and how.

    Attributes:
        subjects: checkpoints and bundles; the first is the baseline.
        data: "digits", "cifar10:DIR" or "folder:DIR", or data loaded at the size of the networks.
        images: how many of the test split, fewer where it holds fewer.
        batches: batch sizes to time besides 1.
        seconds: that each network runs in each measurement; ten or more for energy to trust.
        idle_seconds: to measure idle power.
        threads: inside an operation; None leaves it to torch, and bundles take as many.
        device: where checkpoints run.
        backend: that runs bundles; None takes TensorRT where there are engines and a GPU.
        opening: how checkpoints are opened.
        profile: also time each operation or segment.
        operators: also time each operator of the bundles, by ONNX Runtime's profiler.
        memory: also measure peak memory, in a process for each network.
        energy: "auto", "none", "jetson", "rapl" or "nvml".
        power_trace: file of recorded power to replay in place of a sensor.
        save_power_trace: file to record power in.
        predict: name or file of a device profile to predict for.
        save_profile: file for the profile of this device, of the one network with exits.
        force: replace existing files.
        seed: of the split of the data.
        cache: folder of decoded images, or "off"; None takes the usual folder.
        progress: show bars on stderr.
    """

    subjects: tuple[SubjectSpec, ...]
    data: str | ImageData
    images: int = 64
    batches: tuple[int, ...] = ()
    seconds: float = 10.0
    idle_seconds: float = 10.0
    threads: int | None = None
    device: str = "cpu"
    backend: str | None = None
    opening: Opening = field(default_factory=Opening)
    profile: bool = True
    operators: bool = False
    memory: bool = True
    energy: str = "auto"
    power_trace: Path | None = None
    save_power_trace: Path | None = None
    predict: str | Path | None = None
    save_profile: Path | None = None
    force: bool = False
    seed: int = 0
    cache: Path | str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.subjects:
            raise UserInputError("a benchmark was asked of no network; expected at least one")
        if self.images < 1:
            raise UserInputError(f"--images is {self.images}; expected at least 1")
        for size in self.batches:
            if not 1 <= size <= self.images:
                raise UserInputError(
                    f"--batch is {size} with --images {self.images}; expected batches of 1 to as "
                    "many images as there are"
                )
        for name in ("seconds", "idle_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                option = name.replace("_", "-")
                raise UserInputError(f"--{option} is {getattr(self, name)}; expected more than 0")
        if self.energy not in ENERGY_CHOICES:
            wanted = ", ".join(ENERGY_CHOICES)
            raise UserInputError(f"--energy is {self.energy!r}; expected one of {wanted}")
        if self.save_power_trace and (self.energy == "none" or self.power_trace):
            raise UserInputError(
                "--save-power-trace was given where no sensor is read; expected it without "
                "--energy none and --power-trace"
            )
