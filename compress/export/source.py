"""What an export starts from: a network, the images it is compared on, its exits and thresholds."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.checkpoint import Checkpoint, read_checkpoint
from compress.data.image_data import ImageData, Preprocessing
from compress.data.sample import noise, pictures
from compress.errors import CompressError, UserInputError
from compress.export.network_outputs import LOGITS, output_specs
from compress.models import ARCHITECTURES
from compress.models.early_exit import EarlyExitNetwork
from compress.models.with_exits import WithExits
from compress.opened import Opened, Opening, check_forward, open_checkpoint
from compress.planning.plan import ExitPlan, read_plan
from compress.runtime.exit_spelling import Position
from compress.runtime.manifest import TensorSpec
from compress.runtime.thresholds import check_thresholds

__all__ = ["ExportSource", "newest_checkpoint", "open_export"]

logger = logging.getLogger(__name__)

COMPARED_IMAGES = 64
NOISE_IMAGES = 8
BUILT_IN = "digits"  # the data that are there without a download
UNCHOSEN = 0.5  # a gate that says "rather yes"
FAMILIES = (*ARCHITECTURES.values(), EarlyExitNetwork)
WITH_EXITS = {family.arch for family in FAMILIES if issubclass(family, WithExits)}


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """An opened checkpoint.

    Attributes:
        path: of its file.
        checkpoint: as read.
        model: its network, with the exits that are exported.
        thresholds: of these exits.
        images: (N, C, H, W) float32 to compare on.
        images_name: what they are.
        data: where they come from; None for noise.
        outputs: what the whole network gives for one image, the logits first.
        classes: their names; none where there are no logits.
        preprocessing: how a picture becomes an image; None where nobody knows.
        plan: that was laid on the network, or None.
    """

    path: Path
    checkpoint: Checkpoint
    model: nn.Module
    thresholds: tuple[float, ...]
    images: Tensor
    images_name: str
    data: ImageData | None
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    plan: ExitPlan | None

    @property
    def exit_paths(self) -> tuple[str, ...]:
        """The module behind which each of the exported exits stands; none for the whole network."""
        model = self.model
        return model.exit_paths if isinstance(model, WithExits) and self.thresholds else ()


def open_export(
    path: Path,
    *,
    split_exits: bool,
    exits: Sequence[Position] | None = None,
    thresholds: float | Sequence[float] | None = None,
    plan: Path | None = None,
    data: str | ImageData | None = None,
    opening: Opening | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
) -> ExportSource:
    """Open a checkpoint for export.

    Args:
        path: its file.
        split_exits: whether exits are wanted; the other options about them need it.
        exits: where exits are exported, by paths of modules or numbers of blocks; None is all that
            there are.
        thresholds: one for all or one for each; None takes the plan's, else 0.5.
        plan: file that names exits and thresholds.
        data: where images come from; None takes the digits where the network was trained on them,
            else noise.
        opening: how the checkpoint is opened.
        seed: of the split of the data, and of noise.
        cache: folder of decoded images, or "off"; None takes the usual folder.

    Raises:
        UserInputError: a file or an option cannot be used, or they do not fit one another.
        UnsupportedModelError: the network is not known, or computes NaN.
    """
    network = open_checkpoint(path, opening)
    model, checkpoint = network.model, network.checkpoint
    planned = None if plan is None else read_plan(plan)
    if split_exits:
        model, bars = _with_chosen_exits(model, checkpoint, exits, thresholds, planned)
    else:
        _expect_no_exit_options(exits=exits, thresholds=thresholds, plan=plan)
        bars = ()
    loaded = _data(data, network, seed, cache)
    preprocessing = _preprocessing(network, loaded)
    images, name = _images(network, loaded, seed)
    outputs = _outputs(model, images)
    return ExportSource(
        path=path,
        checkpoint=checkpoint,
        model=model,
        thresholds=bars,
        images=images,
        images_name=name,
        data=loaded,
        outputs=outputs,
        classes=_classes(network, loaded, outputs),
        preprocessing=preprocessing,
        plan=planned,
    )


def newest_checkpoint(runs: Path) -> Path:
    """Return the newest checkpoint with early exits under a folder.

    Raises:
        UserInputError: there is none.
    """
    files = [file for kind in ("*.pth", "*.safetensors") for file in runs.rglob(kind)]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        if file.stem == "last" or "warmup" in file.parts:  # of training that went on
            continue
        try:
            arch = read_checkpoint(file).arch
        except CompressError:  # a file of another kind, which is no concern here
            continue
        if arch in WITH_EXITS:
            return file
    raise UserInputError(
        f"no CHECKPOINT is given, and there is none with early exits under {runs}; give its path, "
        "or train one (make run does)"
    )


def _with_chosen_exits(
    model: nn.Module,
    checkpoint: Checkpoint,
    exits: Sequence[Position] | None,
    thresholds: float | Sequence[float] | None,
    plan: ExitPlan | None,
) -> tuple[nn.Module, tuple[float, ...]]:
    if not isinstance(model, WithExits):
        raise UserInputError(
            f"--split-exits was given, but the checkpoint holds a {type(model).__name__} without "
            "early exits; leave it out, or train exits first"
        )
    if plan is not None:
        exits, thresholds = _of_plan(plan, checkpoint, exits, thresholds)
        if not exits:  # no exit pays: the whole network
            return model, ()
    if exits is not None:
        model = model.with_positions(exits)  # they must be there: heads are not invented
    count = len(model.gates)
    if thresholds is None:
        logger.warning(
            "note: nothing chose thresholds, so %g is taken at every exit; give --thresholds, or a "
            "--plan",
            UNCHOSEN,
        )
        thresholds = UNCHOSEN
    return model, tuple(check_thresholds(thresholds, count))


def _of_plan(
    plan: ExitPlan,
    checkpoint: Checkpoint,
    exits: Sequence[Position] | None,
    thresholds: float | Sequence[float] | None,
) -> tuple[Sequence[Position], float | Sequence[float]]:
    if exits is not None:
        raise UserInputError("--exits and --plan were given; expected one, as a plan names exits")
    if plan.source.checkpoint_sha256 != checkpoint.sha256:
        raise UserInputError(
            f"the plan was computed from a checkpoint with sha256 "
            f"{plan.source.checkpoint_sha256[:12]}…, this one has {checkpoint.sha256[:12]}…; plan "
            "again for this one"
        )
    return plan.exits, plan.thresholds if thresholds is None else thresholds


def _expect_no_exit_options(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserInputError(
                f"--{name} was given without --split-exits; expected both, as the whole network "
                "has no exits"
            )


def _data(
    data: str | ImageData | None, network: Opened, seed: int, cache: Path | str | None
) -> ImageData | None:
    recorded = network.checkpoint.meta.get("data")
    was_built_in = isinstance(recorded, dict) and recorded.get("name") == BUILT_IN
    chosen = data or (BUILT_IN if was_built_in else None)
    return None if chosen is None else network.data(chosen, seed=seed, cache=cache)


def _images(network: Opened, data: ImageData | None, seed: int) -> tuple[Tensor, str]:
    if data is not None:
        return pictures(data, count=COMPARED_IMAGES)
    logger.warning(
        "note: compared on noise; --data SPEC compares on real images of the network's kind"
    )
    return noise(network.image_shape(), count=NOISE_IMAGES, seed=seed)


@torch.inference_mode()
def _outputs(model: nn.Module, images: Tensor) -> tuple[TensorSpec, ...]:
    output = check_forward(model, images)
    if isinstance(output, Tensor):
        return output_specs(output, 1)
    # Two images tell rows from sizes that are 1 by chance; one image shown twice will do.
    return output_specs(model(images[[0, -1]]), 2)


def _classes(
    network: Opened, data: ImageData | None, outputs: Sequence[TensorSpec]
) -> tuple[str, ...]:
    count = sum(spec.shape[0] for spec in outputs if spec.name == LOGITS)
    if not count:
        return ()
    names = network.classes or (None if data is None else data.classes)
    if names is None:
        return tuple(map(str, range(count)))
    if len(names) != count:
        raise UserInputError(
            f"the network has {count} classes and its data {len(names)}; expected the data that it "
            "was trained for"
        )
    return tuple(names)


def _preprocessing(network: Opened, data: ImageData | None) -> Preprocessing | None:
    """As the network was trained, where its checkpoint tells; else as the data are."""
    found = network.preprocessing or (None if data is None else data.preprocessing)
    if found is None:
        logger.warning(
            "note: nothing tells how pictures are prepared for this network, so the bundle takes "
            "prepared images alone; --data SPEC tells"
        )
    return found
