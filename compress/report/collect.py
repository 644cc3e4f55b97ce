"""Read a run folder into facts: which steps are done, of which chain, on which network.

A step is done when its folder holds `done.json`; its kind and its network are in the name of the
folder, as `compress.recipe.plan` gives it: "vgg/slim/0.4" is the step slim of the chain vgg on the
network "slim 0.4".
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from compress.errors import UserInputError
from compress.files import is_superseded
from compress.report.facts import BASELINE, Chain, Environment, RunFacts
from compress.report.read_deployment import (
    read_dispatch,
    read_energy,
    read_parity,
    read_profiles,
)
from compress.report.read_exits import read_exits, read_front, read_plan
from compress.report.read_networks import add_benchmark, read_networks
from compress.report.read_training import read_curves, read_slim
from compress.report.task_files import TaskFiles
from compress.report.values import list_in, object_in, plain, read_object, text_in

__all__ = ["collect"]

S = TypeVar("S")
T = TypeVar("T")
KINDS = (
    "start",
    "train",
    "slim",
    "finetune",
    "distil",
    "exits",
    "plan",
    "evaluate",
    "export",
    "dispatch",
    "benchmark",
    "compare",
    "report",
)
SETTINGS = ("data", "image_size", "seed")
MAX_TASKS = 1_000
DEPTHS = ("*", "*/*", "*/*/*")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a task stands in its recipe."""

    chain: str
    kind: str
    network: str


def collect(run_dir: Path) -> RunFacts:
    """Return what the finished steps of a run told.

    Args:
        run_dir: folder of a run, as `python -m compress run` leaves it, whole or interrupted.

    Raises:
        UserInputError: there is no such folder, or no finished step in it.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserInputError(f"run {run_dir} is not a folder; give one such as runs/quickstart")
    notes: list[str] = []
    recipe = read_object(run_dir / "recipe.json", "recipe.json", notes)
    tasks = _tasks(run_dir, list(object_in(recipe, "chains")), notes)
    if not tasks:
        raise UserInputError(
            f"run {run_dir} holds no finished step; expected folders with done.json, as "
            "python -m compress run leaves them"
        )
    chains = [
        _chain(name, list(group)) for name, group in groupby(tasks, key=lambda each: each.chain)
    ]
    return RunFacts(
        name=text_in(recipe, "name") or plain(run_dir.resolve().name),
        folder=plain(run_dir.resolve().name),
        settings=_settings(recipe),
        chains=tuple(chains),
        environments=_environments(tasks),
        notes=tuple(dict.fromkeys(notes)),  # a file that two readers want is named once
    )


def _tasks(run_dir: Path, chains: Sequence[str], notes: list[str]) -> list[TaskFiles]:
    """Return the finished tasks, chain by chain, in the order of the steps."""
    folders = {
        mark.parent
        for depth in DEPTHS
        for mark in run_dir.glob(f"{depth}/*.json")
        if mark.name in ("done.json", "started.json")
    }
    found: list[TaskFiles] = []
    for folder in sorted(folders)[:MAX_TASKS]:
        parts = folder.relative_to(run_dir).parts
        place = _place(parts, chains)
        if place is None or any(is_superseded(Path(part)) for part in parts):
            continue
        name = plain("/".join(parts))
        if not (folder / "done.json").is_file():
            if place.kind != "report":  # which is being written
                notes.append(f"{name} is not finished, so it is left out.")
            continue
        done = read_object(folder / "done.json", f"{name}/done.json", notes)
        found.append(
            TaskFiles(
                name=name,
                folder=folder,
                chain=plain(place.chain),
                kind=place.kind,
                network=place.network,
                figures=object_in(done, "figures"),
                notes=notes,
            )
        )
    order = {plain(name): number for number, name in enumerate(chains)}
    return sorted(found, key=lambda each: _rank(each, order))


def _rank(task: TaskFiles, order: dict[str, int]) -> tuple[Any, ...]:
    known = order.get(task.chain, len(order))
    return known, task.chain, KINDS.index(task.kind), _network_rank(task.network)


def _network_rank(name: str) -> tuple[Any, ...]:
    """Return a key: the baseline first, networks with exits last, 0.05 before 0.4 as numbers go."""
    pieces = re.split(r"(\d+(?:\.\d+)?)", name)
    numbers = [(float(each), "") if i % 2 else (0.0, each) for i, each in enumerate(pieces)]
    return name != BASELINE, "dynn" in name, name.count(" "), numbers


def _place(parts: Sequence[str], chains: Sequence[str]) -> _Place | None:
    """Return what a folder is called after; None for a folder of something else."""
    inside = bool(chains) and parts[0] in chains
    chain = parts[0] if inside or parts[0] not in KINDS else ""
    rest = parts[1:] if chain else parts
    if not rest or rest[0] not in KINDS or len(rest) > 2:
        return None
    return _Place(chain=chain, kind=rest[0], network=_network(rest))


def _network(rest: Sequence[str]) -> str:
    """Return the name of a network from "finetune", "0.4" or "export", "distilled-dynn"."""
    if len(rest) == 1:
        return "distilled" if rest[0] == "distil" else BASELINE
    name = plain(rest[1]).replace("-", " ")
    return f"slim {name}" if re.match(r"\d+\.?\d*( |$)", name) else name


def _chain(name: str, tasks: Sequence[TaskFiles]) -> Chain:
    of = {kind: [each for each in tasks if each.kind == kind] for kind in KINDS}
    benchmarks = [each.figures for each in of["benchmark"]]
    networks = read_networks(of["compare"])
    return Chain(
        name=name,
        networks=tuple(add_benchmark(networks, benchmarks)),
        slims=tuple(map(read_slim, of["slim"] or filter(_has_gamma, of["train"]))),
        curves=tuple(curve for each in tasks for curve in read_curves(each)),
        exits=_told(read_exits, of["evaluate"]),
        fronts=_told(read_front, of["plan"]),
        plans=_told(read_plan, of["plan"]),
        parities=_told(read_parity, of["export"]),
        dispatches=_told(read_dispatch, of["dispatch"]),
        profiles=tuple(found for each in benchmarks for found in read_profiles(each)),
        energy=next(iter(_told(read_energy, benchmarks)), None),
    )


def _told(read: Callable[[S], T | None], sources: Iterable[S]) -> tuple[T, ...]:
    """Return what a reader finds in each source, without those in which it finds nothing."""
    return tuple(found for each in sources if (found := read(each)) is not None)


def _has_gamma(task: TaskFiles) -> bool:
    return bool(object_in(task.figures, "gamma"))


def _settings(recipe: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = [(name.replace("_", " "), text_in(recipe, name)) for name in SETTINGS]
    return tuple((name, value) for name, value in pairs if value)


def _environments(tasks: Sequence[TaskFiles]) -> tuple[Environment, ...]:
    """Return the distinct environments, each with the tasks that name it."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for task in tasks:
        values = _environment_of(task)
        if values:
            found.setdefault(values, []).append(task.name)
    return tuple(Environment(steps=tuple(steps), values=values) for values, steps in found.items())


def _environment_of(task: TaskFiles) -> tuple[tuple[str, str], ...]:
    """Return hardware and versions as a task wrote them, names in words."""
    content = task.report
    told = object_in(content, "manifest", "provenance") or content
    pairs = [
        (plain(str(name)).replace("_", " "), text_in(values, name))
        for values in (object_in(told, "hardware"), object_in(told, "versions"))
        for name in list_in({"names": list(values)}, "names")
    ]
    return tuple((name, value) for name, value in pairs if value)
