"""Two real processes (gloo, on this machine) against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.errors import ToolchainError, UserInputError
from compress.training.processes import is_main_process, resolve_device
from tests.training import two_processes

ROOT = Path(__file__).resolve().parents[2]


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
    }  # fmt: skip
    full = [part.replace("PORT", port) for part in command]
    return subprocess.run(  # noqa: S603
        [sys.executable, *full], cwd=ROOT, env=environment, timeout=240,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    done = launch(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        "--master-port=PORT", str(Path(two_processes.__file__)), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def states(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def parameters(case: str, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    names = dict(two_processes.Net(**two_processes.CASES[case]).named_parameters())
    return {name: state[name] for name in names}


def last(folder: Path, case: str) -> dict[str, Any]:
    return torch.load(folder / case / "last.pth", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "accumulation"),
    [
        # With BatchNorm one process must take the same micro-batches; dropout and augmentation are
        # then drawn alike as well.
        pytest.param("norm", 2, id="BatchNorm, dropout and penalty"),
        pytest.param("plain", 1, id="without BatchNorm"),
    ],
)
def test_two_processes_give_the_parameters_of_one(
    launched: Path, tmp_path: Path, case: str, accumulation: int
) -> None:
    if case == "plain":  # the augmentation draws by micro-batch
        accumulation = 2
    two_processes.train(case, tmp_path / case, gradient_accumulation=accumulation)
    one = parameters(case, last(tmp_path, case))
    for name, tensor in parameters(case, last(launched, case)).items():
        torch.testing.assert_close(tensor, one[name], atol=1e-6, rtol=1e-5, msg=name)
