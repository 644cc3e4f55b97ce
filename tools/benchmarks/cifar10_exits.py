"""What early exits do for real trained networks: CIFAR-10 ResNets, planned, exported, dispatched.

    python tools/benchmarks/cifar10_resnet.py -o FOLDER      makes the networks
    python tools/benchmarks/cifar10_exits.py -o FOLDER       goes on from there

Of the fine-tuned network and of the slimmed and fine-tuned one: exits behind auto:4, trained in
three ways (linear heads and convolutional heads on the frozen backbone; then those convolutional
heads jointly with the backbone, each learning from the final head too); the way whose plan costs
least at the drop that is allowed is taken. Then plans by accuracy and by guarantee, bundles in
float32 and int8, all test images dispatched, decisions compared with torch's image by image, and
latency in ONNX Runtime: all bundles and the untouched network in turn over the same images. Prints
a table in Markdown and leaves exits.json in the folder, from which a run that was killed goes on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.data.image_data import ImageData
from compress.exits.replay import ReplayTable, Source, decide, fill_replay, load_replay, save_replay
from compress.export.export_job import ExportJob, export_checkpoint
from compress.export.onnx_file import onnx_from_module, onnx_session, session_runner
from compress.measure.latency import measure_latency
from compress.models.with_exits import WithExits
from compress.opened import open_checkpoint
from compress.planning.costs import costs_from_table
from compress.planning.guarantee import Risk
from compress.planning.job import PlanJob, plan_network
from compress.planning.plan import ExitPlan, Objective, read_plan
from compress.planning.planner import measure_plan
from compress.runtime.dispatcher import Dispatcher
from compress.training.config import TrainingConfig
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_job import ExitJob, train_exits_checkpoint
from compress.training.job import FinetuneJob, finetune_checkpoint
from tools.benchmarks.cifar10_resnet import Notes, correct, counted, first, unpacked

NETWORKS = ("slim", "whole")
BASE = "resnet56-4bfd9763"
AT = "auto:4"
CHUNK = 100  # images that are dispatched at a time, one by one


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train exits.

    Attributes:
        head: kind of the heads.
        epochs: of the main stage.
        after: the way that it goes on from, with the backbone trained along; None begins.
    """

    head: str
    epochs: int
    after: str | None = None


