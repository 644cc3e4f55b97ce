"""Trains in every process that a launcher starts; `test_processes` starts it."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from compress.training.batches import Batch
from compress.training.loop import fit
from compress.training.objectives import objective_of
from tests.training.fakes import FakeAugment, Net, config, fake_data

SETTINGS: dict[str, Any] = {"epochs": 2, "sparsity_lambda": 0.01, "clip_grad_norm": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "norm": {"norm": True, "dropout": 0.4},
    "plain": {"norm": False},
}


def settings_of(case: str, **more: Any) -> dict[str, Any]:
    chosen = {**SETTINGS, **more}
    return chosen if case == "norm" else {**chosen, "sparsity_lambda": 0.0}


def train(case: str, folder: Path, **more: Any) -> Net:
    data, model = fake_data(train=50, validation=31), Net(**CASES[case])
    settings = config(**settings_of(case, **more))
    fit(
        model, data, objective_of(settings), settings, folder,
        augment=FakeAugment(data), device="cpu", progress=False,
    )  # fmt: skip
    return model


def stopped_by(error: Exception, folder: Path) -> str:
    """What a process says when only one of the two meets the error."""
    rank = int(os.environ["RANK"])

    def objective(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        loss = model(batch.images).sum()
        return {"loss": loss * float("nan")} if rank == 1 else {"loss": loss}

    try:
        settings = config(**settings_of("plain"))
        fit(Net(norm=False), fake_data(), objective, settings, folder, device="cpu", progress=False)
    except type(error) as err:
        return str(err)
    return "nothing"


def main(folder: Path) -> None:
    from compress.errors import CompressError

    rank = os.environ["RANK"]
    models = {case: train(case, folder / case) for case in CASES}
    # Going on, and finding it finished, must give every process the same weights again.
    again = train("norm", folder / "norm")
    told = stopped_by(CompressError(), folder / "nan")
    states = {case: model.state_dict() for case, model in models.items()}
    content = {**states, "again": again.state_dict(), "told": told}
    torch.save(content, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
