"""The training loop, one for every objective.

    fit            an epoch after the other, from the resume point to the end
    _train_epoch   a step after the other
    _train_step    micro-batches, gradients, one update
    _end_epoch     evaluate, keep the best, write checkpoints and the resume point

What differs between trainings comes in as functions: `objective` (what is minimised), `prepare` (what
the network reads), `validate` and `score` (what is best). Parameters that do not require gradients
are left alone, and wholly frozen parts stay in eval mode.
"""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint import save
from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.measure.versions import versions
from compress.training.accuracy import evaluate_accuracy
from compress.training.batches import (
    BatchPlan,
    Prepare,
    TrainingData,
    derived_seed,
    plan_batches,
    prefetched,
    prepare_images,
)
from compress.training.config import TrainingConfig
from compress.training.meter import LossMeter
from compress.training.objectives import Objective
from compress.training.optimizer import make_optimizer, set_training_mode
from compress.training.processes import (
    average_running_statistics,
    gathered,
    make_accelerator,
    on_main,
)
from compress.training.progress import progress_bar
from compress.training.runfiles import RunFiles
from compress.training.schedule import learning_rate, set_learning_rate
from compress.training.state import Position

__all__ = ["TrainingResult", "fit", "highest_accuracy"]

logger = logging.getLogger(__name__)

STEPS_PER_LOOK = 20  # how often the loss is read from the device
SECONDS_PER_SAVE = 300.0  # between resume points where the settings name no number of steps

