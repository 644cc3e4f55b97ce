"""Unroll a recipe into tasks: each reads what earlier tasks made and makes one folder."""

from dataclasses import dataclass, field
from typing import Any

from compress.errors import UserInputError
from compress.recipe.schema import Recipe, Step

__all__ = ["UNPRUNED", "Task", "plan_tasks"]

UNPRUNED = "unpruned"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One unit of work.

    Attributes:
        name: unique, and the folder under the run: "train", "slim/0.4".
        kind: which work, see `compress.recipe.tasks`.
        options: JSON values that decide the result.
        needs: names of the tasks whose results it reads.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Chain:
    """Where each network stands while the steps are unrolled: its newest task, and all of them."""

    tasks: list[Task] = field(default_factory=list)
    newest: dict[str, str] = field(default_factory=dict)

    def add(self, task: Task, network: str | None = None) -> None:
        if any(other.name == task.name for other in self.tasks):
            raise UserInputError(
                f"the recipe makes {task.name!r} twice; expected each step at most once"
            )
        self.tasks.append(task)
        if network is not None:
            self.newest[network] = task.name


def plan_tasks(recipe: Recipe) -> list[Task]:
    """Return the tasks of a recipe in an order in which they can run.

    Raises:
        UserInputError: a step has nothing to work on, or stands twice.
    """
    chain = _Chain()
    for step in recipe.checked_steps():
        if step.kind != "train" and not chain.newest:
            raise UserInputError(
                f"step {step.kind!r} has no network to work on; expected `train` before it"
            )
        _UNROLL[step.kind](chain, step)
    return chain.tasks


def _train(chain: _Chain, step: Step) -> None:
    chain.add(Task(name="train", kind="train", options=_options(step)), UNPRUNED)


def _slim(chain: _Chain, step: Step) -> None:
    shared = {name: value for name, value in _options(step).items() if name != "ratios"}
    source = chain.newest[UNPRUNED]
    for ratio in dict.fromkeys(step.options.ratios):
        options = {"ratio": ratio, **shared}
        task = Task(name=f"slim/{ratio}", kind="slim", options=options, needs=(source,))
        chain.add(task, f"slim {ratio}")


def _finetune(chain: _Chain, step: Step) -> None:
    slimmed = {name: task for name, task in chain.newest.items() if name != UNPRUNED}
    if not slimmed:
        raise UserInputError("step 'finetune' has no slimmed network; expected `slim` before it")
    for network, source in slimmed.items():
        name = f"finetune/{_folder(network)}"
        task = Task(name=name, kind="finetune", options=_options(step), needs=(source,))
        chain.add(task, network)


def _export(chain: _Chain, step: Step) -> None:
    for network, source in list(chain.newest.items()):
        name = f"export/{_folder(network)}"
        chain.add(Task(name=name, kind="export", options=_options(step), needs=(source,)))


def _compare(chain: _Chain, step: Step) -> None:
    networks = {
        network: [task.name for task in chain.tasks if _belongs(task.name, network)]
        for network in chain.newest
    }
    options = {**_options(step), "networks": networks, "newest": dict(chain.newest)}
    needs = tuple(task.name for task in chain.tasks)
    chain.add(Task(name="compare", kind="compare", options=options, needs=needs))


def _belongs(task: str, network: str) -> bool:
    return task.endswith("/" + _folder(network)) or (network == UNPRUNED and task == "train")


def _folder(network: str) -> str:
    return network.removeprefix("slim ")


def _options(step: Step) -> dict[str, Any]:
    options: dict[str, Any] = step.options.model_dump(mode="json")
    return options


_UNROLL = {
    "train": _train,
    "slim": _slim,
    "finetune": _finetune,
    "export": _export,
    "compare": _compare,
}
