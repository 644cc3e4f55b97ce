"""What slimming does to real trained networks: CIFAR-10 ResNets, before and after fine-tuning.

    python tools/benchmarks/cifar10_resnet.py [--data DIR] [--checkpoint FILE ...] [-o FOLDER]
    python tools/benchmarks/cifar10_resnet.py --short

Of every network: accuracy on the 10,000 test images as it is; right after slimming, for everything
that slimming tries without training (plain cut, fold, BatchNorm statistics taken anew, blends,
least-squares repair; the one that is best on the calibration split is kept); after fine-tuning it;
multiply-adds, parameters, and latency in ONNX Runtime, all networks timed in turn. Prints a table
in Markdown and leaves results.json in the folder, from which a run that was killed goes on.

Without --data the images of ../shared/data are unpacked into the folder. --short takes ResNet-20
and one ratio, looks at few images and trains nothing.
"""

import argparse
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.adoption import AdoptJob, Pixels, adopt_checkpoint
from compress.data.image_data import ImageData, Split
from compress.export.onnx_file import onnx_from_module, onnx_session, session_runner
from compress.files import write_json
from compress.measure.accuracy import evaluate_accuracy
from compress.measure.latency import measure_latency
from compress.measure.macs import count_macs
from compress.opened import Opening, open_checkpoint
from compress.slimming.candidates import Candidate, Mending
from compress.slimming.job import SlimJob, slim_checkpoint
from compress.training.config import TrainingConfig
from compress.training.job import FinetuneJob, finetune_checkpoint

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = ("resnet20-12fca82f.th", "resnet56-4bfd9763.th")
PIXELS = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="none")
SIDE = 32
TRIED = ("plain", "fold", "re-estimate", "repair")  # columns of the table, blends among the rest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        checkpoints: files of trained networks.
        data: folder with the class folders of CIFAR-10 under train and test.
        folder: for results and networks.
        ratios: of channels to remove.
        images: of each split that slimming looks at; None for its default.
        epochs: of fine-tuning; 0 leaves it out.
        test_images: of the test split to measure on; None for all.
        seconds: of timing.
    """

    checkpoints: tuple[Path, ...]
    data: Path
    folder: Path
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6)
    images: int | None = None
    epochs: int = 2
    test_images: int | None = None
    seconds: float = 30.0


class Notes:
    """Results by name, written to a file one by one, so that none is measured twice."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        told = json.loads(path.read_text()) if path.exists() else {}
        same = told.get("settings") == settings
        self._told: dict[str, Any] = {"settings": settings, **(told if same else {})}

    def forget(self, name: str) -> None:
        """Measure what begins with this name again, as the files that it left are gone."""
        self._told = {key: value for key, value in self._told.items() if not key.startswith(name)}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what is noted under a name; else measure it, and note it."""
        if name not in self._told:
            self._told[name] = measure()
            write_json(self.path, self._told)
            print(f"{name}: {self._told[name]}", flush=True)
        return self._told[name]


def measure(plan: Plan) -> dict[str, Any]:
    """Measure what is not noted yet; return rows by network and ratio."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    notes = Notes(plan.folder / "results.json", _settings(plan))
    rows: list[dict[str, Any]] = []
    for file in plan.checkpoints:
        adopted = plan.folder / f"{file.stem}.pth"
        if not adopted.exists():
            adopt_checkpoint(
                AdoptJob(
                    checkpoint=file,
                    output=adopted,
                    opening=Opening(image_size=SIDE),
                    pixels=PIXELS,
                )
            )
        rows += _network(plan, notes, adopted)
    return {"rows": rows, "latency_ms": notes.get("latency_ms", lambda: _latency(plan, rows))}


def _network(plan: Plan, notes: Notes, adopted: Path) -> list[dict[str, Any]]:
    """Measure one network and its slimmed forms."""
    opened = open_checkpoint(adopted)
    data = opened.data(f"folder:{plan.data}")
    test = first(data.splits["test"], plan.test_images)
    whole = notes.get(adopted.stem, lambda: {"correct": correct(opened.model, test, data)})
    row = {"name": adopted.stem, "ratio": 0.0, "file": str(adopted), "images": len(test)}
    rows = [{**row, **whole}]
    for ratio in plan.ratios:
        output = adopted.with_name(f"{adopted.stem}.slim-{ratio}.pth")
        name = f"{adopted.stem} slim {ratio}"
        if not output.exists():
            notes.forget(name)
        slim = notes.get(name, partial(_slim, plan, adopted, output, ratio, data, test))
        rows[0] |= {key: slim["before"][key] for key in ("macs", "params")}
        figures = {"tried": slim["tried"], "made_by": slim["made_by"], **slim["after"]}
        if plan.epochs:
            tuned = notes.get(f"{name} tuned", partial(_finetune, plan, output, test, data))
            figures["tuned"] = tuned["correct"]
        rows.append({**row, "ratio": ratio, "file": str(output), **figures})
    return rows


