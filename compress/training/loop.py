"""The training loop, one for every objective.

    fit              begin, go on, or return what is finished
    _train           an epoch after the other
    _train_epoch     a step after the other
    _train_step      micro-batches, gradients, one update
    end_epoch        evaluate, keep the best, write checkpoints and the resume point

What differs between trainings comes in as functions: `objective` (what is minimised), `prepare`
(what the network reads), `validate` and `score` (what is best), `lr_scale` (how fast each parameter
learns); what has a state of its own comes in as `control`. Parameters that do not require gradients
are left alone, and wholly frozen parts stay in eval mode.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.data.prefetch import prefetched
from compress.progress import progress_bar
from compress.training.batches import (
    Prepare,
    TrainingData,
    derived_seed,
    plan_batches,
    prepare_images,
)
from compress.training.config import TrainingConfig
from compress.training.epoch_end import end_epoch, load_best, restore, save_state
from compress.training.identity import check_trainable, checkpoint_meta, run_identity
from compress.training.objectives import Objective
from compress.training.optimizer import (
    LrScale,
    apply_lr_scales,
    make_optimizer,
    set_training_mode,
)
from compress.training.processes import (
    average_running_statistics,
    gathered,
    make_accelerator,
    on_main,
    released,
    seed_generators,
)
from compress.training.run import Control, Run, Score, Validate
from compress.training.runfiles import RunFiles
from compress.training.schedule import learning_rate, set_learning_rate
from compress.training.state import Position

__all__ = ["TrainingResult", "fit", "highest_accuracy"]

logger = logging.getLogger(__name__)

STEPS_PER_LOOK = 20  # how often the losses are read from the device
SECONDS_PER_SAVE = 300.0  # between resume points where the settings name no number of steps


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        best: checkpoint of the best evaluation.
        last: checkpoint of the last epoch.
        history: the record of every epoch, as in metrics.jsonl.
        best_metrics: the record of the best epoch.
        epochs_run: whole epochs; fewer than asked where it stopped early.
        stopped_early: there was no gain for as long as was allowed.
        was_finished: the run had been finished before, and nothing was trained.
    """

    best: Path
    last: Path
    history: tuple[dict[str, Any], ...]
    best_metrics: dict[str, Any]
    epochs_run: int
    stopped_early: bool
    was_finished: bool = False


