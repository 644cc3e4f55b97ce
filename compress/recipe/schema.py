"""What a recipe file may hold: types, ranges and names, checked before anything runs."""

import dataclasses
import difflib
import reprlib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from compress.data.augment import AugmentConfig
from compress.errors import UserInputError
from compress.exits.sweep import parse_sweep
from compress.export.targets import target
from compress.head_kinds import check_head_kind
from compress.recipe.names import checked_name
from compress.recipe.yaml_file import parse_yaml, read_yaml
from compress.runtime.exit_spelling import position_of
from compress.training.config import TrainingConfig
from compress.training.exit_config import ExitTrainingConfig

__all__ = ["Recipe", "Step", "read_recipe"]

FROZEN = ConfigDict(extra="forbid", frozen=True)
Name = Annotated[str, AfterValidator(checked_name)]  # of what becomes a folder
Ratio = Annotated[float, Field(ge=0, lt=1)]
Where = Annotated[Any, AfterValidator(position_of)]  # of an exit
Auto = Annotated[str, Field(pattern=r"^auto:[1-9][0-9]{0,3}$")]


def _checked_head(kind: str) -> str:
    check_head_kind(kind)
    return kind


class StepOptions(BaseModel):
    """What every step accepts: nothing that it does not name."""

    model_config = FROZEN


class AugmentOptions(StepOptions):
    """Augmentation of training images; the fields are those of `AugmentConfig`."""