WAYS = {
    "linear": Way(head="linear", epochs=2),
    "conv": Way(head="conv", epochs=2),
    "joint": Way(head="conv", epochs=2, after="conv"),
}
PLANS: dict[str, dict[str, Any]] = {
    "drop 0.5": {"objective": Objective(kind="max-drop", value=0.5)},
    "drop 3": {"objective": Objective(kind="max-drop", value=3.0)},
    "risk 0.02": {"risk": Risk(loss="consistency", risk=0.02, confidence=0.95)},
}
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure on.

    Attributes:
        folder: of the networks, and of what this leaves.
        data: of the images, opened for the networks.
        spec: the same, by name.
        notes: what was measured already.
        ways: names of `WAYS` to compare.
        images: of the test split to time on.
        seconds: of timing.
    """

    folder: Path
    data: ImageData
    spec: str
    notes: Notes
    ways: tuple[str, ...]
    images: int
    seconds: float


def networks(bench: Bench, chosen: Sequence[str]) -> dict[str, Path]:
    """Return the fine-tuned networks that get exits, by name."""
    found = {}
    if "slim" in chosen:
        slim = bench.folder / f"{BASE}.slim-0.4.finetuned"
        found["ResNet-56, 0.4 removed"] = slim / "best.pth"
    if "whole" in chosen:
        tuned = bench.folder / f"{BASE}.tuned"
        whole = bench.folder / f"{BASE}.pth"
        bench.notes.get("tuned", partial(_finetune, whole, tuned, bench.spec))
        found["ResNet-56"] = tuned / "best.pth"
    return found


def _finetune(checkpoint: Path, folder: Path, spec: str) -> str:
    config = TrainingConfig(epochs=2, lr=0.01)
    finetune_checkpoint(
        FinetuneJob(
            checkpoint=checkpoint, data=spec, config=config, augment=("flip", "crop"), output=folder
        )
    )
    return str(folder)


def trained(bench: Bench, name: str, checkpoint: Path, way: str) -> Path:
    """Return a network with exits, trained in one of the ways."""
    given = WAYS[way]
    folder = bench.folder / f"{checkpoint.parent.name}.{way}"
    if (folder / "report.json").exists():  # written last
        return folder / "best.pth"
    config = ExitTrainingConfig(
        epochs=given.epochs,
        head_warmup_epochs=0 if given.after else 6,
        batch_size=128,
        distillation_alpha=0.5,
        regime="mixed" if given.after else "frozen",
    )
    start = trained(bench, name, checkpoint, given.after) if given.after else checkpoint
    job = ExitJob(
        checkpoint=start,
        data=bench.spec,
        exits=None if given.after else AT,
        head=None if given.after else given.head,
        config=config,
        augment=("flip", "crop") if given.after else None,
        output=folder,
        cache_dir=bench.folder / "features",
    )
    train_exits_checkpoint(job)
    return folder / "best.pth"


def replay(bench: Bench, checkpoint: Path, split: str) -> ReplayTable:
    """Return what every exit says of every image, image by image, as the early return computes."""
    file = checkpoint.with_name(f"{split}.npz")
    if file.exists():
        return load_replay(file)
    opened = open_checkpoint(checkpoint)
    if not isinstance(opened.model, WithExits):
        raise TypeError(f"{checkpoint} has no exits")
    source = Source(
        data=bench.data.name,
        split=split,
        data_sha256=bench.data.sha256,
        checkpoint_sha256=opened.checkpoint.sha256,
    )
    size = 1 if split == "test" else 128
    table = fill_replay(
        opened.model, bench.data.splits[split], bench.data.normalize, source, batch_size=size
    )
    save_replay(table, file)
    return table


def planned(bench: Bench, checkpoint: Path, plan: str) -> Path:
    """Plan the exits of a network from its calibration table; return the file."""
    replay(bench, checkpoint, "calibration")
    file = checkpoint.with_name(f"plan {plan}.json".replace(" ", "-"))
    plan_network(
        PlanJob(source=checkpoint.with_name("calibration.npz"), output=file, **PLANS[plan])
    )
    return file


def compare_ways(bench: Bench, name: str, checkpoint: Path) -> dict[str, Any]:
    """Train in every way, and plan by the drop; return the figures of each on test images."""
    found = {}
    for way in bench.ways:
        exits = trained(bench, name, checkpoint, way)
        plan = read_plan(planned(bench, exits, "drop 0.5"))
        test = replay(bench, exits, "test")
        point = measure_plan(plan, test, costs_from_table(test))
        found[way] = {
            "checkpoint": str(exits),
            "positions": list(test.positions),
            "heads_acc1": [100.0 * float(each) for each in test.correct.mean(axis=0)],
            "plan_acc1": point.acc1,
            "plan_share": point.share,
        }
    return found


def dispatched(bench: Bench, checkpoint: Path, plan: str, precision: str) -> dict[str, Any]:
    """Export a planned network, dispatch all test images, compare its decisions with torch's."""
    file = planned(bench, checkpoint, plan)
    bundle = checkpoint.with_name(f"{plan}-{precision}.bundle".replace(" ", "-"))
    export_checkpoint(
        ExportJob(
            checkpoint=checkpoint,
            output=bundle,
            split_exits=True,
            plan=file,
            target="onnxruntime",
            precision=precision,
            data=bench.spec,
            force=True,
        )
    )
    test = bench.data.splits["test"]
    classes, exits = [], []
    with Dispatcher(bundle, "onnxruntime", threads=torch.get_num_threads()) as dispatcher:
        for images, _ in test.batches(CHUNK):
            found = [dispatcher.run(image) for image in bench.data.normalize(images).numpy()]
            classes += [int(each.classes[0]) for each in found]
            exits += [int(each.exits[0]) for each in found]
        segments = len(dispatcher.manifest.segments)
    same = None
    if precision == "fp32":
        same = int(_same_as_torch(bench, checkpoint, read_plan(file), classes, exits).sum())
    rates = np.bincount(exits, minlength=segments) / len(exits)
    right = int((np.array(classes) == test.labels.numpy()).sum())
    return {
        "bundle": str(bundle), "correct": right, "images": len(exits),
        "same_as_torch": same, "exit_rates": rates.tolist(),
    }  # fmt: skip


def _same_as_torch(
    bench: Bench, checkpoint: Path, plan: ExitPlan, classes: Sequence[int], exits: Sequence[int]
) -> Any:
    table = replay(bench, checkpoint, "test")
    numbers = table.subset(plan.exits)
    taken = decide(table, plan.thresholds, exits=numbers)
    torch_classes = table.logits[np.arange(len(table)), taken].argmax(axis=1)
    places = {int(number): place for place, number in enumerate(numbers)}
    torch_exits = np.array([places.get(int(each), len(numbers)) for each in taken])
    return (torch_classes == np.array(classes)) & (torch_exits == np.array(exits))


def latencies(bench: Bench, bundles: dict[str, str], whole: dict[str, Path]) -> dict[str, float]:
    """Time whole networks and bundles in turn over the same images; ms of an image on average."""
    split = first(bench.data.splits["test"], bench.images)
    images = bench.data.normalize(split.images(torch.arange(len(split))))
    arrays, subjects, open_ones = list(images.numpy()), {}, []
    for name, file in whole.items():
        onnx = onnx_from_module(open_checkpoint(file).model, images[:2], file.with_suffix(".onnx"))
        session = onnx_session(onnx.path)
        runs = [session_runner(session, image) for image in images.split(1)]
        subjects[name] = lambda runs=runs: [run() for run in runs]
    for name, bundle in bundles.items():
        one = Dispatcher(Path(bundle), "onnxruntime", threads=torch.get_num_threads())
        open_ones.append(one)
        subjects[name] = lambda one=one: [one.run(image) for image in arrays]
    times = measure_latency(subjects, max_seconds=bench.seconds, min_iterations=5)
    for one in open_ones:
        one.close()
    return {name: time.median_ms / len(arrays) for name, time in times.items()}