def highest_accuracy(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    """Score an evaluation by its accuracy; of equal ones the lower loss is better."""
    return (metrics["acc1"], -metrics["validation_loss"])


def fit(
    model: nn.Module,
    data: TrainingData,
    objective: Objective,
    config: TrainingConfig,
    run_dir: Path,
    *,
    augment: Callable[..., Any] | None = None,
    prepare: Prepare | None = None,
    validate: Validate | None = None,
    score: Score = highest_accuracy,
    control: Control | None = None,
    lr_scale: LrScale | None = None,
    device: str | None = None,
    fresh: bool = False,
    progress: bool = True,
    save_meta: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train a model in place; afterwards it holds the best weights, in eval mode, on the CPU.

    A run that was killed goes on where it was when this is called again with the same arguments,
    and on the CPU ends in the same bits; one that is finished returns its result at once. Under
    `accelerate launch` or torchrun every process calls this, and each step is divided among them.

    Args:
        model: tells its `arch` and `config`, so that it can be saved.
        data: the splits "train" and "validation".
        objective: (model, batch) to named terms, "loss" among them.
        config: settings; images that fill no whole batch are left out, others in each epoch.
        run_dir: folder of the run, see `compress.training.runfiles`.
        augment: (images, labels, *, seed) to normalised images and soft targets.
        prepare: (images, labels, seed) to a batch, in place of normalising and augmenting.
        validate: model to metrics, in the main process; by default accuracy on "validation".
        score: metrics to what is compared; the highest is best, and early stopping waits for it.
        control: what steers the run between steps and epochs.
        lr_scale: from the name of a parameter to the factor on its learning rate.
        device: such as "cpu" or "cuda"; by default the best there is.
        fresh: discard a run that is in the folder.
        progress: show a bar on stderr.
        save_meta: JSON values for the checkpoints; they tell runs apart, so name the first weights.

    Raises:
        UserInputError: the settings do not fit the data, or the folder holds another run.
        UnsupportedModelError: the model cannot be saved.
        CompressError: the loss became NaN; checkpoints of earlier epochs are kept.
    """
    check_trainable(model, data)
    meta = dict(save_meta or {})
    accelerator = make_accelerator(config, device)
    slices = accelerator.num_processes * config.gradient_accumulation
    plan = plan_batches(len(data.splits["train"]), batch_size=config.batch_size, slices=slices)
    optimizer = make_optimizer(model, config, lr_scale)
    identity = run_identity(model, data, config, augment=augment, micro_batches=slices, meta=meta)
    files = RunFiles(run_dir)
    found = on_main(accelerator, lambda: files.begin(identity, fresh=fresh))
    if found and found["position"].finished:
        load_best(accelerator, files.best, model)
        return _result(files, found["position"], was_finished=True)
    with released(model):
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        run = Run(
            config=config,
            data=data,
            objective=objective,
            prepare=prepare or prepare_images(data, augment),
            validate=validate,
            score=score,
            control=control,
            files=files,
            identity=identity,
            meta={**meta, **checkpoint_meta(data, config, augment=augment)},
            accelerator=accelerator,
            model=model,
            wrapped=wrapped,
            optimizer=optimizer,
            plan=plan,
        )
        _train(run, found, show=progress and accelerator.is_main_process)
    load_best(accelerator, files.best, model)
    return _result(files, run.position, was_finished=False)


def _begin(run: Run, found: Mapping[str, Any] | None) -> None:
    if found is None:
        save_state(run)  # so that whatever a kill leaves in the folder belongs to a run
        return
    restore(run, found)
    position = run.position
    logger.info(
        "going on with %s at step %d of epoch %d",
        run.files.folder, position.step, position.epoch + 1,
    )  # fmt: skip


def _train(run: Run, found: Mapping[str, Any] | None, *, show: bool) -> None:
    _begin(run, found)
    position, config = run.position, run.config
    total = config.epochs * run.plan.steps
    with (
        progress_bar(total, "train", unit="step", show=show, initial=run.steps_done) as run.bar,
        _own_random_state(run.accelerator.device),
    ):
        while position.epoch < config.epochs and not position.stopped_early:
            _train_epoch(run)
            end_epoch(run)
    position.finished = True
    if run.accelerator.is_main_process:
        run.files.save(run.identity, position, {})


def _train_epoch(run: Run) -> None:
    set_training_mode(run.model)
    run.clock = time.monotonic()
    with contextlib.closing(_own_micro_batches(run)) as loaded:
        while run.position.step < run.plan.steps:
            _train_step(run, loaded)
            run.position.step += 1
            run.bar.update()
            if len(run.meter) == STEPS_PER_LOOK or run.position.step == run.plan.steps:
                _look(run)
            if _is_save_due(run):
                _look(run)
                save_state(run)


def _train_step(run: Run, loaded: Iterator[tuple[Tensor, Tensor]]) -> None:
    lr = learning_rate(run.config, step=run.steps_done, steps_per_epoch=run.plan.steps)
    set_learning_rate(run.optimizer, lr)
    apply_lr_scales(run.optimizer)
    run.optimizer.zero_grad()
    terms = [_backward(run, *next(loaded), part) for part in run.own_parts]
    for parameter in run.control.skipped(run.steps_done) if run.control else ():
        parameter.grad = None  # the optimizer passes over it; a gradient of 0 would not stop it
    if run.config.clip_grad_norm is not None:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_grad_norm)
    run.optimizer.step()
    average_running_statistics(run.accelerator, run.model)
    run.meter.add(terms)


def _backward(run: Run, images: Tensor, labels: Tensor, part: int) -> dict[str, Tensor]:
    """Add the gradients of one micro-batch, the `part`-th of the step over all processes."""
    device, position = run.accelerator.device, (run.steps_done, part)
    seed = derived_seed(run.config.seed, "augment", *position)
    batch = run.prepare(images.to(device), labels.to(device), seed)
    seed_generators(device, derived_seed(run.config.seed, "forward", *position))
    # Gradients are exchanged once a step, with the last micro-batch.
    is_last = part == run.own_parts[-1]
    exchange = contextlib.nullcontext() if is_last else run.accelerator.no_sync(run.wrapped)
    with exchange:
        with run.accelerator.autocast():
            terms = run.objective(run.wrapped, batch)
        run.accelerator.backward(terms["loss"])  # which divides by the number of micro-batches
    return terms


def _own_micro_batches(run: Run) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Images and labels of this process's micro-batches, from the position on."""
    split = run.data.splits["train"]
    order = run.plan.order(seed=run.config.seed, epoch=run.position.epoch)
    own = order[run.position.step :, list(run.own_parts)].flatten(0, 1)  # (steps * parts, size)
    return prefetched(
        lambda indices: (split.images(indices), split.labels[indices]),
        own,
        workers=run.config.workers,
    )


def _look(run: Run) -> None:
    """Read the losses of the last steps, stop if one is NaN, and show the newest."""
    sums = run.position.sums
    steps = run.meter.take(first_step=run.steps_done - len(run.meter) + 1)
    for terms in steps:
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value
    if steps:
        run.bar.set_postfix(epoch=run.position.epoch + 1, loss=f"{steps[-1]['loss']:.4f}")
    run.tick()


def _is_save_due(run: Run) -> bool:
    step, every = run.position.step, run.config.save_every_steps
    if step == run.plan.steps:
        return False  # the end of the epoch is a resume point by itself
    if every is not None:
        return step % every == 0
    if step % STEPS_PER_LOOK:
        return False
    # The clocks of the processes differ; what the main one says counts for all.
    return gathered(time.monotonic() - run.saved_at > SECONDS_PER_SAVE)[0]


def _own_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Leave the random state of the caller as it was."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def _result(files: RunFiles, position: Position, *, was_finished: bool) -> TrainingResult:
    return TrainingResult(
        best=files.best,
        last=files.last,
        history=tuple(position.history),
        best_metrics=position.history[position.best_epoch - 1],
        epochs_run=position.epoch,
        stopped_early=position.stopped_early,
        was_finished=was_finished,
    )