Validate = Callable[[nn.Module], Mapping[str, float]]
Score = Callable[[Mapping[str, Any]], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        best: checkpoint of the best evaluation.
        last: checkpoint of the last epoch.
        history: the record of every epoch, as in metrics.jsonl.
        best_metrics: the record of the best epoch.
        epochs_run: whole epochs, of which there are fewer than asked where it stopped early.
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


@dataclass(kw_only=True)
class _Run:
    """What the functions of one run share."""

    config: TrainingConfig
    data: TrainingData
    objective: Objective
    prepare: Prepare
    validate: Validate
    score: Score
    files: RunFiles
    identity: dict[str, Any]
    meta: dict[str, Any]
    accelerator: Any
    model: nn.Module  # as Accelerate wraps it
    bare: nn.Module  # as the caller gave it
    optimizer: Any
    plan: BatchPlan
    position: Position
    bar: Any = None
    meter: LossMeter = field(default_factory=LossMeter)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def steps_done(self) -> int:
        """Optimizer steps done, over all epochs."""
        return self.position.epoch * self.plan.steps + self.position.step


def highest_accuracy(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    """Score an evaluation: by accuracy; of equal ones the lower loss is better."""
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
    device: str | None = None,
    fresh: bool = False,
    progress: bool = True,
    save_meta: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train a model in place; afterwards it holds the best weights, in eval mode, on the CPU.

    A run that was killed goes on where it was when it is called again with the same arguments, and on
    the CPU ends in the same bits; one that is finished returns its result at once. Under
    `accelerate launch` or torchrun every process calls this, and each step is divided among them.

    Args:
        model: tells its `arch` and `config`, so that it can be saved.
        data: the splits "train" and "validation".
        objective: (model, batch) to named terms, "loss" among them.
        config: settings. `batch_size` counts over all processes. The images of an epoch that fill no
            whole batch are left out, others in each epoch; a set smaller than a batch is one batch.
        run_dir: folder of the run, see `compress.training.runfiles`.
        augment: (images, labels, *, seed) to normalised images and soft targets.
        prepare: (images, labels, seed) to a batch, in place of normalising and augmenting.
        validate: model to metrics, run in the main process; by default loss and accuracy on
            "validation", which all processes divide.
        score: metrics to what is compared; the highest is best, and early stopping waits for it.
        device: such as "cpu" or "cuda"; by default the best there is.
        fresh: discard a run that is in the folder.
        progress: show a bar on stderr.
        save_meta: JSON values that go into the checkpoints and, with the settings, the data and the
            shapes, tell this run from others. Name the starting weights here.

    Raises:
        UserInputError: the settings do not fit the data, or the folder holds another run.
        UnsupportedModelError: the model cannot be saved.
        CompressError: the loss became NaN; checkpoints of earlier epochs are kept.
    """
    _check_savable(model)
    _check_splits(data)
    accelerator = make_accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.gradient_accumulation,
        device=device,
    )
    slices = accelerator.num_processes * config.gradient_accumulation
    plan = plan_batches(len(data.splits["train"]), batch_size=config.batch_size, slices=slices)
    identity = _identity(model, data, config, augment, slices, save_meta or {})
    files = RunFiles(run_dir)
    found = on_main(accelerator, lambda: files.begin(identity, fresh=fresh))
    optimizer = make_optimizer(model, config)
    if found and found["position"].finished:
        _load_best(accelerator, files, model)
        return _result(files, found["position"], was_finished=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    run = _Run(
        config=config,
        data=data,
        objective=objective,
        prepare=prepare or prepare_images(data, augment),
        validate=validate or (lambda _: {}),
        score=score,
        files=files,
        identity=identity,
        meta=dict(save_meta or {}),
        accelerator=accelerator,
        model=wrapped,
        bare=model,
        optimizer=optimizer,
        plan=plan,
        position=Position(),
    )
    run.validate = _in_main(run, validate) if validate else _divided(run)
    try:
        _restore(run, found)
        _train(run, show=progress and accelerator.is_main_process)
        _load_best(accelerator, files, model)
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes autocast off `forward`
        model.eval().cpu()
    return _result(files, run.position, was_finished=False)


def _train(run: _Run, *, show: bool) -> None:
    config, position = run.config, run.position
    total = config.epochs * run.plan.steps
    with (
        progress_bar(total, "train", unit="step", show=show, initial=run.steps_done) as run.bar,
        torch.random.fork_rng(**_generators(run.accelerator.device)),  # the caller's stay untouched
    ):
        while not position.stopped_early and position.epoch < config.epochs:
            _train_epoch(run)
            _end_epoch(run)
    position.finished = True
    if run.accelerator.is_main_process:
        run.files.save(run.identity, position, {})
    run.accelerator.wait_for_everyone()


def _train_epoch(run: _Run) -> None:
    set_training_mode(run.bare)
    run.optimizer.zero_grad()
    with contextlib.closing(_own_micro_batches(run)) as loaded:
        while run.position.step < run.plan.steps:
            started = time.perf_counter()
            _train_step(run, loaded)
            run.position.step += 1
            run.position.elapsed_s += time.perf_counter() - started
            run.bar.update()
            if len(run.meter) == STEPS_PER_LOOK or run.position.step == run.plan.steps:
                _look(run)
            if _is_save_due(run):
                _look(run)
                _save_state(run)


def _train_step(run: _Run, loaded: Iterator[tuple[Tensor, Tensor]]) -> None:
    lr = learning_rate(run.config, step=run.steps_done, steps_per_epoch=run.plan.steps)
    set_learning_rate(run.optimizer, lr)
    terms = [_backward(run, *next(loaded), part) for part in _own_parts(run)]
    if run.config.clip_grad_norm is not None:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    average_running_statistics(run.accelerator, run.bare)
    run.meter.add(terms)


def _backward(run: _Run, images: Tensor, labels: Tensor, part: int) -> dict[str, Tensor]:
    """Add the gradients of one micro-batch, the `part`-th of the step over all processes."""
    device, seed, step = run.accelerator.device, run.config.seed, run.steps_done
    batch = run.prepare(
        images.to(device, non_blocking=True),
        labels.to(device, non_blocking=True),
        derived_seed(seed, "augment", step, part),
    )
    torch.manual_seed(derived_seed(seed, "forward", step, part))
    is_last = part == _own_parts(run)[-1]
    # Gradients are exchanged once a step, with the last micro-batch.
    with contextlib.nullcontext() if is_last else run.accelerator.no_sync(run.model):
        terms = run.objective(run.model, batch)
        run.accelerator.backward(terms["loss"])  # divided by the micro-batches of this process
    return terms


def _own_parts(run: _Run) -> range:
    count = run.config.gradient_accumulation
    first = run.accelerator.process_index * count
    return range(first, first + count)


def _own_micro_batches(run: _Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of this process's micro-batches, from the position to the epoch's end."""
    split = run.data.splits["train"]
    order = run.plan.order(seed=run.config.seed, epoch=run.position.epoch)
    own = order[run.position.step :, list(_own_parts(run))].flatten(0, 1)
    return prefetched(
        lambda indices: (split.images(indices), split.labels[indices]),
        own,
        workers=run.config.workers,
    )


def _look(run: _Run) -> None:
    """Read the losses of the last steps, stop if one is NaN, and show the newest."""
    position = run.position
    steps = run.meter.take(first_step=run.steps_done - len(run.meter) + 1)
    for terms in steps:
        for name, value in terms.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
    if steps:
        run.bar.set_postfix(epoch=position.epoch + 1, loss=f"{steps[-1]['loss']:.4f}")


def _is_save_due(run: _Run) -> bool:
    step, every = run.position.step, run.config.save_every_steps
    if step == run.plan.steps:
        return False  # the end of the epoch saves by itself
    if every is not None:
        return step % every == 0
    if step % STEPS_PER_LOOK:
        return False
    # The clocks of the processes differ; what the main one says counts for all.
    return gathered(time.monotonic() - run.saved_at > SECONDS_PER_SAVE)[0]


def _end_epoch(run: _Run) -> None:
    position = run.position
    record = _record(run)
    is_best = False
    position.epoch, position.step = position.epoch + 1, 0
    if position.epoch % run.config.evaluate_every == 0 or position.epoch == run.config.epochs:
        record.update(run.validate(run.bare))
        is_best = _note_score(position, list(run.score(record)))
        patience = run.config.early_stopping_patience
        position.stopped_early = patience is not None and position.without_gain >= patience
    position.history.append(record)
    position.sums, position.elapsed_s = {}, 0.0
    _check_weights(run)
    if run.accelerator.is_main_process:
        _write_epoch(run, record, is_best=is_best)
    _save_state(run)


def _record(run: _Run) -> dict[str, Any]:
    """What is known of an epoch before its evaluation."""
    position, plan = run.position, run.plan
    images = plan.steps * plan.slices * plan.slice_size
    means = {
        name if name.startswith("train_") else f"train_{name}": total / plan.steps
        for name, total in position.sums.items()
    }
    return {
        "epoch": position.epoch + 1,
        "step": run.steps_done,
        "lr": run.optimizer.param_groups[0]["lr"],
        **means,
        "validation_loss": None,
        "acc1": None,
        "acc5": None,
        "time_s": position.elapsed_s,
        "images_per_s": images / position.elapsed_s,
    }


def _note_score(position: Position, score: list[float]) -> bool:
    """Compare an evaluation with the best before it; return whether it is better."""
    is_best = position.best_score is None or score > position.best_score
    if is_best:
        position.best_score, position.best_epoch = score, position.epoch
    position.without_gain = 0 if is_best else position.without_gain + 1
    return is_best


def _write_epoch(run: _Run, record: dict[str, Any], *, is_best: bool) -> None:
    meta = {**run.meta, **_meta(run, record)}
    for path in (run.files.best, run.files.last) if is_best else (run.files.last,):
        save(run.bare, path, meta=meta)
    run.files.write_metrics(run.position.history)
    if run.config.tensorboard:
        run.files.write_events(run.position.history)


def _save_state(run: _Run) -> None:
    _check_weights(run)
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        tensors = {
            "model": run.bare.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        run.files.save(run.identity, run.position, tensors)
    run.saved_at = time.monotonic()


def _restore(run: _Run, found: dict[str, Any] | None) -> None:
    if found is None:
        return
    run.position = found["position"]
    run.bare.load_state_dict(found["model"])
    run.optimizer.load_state_dict(found["optimizer"])
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(found["scaler"])
    logger.info(
        "going on with %s after epoch %d, step %d",
        run.files.folder, run.position.epoch, run.position.step,
    )  # fmt: skip


def _load_best(accelerator: Any, files: RunFiles, model: nn.Module) -> None:
    def read() -> Any:
        return torch.load(files.best, map_location="cpu", weights_only=True)["state_dict"]

    model.load_state_dict(on_main(accelerator, read))
    model.eval()


def _check_weights(run: _Run) -> None:
    """A finite loss can still leave broken weights; these must never replace good ones."""
    sums = torch.stack([p.detach().double().sum() for p in run.bare.parameters()])
    if not sums.isfinite().all():
        raise CompressError(
            f"the weights are NaN or infinite after step {run.steps_done}; training has diverged, so "
            "give a lower --lr, a --warmup-epochs, or --clip-grad-norm. Earlier checkpoints are kept"
        )