def measure(bench: Bench, chosen: Sequence[str]) -> dict[str, Any]:
    """Measure what is not noted yet."""
    rows, bundles, ways = [], {}, {}
    made = networks(bench, chosen)
    for name, checkpoint in made.items():
        found = bench.notes.get(f"{name} ways", partial(compare_ways, bench, name, checkpoint))
        ways[name] = found
        best = min(found, key=lambda way: found[way]["plan_share"])
        exits = Path(found[best]["checkpoint"])
        for plan in PLANS:
            for precision in PRECISIONS:
                key = f"{name}, {plan}, {precision}"
                row = bench.notes.get(key, partial(dispatched, bench, exits, plan, precision))
                table = replay(bench, exits, "test")
                point = measure_plan(
                    read_plan(planned(bench, exits, plan)), table, costs_from_table(table)
                )
                rows.append({"name": key, "way": best, "macs": point.share * _full(table), **row})
                bundles[key] = row["bundle"]
    whole = {"untouched": bench.folder / f"{BASE}.pth", **made}
    told = bench.notes.get("latency_ms", partial(latencies, bench, bundles, whole))
    return {"ways": ways, "rows": rows, "latency_ms": told, "whole": bench.notes.get(
        "whole", partial(_whole, bench, whole))}  # fmt: skip


def _full(table: ReplayTable) -> float:
    return float(costs_from_table(table).full)


def _whole(bench: Bench, files: dict[str, Path]) -> dict[str, Any]:
    found = {}
    for name, file in files.items():
        model = open_checkpoint(file).model
        found[name] = {
            "correct": correct(model, bench.data.splits["test"], bench.data),
            "macs": counted(model, bench.data),
        }
    return found


def tables(measured: dict[str, Any]) -> str:
    """Return the results as two tables in Markdown."""
    return "\n\n".join([_ways_table(measured), _networks_table(measured)])


def _ways_table(measured: dict[str, Any]) -> str:
    lines = ["| network | exits trained | accuracy of each head, % | plan, % | of its MACs |",
             "| --- | --- | --- | ---: | ---: |"]  # fmt: skip
    for name, ways in measured["ways"].items():
        for way, row in ways.items():
            heads = " ".join(f"{each:.1f}" for each in row["heads_acc1"])
            lines.append(
                f"| {name} | {way} | {heads} | {row['plan_acc1']:.2f} | {row['plan_share']:.1%} |"
            )
    return "\n".join(lines)


def _networks_table(measured: dict[str, Any]) -> str:
    base, times = measured["whole"]["untouched"]["macs"], measured["latency_ms"]
    lines = ["| network | top-1, % | MACs | latency | leaves at each exit, % |",
             "| --- | ---: | ---: | ---: | --- |"]  # fmt: skip
    for name, row in measured["whole"].items():
        share = row["macs"] / base
        lines.append(f"| {name} | {row['correct'] / 100:.2f} | {share:.1%} | "
                     f"{times[name] / times['untouched']:.2f} | |")  # fmt: skip
    for row in measured["rows"]:
        rates = " ".join(f"{100 * rate:.0f}" for rate in row["exit_rates"])
        accuracy = 100 * row["correct"] / row["images"]
        latency = times[row["name"]] / times["untouched"]
        lines.append(f"| {row['name']} ({row['way']}) | {accuracy:.2f} | {row['macs'] / base:.1%} "
                     f"| {latency:.2f} | {rates} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, leave exits.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/ and test/ (unpacked into the folder)")
    add("-o", "--output", type=Path, default=Path("runs/cifar10_resnet"), help="folder")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of training to compare")
    words = "networks to give exits: the fine-tuned one, or the slimmed and fine-tuned one"
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help=words)
    add("--images", type=int, default=200, help="of the test split to time on")
    add("--seconds", type=float, default=60.0, help="of timing")
    args = parser.parse_args()
    spec = f"folder:{args.data or unpacked(args.output)}"
    opened = open_checkpoint(args.output / f"{BASE}.pth")
    settings = {"data": spec, "images": args.images}
    bench = Bench(
        folder=args.output,
        data=opened.data(spec),
        spec=spec,
        notes=Notes(args.output / "exits.json", settings),
        ways=tuple(args.ways),
        images=args.images,
        seconds=args.seconds,
    )
    print(tables(measure(bench, args.networks)))


if __name__ == "__main__":
    main()
