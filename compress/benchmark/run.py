"""The measurements of a benchmark, one after another, on networks that are open."""

from collections.abc import Callable, ItemsView, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.benchmark.energy import ImageEnergy, PowerChoice, measure_energy
from compress.benchmark.lineup import check_batches
from compress.benchmark.memory import PeakMemory, peak_memory
from compress.benchmark.options import BenchmarkJob
from compress.benchmark.report import BenchmarkReport, SubjectResult
from compress.benchmark.subject import OpenOptions, Outcome, Subject
from compress.benchmark.timing import interleaved, spread
from compress.data.image_data import ImageData, Split
from compress.errors import ToolchainError, UserInputError
from compress.measure.latency import Clock, Latency
from compress.measure.prediction import Prediction, predict
from compress.measure.versions import hardware, versions
from compress.runtime.device_profile import DeviceProfile, write_device_profile

__all__ = ["Bench"]

DATA_SECONDS = 2.0  # at most, to time decoding and normalising
NO_MEMORY = "peak memory was not asked for"


class Bench:
    """The networks of a job, opened, with their images."""

    def __init__(
        self, job: BenchmarkJob, subjects: Mapping[str, Subject], data: ImageData, clock: Clock
    ) -> None:
        self.job, self.subjects, self.data, self.clock = job, subjects, data, clock
        self.split: Split = data.splits["test"]
        if len(self.split) == 0:
            raise UserInputError(
                f"the test split of {data.name} is empty; expected at least one image"
            )
        self.indices = spread(len(self.split), job.images)
        self.images = self._prepared()  # by name, (N, 3, S, S) float32

    def check(self, target: DeviceProfile | None) -> None:
        """Raise what would go wrong after minutes of timing."""
        check_batches(self.job.batches, [*self.subjects.values()], len(self.indices))
        if self.job.operators and all(s.kind != "bundle" for s in self.subjects.values()):
            raise UserInputError(
                "--profile-operators was given without a bundle; expected one, as operators are "
                "those of its ONNX files"
            )
        if self.job.save_profile is not None:
            self._profiled()
        if target is not None:
            self._predictions(target, {name: (1,) * (s.exits + 1) for name, s in self._items()})

    def run(
        self, power: PowerChoice, target: DeviceProfile | None, options: OpenOptions
    ) -> BenchmarkReport:
        """Measure everything."""
        job = self.job
        outcomes = {name: self._outcome(name) for name in self.subjects}
        times = self._times(1)
        batches = {size: self._times(size) for size in job.batches}
        leaving = {name: self._leaving(name, exits) for name, (_, exits) in outcomes.items()}
        energy, reason = self._energy(power, times)
        memory, memory_reason = self._memory(options)
        predictions = {} if target is None else self._predictions(target, leaving)
        results = {
            name: SubjectResult(
                about=subject.to_dict(),
                latency=times[name],
                batches={size: found[name] for size, found in batches.items()},
                leaving=leaving[name],
                correct=self._correct(outcomes[name]),
                memory=memory.get(name),
                profile=subject.profile(self.images[name]) if job.profile else None,
                operators=subject.operators(self.images[name]) if job.operators else None,
                prediction=predictions.get(name),
            )
            for name, subject in self._items()
        }
        settings = self._settings()
        if target is not None:
            settings["predict"] = {"profile": target.name, "network": target.network}
        report = BenchmarkReport(
            results=results,
            data_time=self._data_time(),
            energy=energy,
            energy_reason=reason,
            memory_reason=memory_reason,
            settings=settings,
            versions=versions(),
            hardware=hardware(),
        )
        return replace(report, saved=self._saved(report))

    def _items(self) -> ItemsView[str, Subject]:
        return self.subjects.items()

    def _prepared(self) -> dict[str, Tensor]:
        """Normalised as each network was trained; one copy for all that agree."""
        pixels = self.split.images(self.indices)
        known: dict[Any, Tensor] = {}
        for subject in self.subjects.values():
            if subject.preprocessing not in known:
                known[subject.preprocessing] = self._normalize(subject)(pixels)
        return {name: known[subject.preprocessing] for name, subject in self._items()}

    def _normalize(self, subject: Subject) -> Callable[[Tensor], Tensor]:
        return (subject.preprocessing or self.data.preprocessing).normalize

    def _outcome(self, name: str) -> Outcome:
        pairs = [self.subjects[name].run(image) for image in self.images[name].split(1)]
        return [c[0] for c, _ in pairs], [e[0] for _, e in pairs]

    def _times(self, size: int) -> dict[str, Latency]:
        full = len(self.indices) // size
        calls = {
            name: [partial(s.run, batch) for batch in self.images[name].split(size)[:full]]
            for name, s in self._items()
        }
        return interleaved(
            calls, seconds=self.job.seconds, clock=self.clock, progress=self.job.progress
        )

    def _data_time(self) -> Latency:
        normalize = self._normalize(next(iter(self.subjects.values())))
        calls = [partial(_read, self.split, i, normalize) for i in self.indices.split(1)]
        seconds = min(self.job.seconds, DATA_SECONDS)
        return interleaved({"data": calls}, seconds=seconds, clock=self.clock)["data"]

    def _leaving(self, name: str, exits: Sequence[int]) -> tuple[int, ...]:
        return tuple(exits.count(k) for k in range(self.subjects[name].exits + 1))

    def _correct(self, outcome: Outcome) -> int:
        labels = self.split.labels[self.indices].tolist()
        return sum(found == label for found, label in zip(outcome[0], labels, strict=True))

    def _energy(
        self, power: PowerChoice, times: Mapping[str, Latency]
    ) -> tuple[dict[str, ImageEnergy] | None, str | None]:
        if power.source is None:
            return None, power.reason
        job = self.job
        works = {name: partial(self._outcome, name) for name in self.subjects}
        try:
            energy = measure_energy(
                power.source,
                works,
                {name: latency.mean_ms for name, latency in times.items()},
                idle_seconds=job.idle_seconds,
                seconds=job.seconds,
                clock=self.clock,
                save_trace=job.save_power_trace,
            )
        except ToolchainError as err:  # a sensor that nobody asked for by name
            if job.energy != "auto" or job.save_power_trace is not None:
                raise
            return None, str(err)
        return energy, None

    def _memory(self, options: OpenOptions) -> tuple[dict[str, PeakMemory], str | None]:
        if not self.job.memory:
            return {}, NO_MEMORY
        specs = zip(self.job.subjects, self.subjects, strict=True)
        try:
            return {n: peak_memory(spec, options, self.images[n]) for spec, n in specs}, None
        except ToolchainError as err:
            return {}, str(err)

    def _predictions(
        self, target: DeviceProfile, leaving: Mapping[str, Sequence[int]]
    ) -> dict[str, Prediction]:
        """For the networks that the profile fits; there must be one."""
        tried = {
            name: _prediction(target, leaving[name], subject) for name, subject in self._items()
        }
        found = {name: each for name, each in tried.items() if isinstance(each, Prediction)}
        if not found:
            raise next(each for each in tried.values() if isinstance(each, UserInputError))
        return found

    def _profiled(self) -> str:
        """Return the network whose profile is saved."""
        dynamic = [name for name, subject in self._items() if subject.exits]
        if len(dynamic) != 1:
            raise UserInputError(
                f"--save-profile was given with {len(dynamic)} networks with early exits; expected "
                "one, whose parts are timed"
            )
        return dynamic[0]

    def _saved(self, report: BenchmarkReport) -> dict[str, str]:
        """Write the device profile; return what was written."""
        saved = {}
        if self.job.save_power_trace is not None:
            saved["power trace"] = str(self.job.save_power_trace)
        if self.job.save_profile is None:
            return saved
        name = self._profiled()
        energy = (report.energy or {}).get(name)
        net_power_w = energy.reading.net_power_w if energy else None
        profile = self.subjects[name].device_profile(
            self.images[name],
            name=self.job.save_profile.stem,
            device=self._device_name(report),
            net_power_w=net_power_w if net_power_w and net_power_w > 0 else None,
        )
        write_device_profile(profile, self.job.save_profile)
        return {**saved, "device profile": str(self.job.save_profile)}

    def _device_name(self, report: BenchmarkReport) -> str:
        cpu = f"{report.hardware['cpu']}, {torch.get_num_threads()} threads"
        return str(report.hardware["cuda"] or cpu) if self._on_gpu() else cpu

    def _on_gpu(self) -> bool:
        return self.subjects[self._profiled()].uses_gpu

    def _settings(self) -> dict[str, Any]:
        job = self.job
        return {
            "data": self.data.name,
            "data_sha256": self.data.sha256,
            "split": "test",
            "images": len(self.indices),
            "image_size": self.data.preprocessing.to_dict()["image_size"],
            "preprocessing": self.data.preprocessing.to_dict(),
            "batches": list(job.batches),
            "seconds": job.seconds,
            "idle_seconds": job.idle_seconds,
            "threads": torch.get_num_threads(),
            "device": job.device,
            "seed": job.seed,
        }


def _prediction(
    target: DeviceProfile, leaving: Sequence[int], subject: Subject
) -> Prediction | UserInputError:
    try:
        return predict(target, leaving, positions=subject.positions)
    except UserInputError as err:
        return err


def _read(split: Split, index: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    return normalize(split.images(index))