def _fields_of(config: type, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a settings dataclass, for a pydantic model: defined once, checked twice."""
    hints = typing.get_type_hints(config)
    return {
        field.name: (hints[field.name], field.default)
        for field in dataclasses.fields(config)
        if field.name not in without
    }


class TrainingStepOptions(StepOptions):
    """Options of a step that trains; the fields are those of its settings, and `augment`."""

    settings: ClassVar[type[TrainingConfig]] = TrainingConfig

    @model_validator(mode="after")
    def _settings_are_in_range(self) -> "TrainingStepOptions":
        names = {field.name for field in dataclasses.fields(self.settings)} - {"seed"}
        self.settings(**{name: getattr(self, name) for name in names})
        augment = self.augment.model_dump()  # type: ignore[attr-defined]
        AugmentConfig(**augment)
        return self


Augmentation: Any = create_model(
    "Augmentation", __base__=AugmentOptions, **_fields_of(AugmentConfig)
)
TrainingOptions: Any = create_model(
    "TrainingOptions",
    __base__=TrainingStepOptions,
    augment=(Augmentation, Augmentation()),
    **_fields_of(TrainingConfig, without=["seed"]),  # the recipe has one seed
)


class StartOptions(StepOptions):
    """Begin with a network that somebody has trained: the baseline of the chain.

    `checkpoint` is its file, `model` the "package.module:function" that builds a network which is
    not of `compress.models`. Image size and normalisation are what the file records
    (`python -m compress.adopt` makes a foreign file record them).
    """

    checkpoint: Annotated[str, Field(min_length=1)]
    model: str | None = None


class NewNetworkOptions(TrainingOptions):
    """Train a network from scratch.

    `model` names a registered architecture under `arch`, its keywords beside it; the number of
    classes and the image size come from the data.
    """

    model: dict[str, Any] | None

    @field_validator("model")
    @classmethod
    def _names_an_architecture(cls, model: dict[str, Any] | None) -> dict[str, Any] | None:
        if model is None:
            return None
        if not isinstance(model.get("arch"), str):
            raise ValueError("model needs `arch`, the name of an architecture")
        for name in ("num_classes", "image_size"):
            if name in model:
                raise ValueError(f"leave out {name!r}, which comes from the data")
        return model


class TrainOptions(NewNetworkOptions):
    """Train the baseline of the chain: a new network, or one that begins with trained weights.

    With `start`, a checkpoint file, training begins with its weights; its head is drawn anew where
    the data have other classes, and a GFNet is resampled where they have another size. `model`
    may then be left out, or says what the file must hold.
    """

    model: dict[str, Any] | None = None
    start: str | None = None
    start_model: str | None = None

    @model_validator(mode="after")
    def _has_a_network(self) -> "TrainOptions":
        if self.model is None and self.start is None:
            raise ValueError("expected `model`, or `start` with the file of a trained network")
        if self.start_model is not None and self.start is None:
            raise ValueError("start_model is given without `start`; expected both, or neither")
        return self


class SlimStepOptions(StepOptions):
    """Slim the network at every ratio; what follows works on each of the results.

    What can be mended without training is tried on `images` of the training split and judged on the
    calibration split; `repair` fits layers by least squares, too. 0 images mend nothing.
    """

    ratios: Annotated[list[Ratio], Field(min_length=1)]
    round_to: Annotated[int, Field(ge=1)] = 8
    min_channels: Annotated[int, Field(ge=1)] = 8
    ignore: list[str] = []
    groups: list[str] = []
    absorb: bool = True
    images: Annotated[int, Field(ge=0)] | None = None
    repair: bool = True


class FinetuneOptions(TrainingOptions):
    """Train every slimmed network further."""


class DistilOptions(NewNetworkOptions):
    """Train another network from scratch, taught by the baseline."""

    model: dict[str, Any]
    kind: Literal["soft", "hard"] = "soft"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 3.0


ExitTrainingOptions: Any = create_model(
    "ExitTrainingOptions",
    __base__=TrainingStepOptions,
    augment=(Augmentation, Augmentation()),
    **_fields_of(ExitTrainingConfig, without=["seed"]),
)


class ExitsOptions(ExitTrainingOptions):
    """Give every network of the chain early exits at `positions`, and train them.

    Positions are paths of modules or numbers of blocks, in the order of the network, or "auto:K"
    for K of them evenly by multiply-adds; `head` is the kind of their heads.
    """

    settings: ClassVar[type[TrainingConfig]] = ExitTrainingConfig

    positions: Auto | Annotated[list[Where], Field(min_length=1)]
    head: Annotated[str, AfterValidator(_checked_head)] | None = None


class PlanOptions(StepOptions):
    """Choose exits and a threshold for each on calibration data, for every dynamic network.

    Least expected multiply-adds at an accuracy at most `max_drop` points below the whole network's;
    or best accuracy within `budget`, a share of them; or a guarantee that another class than the
    whole network's is told for at most a share `risk` of the images, with `confidence`.
    """

    max_drop: Annotated[float, Field(ge=0)] = 0.5
    budget: Annotated[float, Field(gt=0)] | None = None
    risk: Annotated[float, Field(gt=0, lt=1)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    method: Literal["pareto-testing", "fixed-sequence"] = "pareto-testing"
    held_out: bool = True


class EvaluateOptions(StepOptions):
    """Report on test data what every network does that was made since the last such step.

    Of networks with exits images leave as a `plan` before this step says; else at `threshold`; else
    at the threshold of `sweep` with the least expected multiply-adds whose accuracy on the
    calibration split is at most `max_drop` points below the whole network's.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    sweep: str = "0.3:0.95:0.05"
    max_drop: Annotated[float, Field(ge=0)] = 0.5

    @field_validator("sweep")
    @classmethod
    def _is_a_sweep(cls, sweep: str) -> str:
        parse_sweep(sweep)
        return sweep


class ExportOptions(StepOptions):
    """Write every network for other runtimes.

    "onnx" is one file; "bundle" is one file per exit segment, as `compress.export_trt` writes it,
    with the thresholds that `evaluate` chose.
    """

    format: Literal["onnx", "bundle"] = "onnx"
    target: str = "onnxruntime"
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    batch: Annotated[int, Field(ge=1)] = 1

    @field_validator("target")
    @classmethod
    def _is_a_target(cls, name: str) -> str:
        target(name)
        return name


class DispatchOptions(StepOptions):
    """Dispatch the test images with every bundle, and compare all decisions with torch's."""


class BenchmarkOptions(StepOptions):
    """Measure all networks in turn: latency, memory, operations and, with a sensor, energy."""

    images: Annotated[int, Field(ge=1)] = 64
    seconds: Annotated[float, Field(gt=0)] = 10.0
    idle_seconds: Annotated[float, Field(gt=0)] = 10.0
    memory: bool = True


class ReportOptions(StepOptions):
    """Write report.html and MODEL_CARD.md of everything so far; the last step of a chain."""


class CompareOptions(StepOptions):
    """Time all networks in turn and write the table."""

    seconds: Annotated[float, Field(gt=0)] = 10.0


STEP_OPTIONS: dict[str, type[StepOptions]] = {
    "start": StartOptions,
    "train": TrainOptions,
    "slim": SlimStepOptions,
    "finetune": FinetuneOptions,
    "distil": DistilOptions,
    "exits": ExitsOptions,
    "plan": PlanOptions,
    "evaluate": EvaluateOptions,
    "export": ExportOptions,
    "dispatch": DispatchOptions,
    "compare": CompareOptions,
    "benchmark": BenchmarkOptions,
    "report": ReportOptions,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a recipe: its kind and its checked options."""

    kind: str
    options: Any


Steps = Annotated[list[dict[str, Any]], Field(min_length=1)]


class Recipe(BaseModel):
    """A whole recipe file.

    Attributes:
        name: names the folder under `runs/`.
        data: "digits", "cifar10:DIR" or "folder:DIR".
        image_size: side of the images; None takes the size that the data come in.
        seed: of everything random.
        steps: one-key mappings, kind of step to its options.
        chains: several lists of steps by name, in place of `steps`; each has networks of its own.
    """

    model_config = FROZEN

    name: Name
    data: str
    image_size: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Steps | None = None
    chains: Annotated[dict[Name, Steps], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _steps_or_chains(self) -> "Recipe":
        if (self.steps is None) == (self.chains is None):
            raise ValueError("expected either `steps` or `chains`")
        return self

    def with_seed(self, seed: int) -> "Recipe":
        """Return the same recipe with another seed.

        Raises:
            UserInputError: the seed is negative, or has more than 63 bits.
        """
        content = {**self.model_dump(), "seed": seed}
        changed: Recipe = _checked(Recipe, content, "--seeds")
        return changed

    def checked_chains(self) -> dict[str, list[Step]]:
        """Return the steps of every chain with their options; the only chain is called "".

        Raises:
            UserInputError: a step or one of its options is unknown, or out of range.
        """
        chains = self.chains if self.chains is not None else {"": self.steps or []}
        return {
            name: [
                _checked_step(name, number, entry) for number, entry in enumerate(steps, start=1)
            ]
            for name, steps in chains.items()
        }


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: "finetune.epochs=3" sets an option of every step of that kind,
            "vgg.finetune.epochs=3" in the chain vgg alone, "seed=1" one of the recipe; the value
            is YAML.

    Raises:
        UserInputError: the file is no recipe, or an override names nothing.
    """
    content = read_yaml(path, "recipe")
    if not isinstance(content, dict):
        raise UserInputError(
            f"recipe {path} holds {type(content).__name__}; expected name, data and steps"
        )
    for override in overrides:
        _apply_(content, override)
    recipe: Recipe = _checked(Recipe, content, f"recipe {path}")
    recipe.checked_chains()
    return recipe


def _checked_step(chain: str, number: int, entry: dict[str, Any]) -> Step:
    where = f"{chain} step {number}".strip()
    if len(entry) != 1:
        raise UserInputError(
            f"{where} has the keys {sorted(entry)}; expected one, the kind of the step"
        )
    kind, options = next(iter(entry.items()))
    if kind not in STEP_OPTIONS:
        raise UserInputError(f"{where} is {kind!r}; {_nearest(kind, STEP_OPTIONS)}")
    return Step(kind=kind, options=_checked(STEP_OPTIONS[kind], options or {}, f"{where} ({kind})"))


def _checked(model: Any, content: Any, where: str) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as err:
        raise UserInputError(f"{where}: {_first_problem(err, model)}") from err
    except UserInputError as err:  # from the settings' own checks
        raise UserInputError(f"{where}: {err}") from err


def _first_problem(err: ValidationError, model: type[BaseModel]) -> str:
    problem = err.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        return f"{place!r} is not an option; {_nearest(name, _known(model, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{place!r} is missing; it has no default"
    if not place:
        return str(problem["msg"]).removeprefix("Value error, ")
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    return f"{place} is {reprlib.repr(problem['input'])}; {message}"


def _known(model: type[BaseModel], place: Sequence[Any]) -> typing.Iterable[str]:
    """The option names at a place inside a model, such as within `augment`."""
    for part in place:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ()
        model = inner
    return model.model_fields


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"expected one of {', '.join(sorted(known))}"


def _apply_(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    value = parse_yaml(text, f"the value of --set {override:.80}")
    path = name.split(".")
    if not equals or not all(path):
        raise UserInputError(f"--set {override!r}; expected option=value or step.option=value")
    if len(path) == 1:
        content[name] = value
        return
    found = content.get("chains")
    chains = found if isinstance(found, dict) else {}
    chosen = (
        [chains[path.pop(0)]] if path[0] in chains else [*chains.values(), content.get("steps")]
    )
    entries = [step for steps in chosen if isinstance(steps, list) for step in steps]
    hits = [step for step in entries if isinstance(step, dict) and path[0] in step]
    if not hits:
        raise UserInputError(f"--set {override}: the recipe has no step {path[0]!r}")
    for step in hits:
        _set_nested_(step, path, value)


def _set_nested_(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    target[path[-1]] = value
