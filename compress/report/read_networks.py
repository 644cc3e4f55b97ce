"""The rows of the final comparison, from table.json and the figures of a benchmark."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from compress.report.facts import Latency, Network
from compress.report.task_files import TaskFiles
from compress.report.values import count_in, list_in, number_in, object_in, plain, text_in

__all__ = ["add_benchmark", "read_networks"]

RUNTIMES = ("torch", "onnx", "bundle")
ENERGY_KEYS = ("per_image_mj", "energy_mj", "net_energy_mj")


def read_networks(compares: Sequence[TaskFiles]) -> list[Network]:
    """Return the networks that a chain compared, in the order of its table."""
    rows = [row for task in compares for row in list_in(task.report, "rows")]
    return [_network(row) for row in rows if text_in(row, "network")]


def add_benchmark(networks: list[Network], benchmarks: Iterable[dict[str, Any]]) -> list[Network]:
    """Return the networks with what benchmarks measured; those only measured come last."""
    found = {network.name: network for network in networks}
    for figures in benchmarks:
        for name, value in object_in(figures, "latency").items():
            network, runtimes = _timed(name, value)
            before = found.get(network, Network(name=network))
            # The table timed its networks in turn, so its own figures stay.
            known = {each.runtime for each in before.latencies}
            new = tuple(each for each in runtimes if each.runtime not in known)
            found[network] = replace(before, latencies=(*before.latencies, *new))
        for name, value in object_in(figures, "energy").items():
            energy_mj = _energy_mj(value)
            if energy_mj is not None:
                name = plain(str(name))
                before = found.get(name, Network(name=name))
                found[name] = replace(before, energy_mj=energy_mj)
    return list(found.values())


def _network(row: Any) -> Network:
    times = object_in(row, "latency_ms")
    accuracies = [number_in(row, key) for key in ("acc1", "acc1_finetuned", "acc1_slimmed")]
    expected = number_in(row, "expected_macs")
    return Network(
        name=text_in(row, "network"),
        params=count_in(row, "params"),
        macs=number_in(row, "macs") if expected is None else expected,
        acc1=next((value for value in accuracies if value is not None), None),
        acc1_slimmed=number_in(row, "acc1_slimmed"),
        ratio=number_in(row, "ratio"),
        true_ratio=number_in(row, "true_pruned_ratio"),
        exit_threshold=number_in(row, "exit_threshold"),
        latencies=_latencies(times),
        energy_mj=_energy_mj(row),
        test_images=count_in(row, "test_images"),
    )


def _timed(name: str, value: Any) -> tuple[str, tuple[Latency, ...]]:
    """Return network and latencies, whichever of the three forms names the runtime.

    They are "dynn/torch": {median, …}, "dynn": {torch: {median, …}}, and "dynn": {median, …} of
    `compress.benchmark`, where the network itself says what it runs with.
    """
    network, _, runtime = plain(str(name)).rpartition("/")
    if number_in(value, "median") is None:
        return plain(str(name)), _latencies(value)
    if network and runtime in RUNTIMES:
        return network, _latencies({runtime: value})
    return plain(str(name)), _latencies({"benchmark": value})


def _latencies(times: Any) -> tuple[Latency, ...]:
    found = []
    for runtime, value in object_in(times).items():
        median = number_in(value, "median")
        if median is not None:
            p10, p90, p99 = (number_in(value, key) for key in ("p10", "p90", "p99"))
            found.append(
                Latency(
                    runtime=plain(str(runtime)),
                    median_ms=median,
                    p10_ms=p10,
                    p90_ms=p90,
                    p99_ms=p99,
                )
            )
    return tuple(found)


def _energy_mj(value: Any) -> float | None:
    """Return millijoules of one image, as a plain number or under one of the usual names."""
    found = [number_in(value), *(number_in(value, key) for key in ENERGY_KEYS)]
    return next((each for each in found if each is not None), None)
