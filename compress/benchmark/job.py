"""Benchmark checkpoints and bundles side by side, over the same images.

All networks take their turn on every image, so what drifts hits all of them alike, and every image
is timed as often as any other: the mean of a network with early exits is that of its exit rates.
Percentiles are over images and repeats. The images are spread evenly over the test split, because
the images of a folder lie class by class.
"""

import contextlib
import time

import torch

from compress.benchmark.energy import PowerChoice, choose_power
from compress.benchmark.lineup import check_together, open_subject, subject_names
from compress.benchmark.options import BenchmarkJob
from compress.benchmark.report import BenchmarkReport
from compress.benchmark.run import Bench
from compress.benchmark.subject import OpenOptions, Subject, SubjectSpec
from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.files import check_output
from compress.measure.latency import Clock, pinned_threads
from compress.runtime.device_profile import read_device_profile
from compress.runtime.power.sampling import PowerSource

__all__ = ["BenchmarkJob", "BenchmarkReport", "SubjectSpec", "benchmark"]


def benchmark(
    job: BenchmarkJob,
    *,
    clock: Clock = time.perf_counter_ns,
    source: PowerSource | None = None,
) -> BenchmarkReport:
    """Time all networks in turn, and what else the job asks for.

    Args:
        job: what to do.
        clock: gives nanoseconds.
        source: a power sensor in place of those of this machine.

    Raises:
        UserInputError: a file or an option cannot be used, or networks and data do not fit.
        UnsupportedModelError: a network is not known.
        ToolchainError: what runs or measures something that was asked for by name is missing.
    """
    for path in (job.save_profile, job.save_power_trace):
        if path is not None:
            check_output(path, force=job.force)
    target = None if job.predict is None else read_device_profile(job.predict)
    with pinned_threads(job.threads), contextlib.ExitStack() as stack:
        options = _options(job)
        names = subject_names(job.subjects)
        subjects = {}
        for spec, name in zip(job.subjects, names, strict=True):
            subjects[name] = open_subject(spec, name, options)
            stack.callback(subjects[name].close)
        first = check_together([*subjects.values()])
        data = job.data if isinstance(job.data, ImageData) else _load(job, first)
        check_together([*subjects.values()], data)
        bench = Bench(job, subjects, data, clock)
        bench.check(target)
        uses_gpu = any(subject.uses_gpu for subject in subjects.values())
        power = PowerChoice(source=source, reason=None) if source else _power(job, uses_gpu)
        return bench.run(power, target, options)


def _options(job: BenchmarkJob) -> OpenOptions:
    return OpenOptions(
        device=job.device,
        backend=job.backend,
        threads=torch.get_num_threads(),
        opening=job.opening,
    )


def _load(job: BenchmarkJob, subject: Subject) -> ImageData:
    height, width = subject.image_shape[1:]
    return load_data(
        str(job.data),
        image_size=(height, width),
        preprocessing=subject.preprocessing,
        seed=job.seed,
        cache=job.cache,
    )


def _power(job: BenchmarkJob, uses_gpu: bool) -> PowerChoice:
    return choose_power(
        job.energy,
        uses_gpu=uses_gpu,
        trace=job.power_trace,
        subjects=len(job.subjects),
        must=job.save_power_trace is not None,
    )
