"""What a benchmark found: latency side by side, the lines of the published logs, profiles, energy.

The three lines of the logs, for each network:

    FPS: 42.13030808257747
    elapsed_time_ms: 23.735881495097328
    Avg Forward Time per Image: 19.05335369564238 ms

Elapsed time is data time (decoding, preparing, normalising) and forward time of an image, both on
average; FPS is 1000 over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.benchmark.energy import ImageEnergy
from compress.benchmark.memory import HOW, PeakMemory
from compress.measure.latency import Latency
from compress.measure.op_profile import OpProfile
from compress.measure.prediction import Prediction

__all__ = ["BenchmarkReport", "SubjectResult", "profile_dict"]

SCHEMA = "compress.benchmark/1"
COLUMNS = ("median", "p10", "p90", "p99", "mean", "FPS", "% of first", "MiB")


@dataclass(frozen=True, kw_only=True)
class SubjectResult:
    """The figures of one network.

    Attributes:
        about: what it is, of `Subject.to_dict`.
        latency: forward time of one image, milliseconds.
        batches: by batch size the forward time of a whole batch.
        leaving: images that left at each exit, the final head last.
        correct: images whose class is the right one.
        memory: None where it was not measured.
        profile: by operation or segment, or None.
        operators: by operator of ONNX Runtime, or None.
        prediction: for another device, or None.
    """

    about: Mapping[str, Any]
    latency: Latency
    batches: Mapping[int, Latency] = field(default_factory=dict)
    leaving: tuple[int, ...]
    correct: int
    memory: PeakMemory | None = None
    profile: OpProfile | None = None
    operators: OpProfile | None = None
    prediction: Prediction | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """The figures of all networks, the first of which is the baseline.

    Attributes:
        results: by name, in the order of their turns.
        data_time: of one image, milliseconds, the same for all networks.
        energy: by name; None where it was not measured, and then `energy_reason` says why.
        energy_reason: None where energy was measured.
        memory_reason: None where memory was measured.
        settings: data, images, image_size, threads, seconds, …
        versions: of the software.
        hardware: the machine.
        saved: files that were written besides, by what they are.
    """

    results: Mapping[str, SubjectResult]
    data_time: Latency
    energy: Mapping[str, ImageEnergy] | None
    energy_reason: str | None
    memory_reason: str | None
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]
    saved: Mapping[str, str] = field(default_factory=dict)

    def elapsed_ms(self, name: str) -> float:
        """Return data time and forward time of an image on average, milliseconds."""
        return self.data_time.mean_ms + self.results[name].latency.mean_ms

    def percent_of_first(self, name: str) -> float:
        """Return the mean forward time as percentage of that of the first network."""
        first = next(iter(self.results.values()))
        return 100 * self.results[name].latency.mean_ms / first.latency.mean_ms

    def log_lines(self, name: str) -> str:
        """Return the three lines of the published logs."""
        elapsed_ms = self.elapsed_ms(name)
        return (
            f"FPS: {1000 / elapsed_ms}\n"
            f"elapsed_time_ms: {elapsed_ms}\n"
            f"Avg Forward Time per Image: {self.results[name].latency.mean_ms} ms"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        results = self.results
        energy = self.energy
        return {
            "schema": SCHEMA,
            "subjects": {name: _about(result) for name, result in results.items()},
            "settings": dict(self.settings),
            "data_time": self.data_time.to_dict(),
            "latency": {name: self._latency(name) for name in results},
            "memory": {
                name: None if r.memory is None else r.memory.to_dict()
                for name, r in results.items()
            },
            "memory_how": HOW,
            "memory_reason": self.memory_reason,
            "profiles": _profiles({name: r.profile for name, r in results.items()}),
            "operators": _profiles({name: r.operators for name, r in results.items()}),
            "energy": None if energy is None else {n: e.to_dict() for n, e in energy.items()},
            "energy_reason": self.energy_reason,
            "predictions": {
                name: r.prediction.to_dict() for name, r in results.items() if r.prediction
            },
            "saved": dict(self.saved),
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
        }

    def to_text(self) -> str:
        """Return a table, then for each network the lines of the logs and its profiles."""
        parts = [self._head(), self._table()]
        parts += [text for text in (self._batches(), self._memory(), self._energy()) if text]
        parts += [self._details(name) for name in self.results]
        parts += [f"written: {path} ({what})" for what, path in self.saved.items()]
        return "\n\n".join(parts)

    def _latency(self, name: str) -> dict[str, Any]:
        result = self.results[name]
        elapsed_ms = self.elapsed_ms(name)
        return {
            **result.latency.to_dict(),
            "fps": 1000 / elapsed_ms,
            "elapsed_time_ms": elapsed_ms,
            "avg_forward_ms": result.latency.mean_ms,
            "percent_of_first": self.percent_of_first(name),
            "log": self.log_lines(name),
            "batches": {
                str(size): {
                    **latency.to_dict(),
                    "per_image_ms": latency.mean_ms / size,
                    "images_per_second": 1000 * size / latency.mean_ms,
                }
                for size, latency in result.batches.items()
            },
        }

    def _head(self) -> str:
        told = self.settings
        side, threads = told["image_size"], self.data_time.threads
        return (
            f"{told['images']} test images of {told['data']}, {side}x{side}, one by one, the "
            f"networks in turn, {threads} threads ({self.hardware['cpu']})\n"
            "forward time of an image in ms, from normalised pixels on the host to its class there;"
            f"\ndata time (decoding, preparing, normalising): {self.data_time.mean_ms:.3f} on "
            "average"
        )

    def _table(self) -> str:
        width = max(map(len, self.results))
        lines = [" ".join([" " * width, *(f"{column:>10}" for column in COLUMNS)])]
        for name, result in self.results.items():
            latency, memory = result.latency, result.memory
            times = (latency.median_ms, latency.p10_ms, latency.p90_ms, latency.p99_ms)
            cells = [f"{each:10.3f}" for each in (*times, latency.mean_ms)]
            cells += [f"{1000 / self.elapsed_ms(name):10.2f}"]
            cells += [f"{self.percent_of_first(name):10.1f}"]
            cells += ["         -" if memory is None else f"{memory.net_mib:10.1f}"]
            lines.append(" ".join([name.ljust(width), *cells]))
        return "\n".join(lines)

    def _batches(self) -> str:
        lines = [
            f"{name}, batches of {size}: {latency.median_ms:.3f} ms a batch (p90 "
            f"{latency.p90_ms:.3f}), {latency.mean_ms / size:.3f} ms an image, "
            f"{1000 * size / latency.mean_ms:.1f} images/s"
            for name, result in self.results.items()
            for size, latency in result.batches.items()
        ]
        return "\n".join(lines)

    def _memory(self) -> str:
        if self.memory_reason is not None:
            return f"memory: {self.memory_reason}"
        return f"MiB: {HOW}"

    def _energy(self) -> str:
        if self.energy is None:
            return f"energy: {self.energy_reason}"
        lines = []
        for name, energy in self.energy.items():
            cell = (
                energy.cell or f"{energy.per_image_mj:.2f}mJ (no saving: the first is not above 0)"
            )
            lines.append(f"energy of an image on {name}: {cell}\n  {energy.reading.to_text()}")
        return "\n".join(lines)

    def _details(self, name: str) -> str:
        result, images = self.results[name], self.settings["images"]
        about = result.about
        parts = [f"{name}: {about['network']} by {about['runtime']}", self.log_lines(name)]
        parts.append(f"right: {result.correct} of {images} timed images")
        if len(result.leaving) > 1:
            rates = ", ".join(f"{100 * count / images:.1f}" for count in result.leaving)
            bars = ", ".join(f"{bar:g}" for bar in dict.fromkeys(about["thresholds"]))
            bars = bars if "," not in bars else ", ".join(map(str, about["thresholds"]))
            parts.append(f"leaving at each exit, the final head last: {rates} % (threshold {bars})")
        parts += ["\n" + each.to_text() for each in (result.profile, result.operators) if each]
        if result.prediction is not None:
            parts.append("\n" + result.prediction.to_text())
            known = self.settings.get("predict", {}).get("network")
            if known != about["network"]:
                parts.append(f"note: that profile was measured on {known}, not on this network")
        return "\n".join(parts)


def profile_dict(profile: OpProfile) -> dict[str, Any]:
    """Return a profile as JSON values, its lines under "rows"."""
    told = profile.to_dict()
    return {"rows": told.pop("operations"), **told}


def _profiles(profiles: Mapping[str, OpProfile | None]) -> dict[str, Any]:
    return {name: profile_dict(each) for name, each in profiles.items() if each is not None}


def _about(result: SubjectResult) -> dict[str, Any]:
    images = sum(result.leaving)
    return {
        **result.about,
        "leaving": list(result.leaving),
        "exit_rates": [count / images for count in result.leaving],
        "correct": result.correct,
    }
