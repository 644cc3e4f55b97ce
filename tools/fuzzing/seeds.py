"""Good inputs of every kind, made by the toolkit's own commands from a tiny network."""

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compress
from compress import dispatch, evaluate, export_trt, plan_exits
from compress.models.gfnet_dynn import GFNetDynn
from tools.fuzzing import bundles, checkpoints, images, tables
from tools.fuzzing.kind import Kind

__all__ = ["kind_names", "make_kinds"]

SIZE = 16


def kind_names() -> list[str]:
    """Return the names of all kinds, in the order of the cases."""
    return list(_MAKERS)


def make_kinds(folder: Path, names: Sequence[str]) -> list[Kind]:
    """Make the seeds of the kinds under `folder`, and no others.

    Raises:
        RuntimeError: a command of the toolkit that makes a seed failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_MAKERS[name](_Workshop(folder)) for name in names]


class _Workshop:
    """What several kinds are made of; each thing is made once, when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def network(self) -> Path:
        path = self.folder / "network.pth"
        if not path.exists():
            torch.manual_seed(0)
            size: dict[str, Any] = {"image_size": SIZE, "patch_size": 8, "width": 8, "depth": 4}
            compress.save(GFNetDynn(**size, num_classes=10, exits=[0, 1, 2]), path)
        return path

    def table(self) -> Path:
        path = self.folder / "table.npz"
        if not path.exists():
            words = [str(self.network()), "--data", "digits", "--split", "calibration"]
            _run(evaluate.main, [*words, "--replay", str(path)])
        return path

    def plan(self) -> Path:
        path = self.folder / "plan.json"
        if not path.exists():
            _run(plan_exits.main, [str(self.table()), "--budget", "1", "-o", str(path)])
        return path

    def bundle(self, name: str) -> Path:
        """A copy of the bundle for each kind, as they put other files beside."""
        path = self.folder / "bundle"
        if not path.exists():
            words = ["--split-exits", "--thresholds", "0.5", "--target", "onnxruntime"]
            _run(export_trt.main, [str(self.network()), *words, "-o", str(path)])
        return Path(shutil.copytree(path, self.folder / f"bundle_{name}"))


_MAKERS: dict[str, Callable[[_Workshop], Kind]] = {
    "checkpoint": lambda shop: checkpoints.checkpoints(shop.folder),
    "safetensors": lambda shop: checkpoints.safetensors_files(shop.folder),
    "manifest": lambda shop: bundles.manifests(shop.bundle("manifest")),
    "onnx": lambda shop: bundles.onnx_files(shop.bundle("onnx")),
    "engines": lambda shop: bundles.engine_lists(shop.bundle("engines")),
    "monitor": lambda shop: _monitor(shop),
    "plan": lambda shop: tables.plans(shop.folder, shop.plan()),
    "replay": lambda shop: tables.replay_tables(shop.folder, shop.table()),
    "profile": lambda shop: tables.profiles(shop.folder),
    "recipe": lambda shop: tables.recipes(shop.folder),
    "picture": lambda shop: images.pictures(shop.folder),
    "archive": lambda shop: images.archives(shop.folder),
}


def _monitor(shop: _Workshop) -> Kind:
    bundle = shop.bundle("monitor")
    return bundles.monitor_lines(bundle, _lines(shop.folder, bundle))


def _lines(folder: Path, bundle: Path) -> bytes:
    """What the dispatcher prints of twenty images."""
    pictures = folder / "arrays"
    pictures.mkdir()
    for i in range(20):
        image = np.random.default_rng(i).normal(size=(3, SIZE, SIZE)).astype(np.float32)
        np.save(pictures / f"{i:02}.npy", image)
    return _run(dispatch.main, [str(bundle), str(pictures), "--json"]).encode()


def _run(main: object, arguments: list[str]) -> str:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(arguments)  # type: ignore[operator]  # the door of a command
    if code:
        raise RuntimeError(f"{arguments} ended with {code}: {told.getvalue()[-500:]}")
    return printed.getvalue()
