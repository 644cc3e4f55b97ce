"""The networks and images that a recipe begins with, opened by one rule for checks and for work."""

from pathlib import Path
from typing import Any

from torch import nn

from compress.data.image_data import ImageData
from compress.data.spec import load_data
from compress.errors import UserInputError
from compress.opened import Opened, Opening, open_checkpoint
from compress.recipe.engine import Context
from compress.recipe.plan import DISTILLED
from compress.recipe.schema import Recipe, Step
from compress.training.transfer import transferred

__all__ = [
    "began_with",
    "network_of",
    "opened_start",
    "opening_of",
    "pretrained",
    "recipe_data",
]


def recipe_data(recipe: Recipe) -> ImageData:
    """Return the images of a recipe, prepared as the networks need them that it begins with.

    Raises:
        UserInputError: a file or the data cannot be used, or two chains begin with networks whose
            images are prepared in different ways.
    """
    data: ImageData | None = None
    for steps in recipe.checked_chains().values():
        network = began_with(steps[0], recipe)
        if network is not None and network.preprocessing is not None:
            data = network.data(data or recipe.data, seed=recipe.seed)
        elif network is not None and data is None:
            data = network.data(recipe.data, seed=recipe.seed)
    if data is None:
        data = load_data(recipe.data, image_size=recipe.image_size, seed=recipe.seed)
    return data


def began_with(step: Step, recipe: Recipe) -> Opened | None:
    """Open the trained network that a chain begins with; None where it trains a new one."""
    if step.kind == "start":
        return _open(step.options.checkpoint, step.options.model, recipe, new_size=False)
    if step.kind == "train" and step.options.start is not None:
        return _open(step.options.start, step.options.start_model, recipe, new_size=True)
    return None


def _open(file: str, factory: str | None, recipe: Recipe, *, new_size: bool) -> Opened:
    opening = Opening(
        factory=factory, image_size=recipe.image_size, resample=new_size, override=new_size
    )
    return open_checkpoint(Path(file).expanduser(), opening)


def opened_start(options: dict[str, Any], recipe: Recipe) -> Opened:
    """Open what a task "start" begins with."""
    return _open(options["checkpoint"], options["model"], recipe, new_size=False)


def pretrained(options: dict[str, Any], recipe: Recipe, *, classes: int) -> nn.Module:
    """Return the network that a task "train" begins with, for so many classes.

    Raises:
        UserInputError: the file holds another network than `model` says.
    """
    network = _open(options["start"], options["start_model"], recipe, new_size=True)
    wanted = (options["model"] or {}).get("arch")
    if wanted not in (None, network.display_name, network.checkpoint.arch):
        raise UserInputError(
            f"train.start {network.path} holds {network.display_name}, but train.model names "
            f"{wanted}; expected the same, or set train.model=null to take what the file holds"
        )
    return transferred(network.model, num_classes=classes)


def opening_of(context: Context, network: str = "") -> Opening:
    """Return how a checkpoint that a task reads is opened.

    Args:
        context: of the task.
        network: whose checkpoint it is, where the task reads those of several.
    """
    return Opening(factory=None if DISTILLED in network else context.task.factory)


def network_of(context: Context, path: Path, network: str = "") -> nn.Module:
    """Return the network of a checkpoint that a task reads; arguments as of `opening_of`."""
    return open_checkpoint(path, opening_of(context, network)).model
