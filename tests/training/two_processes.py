"""Trains in every process that a launcher starts; `test_processes` starts it."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.training.batches import Batch
from compress.training.loop import fit
from compress.training.objectives import objective_of
from tests.training.fakes import FakeAugment, Net, config, fake_data, plain

CASES = ("norm", "plain")


def network(case: str) -> Net:
    """With everything that divides a step badly, or without."""
    return Net(dropout=0.4) if case == "norm" else Net(norm=False)


def train(case: str, folder: Path, **more: Any) -> Net:
    data, model = fake_data(train=50, validation=31), network(case)
    settings = config(
        epochs=2, clip_grad_norm=1.0, sparsity_lambda=0.01 if case == "norm" else 0.0, **more
    )
    fit(
        model, data, objective_of(settings), settings, folder / case,
        augment=FakeAugment(data) if case == "norm" else None, device="cpu", progress=False,
    )  # fmt: skip
    return model


def nan_in_one_process(folder: Path) -> str:
    """Return what a process is told when the loss of the other becomes NaN."""

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        terms = plain(model, batch)
        return {"loss": terms["loss"] * (float("nan") if os.environ["RANK"] == "1" else 1.0)}

    try:
        fit(
            network("plain"), fake_data(), objective, config(), folder, device="cpu", progress=False
        )
    except CompressError as err:
        return str(err)
    return "nothing"


def running_mean(folder: Path) -> Tensor:
    """Return the running mean of BatchNorm after one step that moves no weight to speak of."""
    model = network("norm")
    settings = config(epochs=1, lr=1e-12)
    fit(model, fake_data(train=12), plain, settings, folder, device="cpu", progress=False)
    return model.norm.running_mean


def refused(folder: Path) -> str:
    """Return what a process is told of a refusal that only the main one can find out."""
    try:
        train("norm", folder, seed=1)
    except CompressError as err:
        return str(err)
    return "nothing"


def main(folder: Path) -> None:
    content: dict[str, Any] = {case: train(case, folder).state_dict() for case in CASES}
    content["found finished"] = train("norm", folder).state_dict()
    content["running mean"] = running_mean(folder / "statistics")
    content["nan"] = nan_in_one_process(folder / "nan")
    content["refused"] = refused(folder)
    torch.save(content, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
