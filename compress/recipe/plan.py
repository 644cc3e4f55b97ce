"""Unroll a recipe into tasks: each reads what earlier tasks made and makes one folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import UserInputError
from compress.files import sha256_of
from compress.recipe.schema import Recipe, Step

__all__ = ["BASELINE", "STEP_VERSIONS", "Task", "plan_tasks"]

BASELINE = "baseline"  # what `start` or `train` gives, and the others are compared with
DISTILLED = "distilled"  # the one that `distil` makes
DYNAMIC = "dynn"  # in the name of every network with early exits
BEGINNINGS = ("start", "train")  # the steps that need no network

# Part of a step's identity. Raise the number of a kind when its work comes to other results than
# before: what earlier versions made is then made again, and theirs is kept aside.
# `python -m tools.step_code` tells which kinds a change of the code concerns.
STEP_VERSIONS = {
    "start": 1,
    "train": 1,
    "slim": 2,  # mends the cut network by images of the training split
    "finetune": 1,
    "distil": 1,
    "exits": 1,
    "plan": 2,  # drops exits that nobody takes, and plans that save nothing
    "evaluate": 1,
    "accuracy": 1,
    "export": 2,  # bundles of format 2, cut from one graph
    "dispatch": 1,
    "compare": 1,
    "benchmark": 2,  # segments named by where they end
    "report": 1,
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One unit of work.

    Attributes:
        name: unique, and the folder under the run: "train", "vgg/slim/0.4".
        kind: which work, see `compress.recipe.tasks`.
        options: JSON values that decide the result.
        needs: names of the tasks whose results it reads.
        version: of the kind, see `STEP_VERSIONS`.
        factory: "package.module:function" that builds the network of the chain, where it is not of
            `compress.models`.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    version: int = 1
    factory: str | None = None


@dataclass(kw_only=True)
class _Chain:
    """One chain while it is unrolled.

    Attributes:
        prefix: of the names of its tasks: "vgg/", or "" for a recipe of one chain.
        tasks: so far.
        history: per network the names of its tasks, by kind.
        newest: per network the task whose checkpoint is its newest.
        factory: of the network that it began with, see `Task`.
    """

    prefix: str
    tasks: list[Task] = field(default_factory=list)
    history: dict[str, dict[str, str]] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    factory: str | None = None

    def add(
        self,
        step: Step,
        place: str,
        *,
        kind: str | None = None,
        options: dict[str, Any] | None = None,
        needs: tuple[str, ...] = (),
        network: str | None = None,
        makes_checkpoint: bool = True,
    ) -> None:
        name = f"{self.prefix}{place}"
        if any(other.name == name for other in self.tasks):
            raise UserInputError(
                f"the recipe makes {name!r} twice; expected each step once a chain"
            )
        own = _options(step) if options is None else options
        kind = kind or step.kind
        task = Task(
            name=name,
            kind=kind,
            options=own,
            needs=needs,
            version=STEP_VERSIONS[kind],
            factory=self.factory if kind == "distil" else self.factory_of(network),
        )
        self.tasks.append(task)
        if network is not None:
            self.history.setdefault(network, {})[kind] = name
            if makes_checkpoint:
                self.newest[network] = name

    def factory_of(self, network: str | None) -> str | None:
        """Return the factory that a network needs: one that `distil` made is always of ours."""
        return None if network is not None and DISTILLED in network else self.factory

    @property
    def begins_trained(self) -> bool:
        """Whether the chain began with a network that somebody had trained."""
        return "start" in self.history.get(BASELINE, {})

    def done(self, network: str, *kinds: str) -> tuple[str, ...]:
        """Return the names of the tasks of these kinds that a network went through."""
        tasks = self.history.get(network, {})
        return tuple(tasks[kind] for kind in kinds if kind in tasks)


def plan_tasks(recipe: Recipe) -> list[Task]:
    """Return the tasks of a recipe in an order in which they can run.

    Raises:
        UserInputError: a step has nothing to work on, or stands twice.
    """
    tasks: list[Task] = []
    for name, steps in recipe.checked_chains().items():
        chain = _Chain(prefix=f"{name}/" if name else "")
        for step in steps:
            if step.kind not in BEGINNINGS and not chain.newest:
                raise UserInputError(
                    f"step {step.kind!r} has no network to work on; expected `start` or `train` "
                    "before it"
                )
            _UNROLL[step.kind](chain, step)
        tasks += chain.tasks
    return tasks


def _start(chain: _Chain, step: Step) -> None:
    if chain.tasks:
        raise UserInputError("step 'start' stands behind another; expected it first in its chain")
    chain.factory = step.options.model
    options = {**_options(step), "sha256": _sha256(step.options.checkpoint)}
    chain.add(step, "start", options=options, network=BASELINE)


def _train(chain: _Chain, step: Step) -> None:
    options = _options(step)
    if step.options.start is None:  # as recipes were before there was a choice
        del options["start"], options["start_model"]
    else:
        chain.factory = step.options.start_model
        options["sha256"] = _sha256(step.options.start)
    chain.add(step, "train", options=options, network=BASELINE)


def _sha256(checkpoint: str) -> str | None:
    """Of the file, which is part of the identity of what is made of it; None where it lacks."""
    file = Path(checkpoint).expanduser()
    return sha256_of(file) if file.is_file() else None


def _slim(chain: _Chain, step: Step) -> None:
    shared = {name: value for name, value in _options(step).items() if name != "ratios"}
    sources = {network: chain.newest.get(network) for network in (BASELINE, DYNAMIC)}
    for source_network, source in sources.items():
        for ratio in dict.fromkeys(step.options.ratios) if source else ():
            options = {"ratio": ratio, **shared}
            network = f"slim {ratio}"
            if source_network == DYNAMIC:
                network = f"slim {ratio} of {DYNAMIC}"
            place = f"slim/{_folder(network)}"
            chain.add(step, place, options=options, needs=(str(source),), network=network)


def _finetune(chain: _Chain, step: Step) -> None:
    plain = {name: task for name, task in chain.newest.items() if DYNAMIC not in name}
    chosen = {name: task for name, task in plain.items() if "slim" in name}
    if not chosen and chain.begins_trained:
        chosen = {BASELINE: plain[BASELINE]}
    if not chosen:
        raise UserInputError(
            "step 'finetune' has no slimmed network; expected `slim` before it, or a chain that "
            "begins with `start`"
        )
    for network, source in chosen.items():
        chain.add(step, f"finetune/{_folder(network)}", needs=(source,), network=network)


def _distil(chain: _Chain, step: Step) -> None:
    chain.add(step, "distil", needs=(chain.newest[BASELINE],), network=DISTILLED)


def _exits(chain: _Chain, step: Step) -> None:
    for network, source in list(chain.newest.items()):
        if DYNAMIC in network:
            continue
        name = DYNAMIC if network == BASELINE else f"{network} {DYNAMIC}"
        chain.add(step, f"exits/{_folder(name)}", needs=(source,), network=name)


def _plan(chain: _Chain, step: Step) -> None:
    for network, source in _dynamic(chain, step).items():
        place = f"plan/{_folder(network)}"
        chain.add(step, place, needs=(source,), network=network, makes_checkpoint=False)


def _evaluate(chain: _Chain, step: Step) -> None:
    before = len(chain.tasks)
    for network, source in list(chain.newest.items()):
        if DYNAMIC in network:
            _evaluate_exits(chain, step, network, source)
        elif chain.begins_trained:
            _evaluate_whole(chain, step, network, source)
    if len(chain.tasks) == before:
        raise UserInputError(
            "step 'evaluate' has no early exits, and nothing new since the last one; expected "
            "`exits` before it, or a chain that begins with `start`"
        )


def _evaluate_exits(chain: _Chain, step: Step, network: str, source: str) -> None:
    if "evaluate" in chain.history[network]:
        return
    place = f"evaluate/{_folder(network)}"
    needs = (source, *chain.done(network, "plan"))
    chain.add(step, place, needs=needs, network=network, makes_checkpoint=False)


def _evaluate_whole(chain: _Chain, step: Step, network: str, source: str) -> None:
    """Accuracy of a network without exits, once for each checkpoint that it gets."""
    made_by = next(task.kind for task in chain.tasks if task.name == source)
    place = f"accuracy/{_folder(network)}-{made_by}"
    if any(task.name == f"{chain.prefix}{place}" for task in chain.tasks):
        return
    chain.add(
        step, place, kind="accuracy", options={}, needs=(source,), network=network,
        makes_checkpoint=False,
    )  # fmt: skip


def _dynamic(chain: _Chain, step: Step) -> dict[str, str]:
    """The networks with early exits, and the task with the newest checkpoint of each."""
    found = {network: task for network, task in chain.newest.items() if DYNAMIC in network}
    if not found:
        raise UserInputError(f"step {step.kind!r} has no early exits; expected `exits` before it")
    return found


def _export(chain: _Chain, step: Step) -> None:
    for network, source in list(chain.newest.items()):
        place = f"export/{_folder(network)}"
        needs = (source, *chain.done(network, "plan", "evaluate"))
        chain.add(step, place, needs=needs, network=network, makes_checkpoint=False)


def _dispatch(chain: _Chain, step: Step) -> None:
    exported = [task for task in chain.tasks if task.kind == "export"]
    if not any(task.options["format"] == "bundle" for task in exported):
        raise UserInputError(
            "step 'dispatch' has no bundle; expected `export` with format: bundle before it"
        )
    for network, source in list(chain.newest.items()):
        place = f"dispatch/{_folder(network)}"
        needs = (source, *chain.done(network, "export"))
        chain.add(step, place, needs=needs, network=network, makes_checkpoint=False)


def _compare(chain: _Chain, step: Step) -> None:
    options = {**_options(step), "history": chain.history, "newest": dict(chain.newest)}
    chain.add(step, "compare", options=options, needs=tuple(task.name for task in chain.tasks))


def _benchmark(chain: _Chain, step: Step) -> None:
    options = {**_options(step), "history": chain.history, "newest": dict(chain.newest)}
    needs = tuple(task.name for task in chain.tasks)
    chain.add(step, "benchmark", options=options, needs=needs)


def _report(chain: _Chain, step: Step) -> None:
    chain.add(step, "report", needs=tuple(task.name for task in chain.tasks))


def _folder(network: str) -> str:
    return network.removeprefix("slim ").replace(" ", "-")


def _options(step: Step) -> dict[str, Any]:
    options: dict[str, Any] = step.options.model_dump(mode="json")
    return options


_UNROLL: dict[str, Callable[[_Chain, Step], None]] = {
    "start": _start,
    "train": _train,
    "slim": _slim,
    "finetune": _finetune,
    "distil": _distil,
    "exits": _exits,
    "plan": _plan,
    "evaluate": _evaluate,
    "export": _export,
    "dispatch": _dispatch,
    "compare": _compare,
    "benchmark": _benchmark,
    "report": _report,
}