def _slim(
    plan: Plan, adopted: Path, output: Path, ratio: float, data: ImageData, test: Split
) -> dict[str, Any]:
    tried: dict[str, int] = {}

    def look(candidate: Candidate) -> None:
        if candidate.name in TRIED:
            tried[candidate.name] = correct(candidate.network, test, data)

    job = SlimJob(
        checkpoint=adopted,
        ratios=(ratio,),
        output=output,
        images=data,
        mending=Mending(images=plan.images),
        look=look,
        latency=False,
        force=True,
    )
    (report,) = slim_checkpoint(job)
    told = report.to_dict()
    figures = {
        moment: {key: told[moment][key] for key in ("macs", "params")}
        for moment in ("before", "after")
    }
    return {**figures, "tried": tried, "made_by": report.made_by, "choice": told["choice"]}


def _finetune(plan: Plan, slim: Path, test: Split, data: ImageData) -> dict[str, int]:
    job = FinetuneJob(
        checkpoint=slim,
        data=f"folder:{plan.data}",
        config=TrainingConfig(epochs=plan.epochs, lr=0.01),
        augment=("flip", "crop"),
    )
    finetune_checkpoint(job)
    best = open_checkpoint(job.folder / "best.pth")
    return {"correct": correct(best.model, test, data)}


def _latency(plan: Plan, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Time all networks in ONNX Runtime in turn; medians of one image by file."""
    runners = {}
    for row in rows:
        file = Path(row["file"])
        opened = open_checkpoint(file)
        image = opened.data(f"folder:{plan.data}")
        picture = image.normalize(
            first(image.splits["test"], 1).images(torch.zeros(1, dtype=torch.int64))
        )
        onnx = onnx_from_module(opened.model, picture, file.with_suffix(".onnx"))
        runners[str(file)] = session_runner(onnx_session(onnx.path), picture)
    times = measure_latency(runners, max_seconds=plan.seconds)
    return {name: time.median_ms for name, time in times.items()}


def table(measured: dict[str, Any]) -> str:
    """Return the results as a table in Markdown; accuracies in per cent."""
    heads = ["network", "MACs", "params", *TRIED, "kept", "tuned", "latency"]
    lines = [" | ".join(heads), " | ".join(["---", *["---:"] * (len(heads) - 1)])]
    for row in measured["rows"]:
        share = 100 / row["images"]
        tried = row.get("tried", {})
        name = row["name"].partition("-")[0]
        cells = [
            name if row["ratio"] == 0 else f"{name}, {row['ratio']} removed",
            f"{row['macs'] / 1e6:.1f} M" if "macs" in row else "",
            f"{row['params'] / 1e3:.0f} k" if "params" in row else "",
            *(f"{tried[key] * share:.2f}" if key in tried else "" for key in TRIED),
            f"{row['correct'] * share:.2f}" if "correct" in row else row["made_by"],
            f"{row['tuned'] * share:.2f}" if "tuned" in row else "",
            f"{measured['latency_ms'][row['file']]:.2f} ms",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def unpacked(folder: Path) -> Path:
    """Return CIFAR-10 as class folders, unpacked from ../shared/data where it is not yet."""
    there = folder / "cifar10"
    if not there.exists():
        part = folder / "unpacking"
        with tarfile.open(SHARED / "cifar10_jpeg.tar.xz") as archive:
            archive.extractall(part, filter="data")
        (part / "cifar10").rename(there)
    return there


def _settings(plan: Plan) -> dict[str, Any]:
    told = {key: value for key, value in vars(plan).items() if key != "folder"}
    return json.loads(json.dumps(told, default=str))


def correct(network: nn.Module, split: Split, data: ImageData) -> int:
    """Return how many images of a split a network classifies rightly."""
    return evaluate_accuracy(network, split, data.normalize, progress=False).correct


def counted(network: nn.Module, data: ImageData) -> int:
    """Return the multiply-adds of a network for one image of the data."""
    return count_macs(network, data.preprocessing.shape)


def first(split: Split, count: int | None) -> Split:
    """Return every n-th image of a split, so that all classes are among them."""
    step = 1 if count is None else max(1, len(split) // count)
    return Split(split.source, split.positions[::step], split.labels[::step])


def main() -> None:
    """Measure, print the table, leave results.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/ and test/ (../shared/data, unpacked)")
    add("--checkpoint", type=Path, action="append", help="trained network; may be repeated")
    add("-o", "--output", type=Path, default=Path("runs/cifar10_resnet"), help="folder")
    add("--ratios", type=float, nargs="+", default=[0.2, 0.4, 0.6], help="channels to remove")
    add("--epochs", type=int, default=2, help="of fine-tuning (2)")
    add("--images", type=int, help="that slimming looks at (2000)")
    add("--short", action="store_true", help="ResNet-20 at 0.4, 1,000 test images, no training")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        checkpoints=tuple(args.checkpoint or (SHARED / file for file in FILES)),
        data=args.data or unpacked(args.output),
        folder=args.output,
        ratios=tuple(args.ratios),
        images=args.images,
        epochs=args.epochs,
    )
    print(table(measure(shortened(plan) if args.short else plan)))


def shortened(plan: Plan) -> Plan:
    """Return a plan that takes a minute."""
    return replace(
        plan,
        checkpoints=plan.checkpoints[:1],
        ratios=(0.4,),
        images=300,
        epochs=0,
        test_images=1000,
        seconds=2.0,
    )


if __name__ == "__main__":
    main()
