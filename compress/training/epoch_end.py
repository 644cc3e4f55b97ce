"""Between the epochs: evaluate, keep the best, write the checkpoints and the resume point."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compress.checkpoint import save
from compress.errors import CompressError
from compress.measure.accuracy import Accuracy, evaluate_accuracy
from compress.training.meter import REMEDY, check_finite
from compress.training.processes import gathered, on_main
from compress.training.run import Run
from compress.training.schedule import learning_rate
from compress.training.state import Position

__all__ = ["end_epoch", "load_best", "restore", "save_state"]

# Of a record; they stand in metrics.jsonl alone, so that equal runs end in equal checkpoints.
TIMINGS = ("time_s", "images_per_s")


def end_epoch(run: Run) -> None:
    """Close an epoch, after which a kill loses nothing of it.

    Raises:
        CompressError: the weights or their evaluation are not finite; nothing is written.
    """
    _check_weights(run)
    position, config = run.position, run.config
    record = _record(run)
    position.epoch, position.step = position.epoch + 1, 0
    position.sums, position.elapsed_s = {}, 0.0
    is_best = False
    if position.epoch % config.evaluate_every == 0 or position.epoch == config.epochs:
        record.update(_validated(run))
        is_best = _note_score(position, list(run.score(record)))
        patience = config.early_stopping_patience
        position.stopped_early = patience is not None and position.without_gain >= patience
        if run.control is not None and run.control.after_epoch(run.model, record):
            position.stopped_early = True
    position.history.append(record)
    if run.accelerator.is_main_process:
        _write_epoch(run, record, is_best=is_best)
    save_state(run)


def save_state(run: Run) -> None:
    """Write the resume point.

    Raises:
        CompressError: the weights are not finite; the earlier resume point is kept.
    """
    _check_weights(run)
    if run.accelerator.is_main_process:
        scaler = run.accelerator.scaler
        tensors = {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "control": run.control.state_dict() if run.control else None,
        }
        run.files.save(run.identity, run.position, tensors)
    run.saved_at = time.monotonic()


def restore(run: Run, found: Mapping[str, Any]) -> None:
    """Put the run where a resume point says."""
    run.position = found["position"]
    run.model.load_state_dict(found["model"])
    run.optimizer.load_state_dict(found["optimizer"])
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(found["scaler"])
    if run.control:
        run.control.load_state_dict(found["control"])


def load_best(accelerator: Any, path: Any, model: nn.Module) -> None:
    """Give the model the weights of the best checkpoint."""

    def read() -> Any:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]

    model.load_state_dict(on_main(accelerator, read))
    model.eval()


def _record(run: Run) -> dict[str, Any]:
    """What is known of an epoch before its evaluation."""
    position, plan = run.position, run.plan
    means = {f"train_{name}": total / plan.steps for name, total in position.sums.items()}
    return {
        "epoch": position.epoch + 1,
        "step": run.steps_done,
        "lr": learning_rate(run.config, step=run.steps_done - 1, steps_per_epoch=plan.steps),
        **means,
        "validation_loss": None,
        "acc1": None,
        "acc5": None,
        "time_s": position.elapsed_s,
        "images_per_s": plan.images_per_epoch / max(position.elapsed_s, 1e-9),
    }


def _validated(run: Run) -> dict[str, float]:
    if run.validate is None:
        metrics = _validation_accuracy(run)
    else:
        validate = run.validate
        metrics = dict(on_main(run.accelerator, lambda: validate(run.model)))
    check_finite(metrics, run.steps_done)
    return metrics


def _validation_accuracy(run: Run) -> dict[str, float]:
    """Accuracy on "validation", which the processes divide."""
    accelerator = run.accelerator
    own = evaluate_accuracy(
        run.model,
        run.data.splits["validation"],
        run.data.normalize,
        batch_size=run.config.batch_size,
        device=accelerator.device,
        progress=False,
        workers=run.config.workers,
        share=(accelerator.process_index, accelerator.num_processes),
    )
    whole = sum(gathered(own), Accuracy(count=0, correct=0, correct5=0, loss_sum=0.0))
    return {"validation_loss": whole.loss, "acc1": whole.acc1, "acc5": whole.acc5}


def _note_score(position: Position, score: list[float]) -> bool:
    """Compare an evaluation with the best before it; return whether it is better."""
    is_best = position.best_score is None or score > position.best_score
    if is_best:
        position.best_score, position.best_epoch = score, position.epoch
    position.without_gain = 0 if is_best else position.without_gain + 1
    return is_best


def _write_epoch(run: Run, record: Mapping[str, Any], *, is_best: bool) -> None:
    metrics = {name: value for name, value in record.items() if name not in TIMINGS}
    meta = {**run.meta, "metrics": metrics}
    for path in (run.files.best, run.files.last) if is_best else (run.files.last,):
        save(run.model, path, meta=meta)
    run.files.write_metrics(run.position.history)
    if run.config.tensorboard:
        run.files.write_events(run.position.history)


def _check_weights(run: Run) -> None:
    """A finite loss can still leave broken weights; these must never replace good ones."""
    finite = torch.stack([weight.detach().isfinite().all() for weight in run.model.parameters()])
    if not finite.all():
        raise CompressError(
            f"the weights are NaN or infinite after step {run.steps_done}; training has diverged, "
            f"so {REMEDY}"
        )
