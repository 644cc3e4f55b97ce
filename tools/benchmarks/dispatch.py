"""What splitting, lowering and dispatching cost and win: eight ratios, each of things run in turn.

    python tools/benchmarks/dispatch.py [--seconds 20] [--images 64] [--only export batch memory]

A full-size GFNet-dynn (12 blocks, width 384, 224x224, exits behind blocks 7, 8, 9) with random
weights; thresholds are quantiles of its own gates on noise, so that a quarter of the images leaves
at each exit. ONNX Runtime on the CPU, batch 1, as many threads as torch takes. What cutting costs
other networks, and how long exports take, is told by tools/benchmarks/cut.py.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.checkpoint import save
from compress.data.sample import noise
from compress.export.deployed_form import deployed_form
from compress.export.export_job import ExportJob, export_checkpoint
from compress.export.graph import graph_from_module
from compress.export.onnx_file import onnx_session
from compress.export.quantise import quantised
from compress.export.whole_network import WholeNetwork
from compress.measure.latency import Subject, measure_latency
from compress.measure.versions import hardware
from compress.models.gate import Gate
from compress.models.gfnet import gfnet
from compress.models.gfnet_dynn import GFNetDynn, gfnet_with_exits
from compress.runtime.dispatcher import Dispatcher

EXITS = (7, 8, 9)
SHARE = 0.25  # of the images that leave at each exit
DISPATCHES = 10_000


class Block(nn.Module):
    """One block, from hidden state to hidden state."""

    def __init__(self, network: GFNetDynn) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens behind block 8."""
        return self.network.run_blocks(x, 8, 9)


class BlockAndCheck(nn.Module):
    """The same, and behind it norm, pooling, head and gate of one exit."""

    def __init__(self, network: GFNetDynn) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the tokens behind block 8, logits and the gate's probability."""
        x = self.network.run_blocks(x, 8, 9)
        logits, gate = self.network.exit_outputs(1, x)
        return x, logits, torch.sigmoid(gate)


def network() -> GFNetDynn:
    """A full-size network whose gates differ from image to image."""
    torch.manual_seed(0)
    model = gfnet_with_exits(gfnet("gfnet_12_384", num_classes=45), EXITS).eval()
    with torch.no_grad():
        for head in (*model.intermediate_heads, model.head):
            head.weight.mul_(20)
        for gate in model.modules():
            if isinstance(gate, Gate):
                gate.linear.weight.normal_()
    return model


def thresholds(model: GFNetDynn, images: torch.Tensor) -> tuple[float, ...]:
    """Bars at which `SHARE` of all images leaves at each exit."""
    with torch.inference_mode():
        parts = [model.forward_all(part)[1] for part in images.split(8)]
    gates = torch.sigmoid(torch.cat(parts)).double().numpy()
    here = np.ones(len(gates), dtype=bool)
    bars = []
    for i in range(gates.shape[1]):
        leaving = max(1, round(SHARE * len(gates)))
        ranked = np.sort(gates[here, i])[::-1]
        bars.append(float((ranked[leaving - 1] + ranked[min(leaving, len(ranked) - 1)]) / 2))
        here &= gates[:, i] < bars[-1]
    return tuple(bars)


def session_of(module: nn.Module, example: torch.Tensor, folder: Path, *, outputs: int = 1) -> Any:
    """Export a module of one input `x` and open it."""
    names = [f"y{i}" for i in range(outputs)]
    graph = graph_from_module(module, example, input_name="x", output_names=names, free_batch=False)
    path = folder / f"{type(module).__name__}-{time.monotonic_ns()}.onnx"
    path.write_bytes(graph.SerializeToString())
    return onnx_session(path)


def int8_session(module: nn.Module, image: torch.Tensor, folder: Path, *, outputs: int) -> Any:
    """Export a module, quantise its Linear layers on noise, and open it."""
    names = [f"y{i}" for i in range(outputs)]
    graph = graph_from_module(module, image, input_name="x", output_names=names, free_batch=False)
    path = folder / "int8.onnx"
    path.write_bytes(quantised(graph, [{"x": image.numpy()}]).SerializeToString())
    return onnx_session(path)


def runner(session: Any, x: NDArray[Any]) -> Callable[[], Any]:
    """A call of a session without arguments."""
    feed = {"x": x}
    return lambda: session.run(None, feed)


def export(model: GFNetDynn, bars: Sequence[float], folder: Path, **options: Any) -> Path:
    """Export the network; return the folder of the bundle."""
    checkpoint, bundle = folder / "dynn.pth", folder / f"{len(list(folder.iterdir()))}.bundle"
    save(model, checkpoint)
    job = ExportJob(
        checkpoint=checkpoint,
        output=bundle,
        split_exits=True,
        thresholds=tuple(bars),
        target="onnxruntime",
        **options,
    )
    start = time.perf_counter()
    report = export_checkpoint(job)
    print(
        f"bundle of {len(report.sizes)} segments in {time.perf_counter() - start:.1f} s, worst "
        f"relative error {report.parity.worst_relative_error:.1e}"
    )
    return bundle


def compare_graphs(model: GFNetDynn, bundle: Path, folder: Path, seconds: float) -> None:
    """Lowered filter, torch, chain against graph, exit check against block."""
    image = torch.randn(1, 3, 224, 224)
    hidden = torch.randn(1, 196, 384)
    deployed: GFNetDynn = deployed_form(model)  # type: ignore[assignment]
    results = 2 * len(EXITS) + 1
    dft = session_of(WholeNetwork(model, split=True), image, folder, outputs=results)
    graph = session_of(WholeNetwork(deployed, split=True), image, folder, outputs=results)
    block = session_of(Block(deployed), hidden, folder)
    check = session_of(BlockAndCheck(deployed), hidden, folder, outputs=3)
    int8 = int8_session(WholeNetwork(deployed, split=True), image, folder, outputs=results)
    with Dispatcher(bundle, thresholds=1.0, threads=torch.get_num_threads()) as chain:
        runs: dict[str, Subject] = {
            "dft": runner(dft, image.numpy()),
            "graph": runner(graph, image.numpy()),
            "int8": runner(int8, image.numpy()),
            "torch": lambda: model.forward_all(image),
            "chain": lambda: chain.run(image.numpy()),
            "block": runner(block, hidden.numpy()),
            "block and check": runner(check, hidden.numpy()),
            "pause": lambda: time.sleep(0.02),  # torch's threads spin for a while
        }
        found = []
        for names in (
            ["dft", "graph"],
            ["block", "block and check"],
            ["torch", "pause", "int8", "chain"],
            ["graph", "chain"],
        ):
            subjects = {name: runs[name] for name in names}
            times = measure_latency(subjects, max_seconds=seconds / 4, min_iterations=10)
            found.append({name: latency.median_ms for name, latency in times.items()})
    filters, checks, eager, chained = found
    rows = [
        ("1. DFT nodes / matrix products", filters["dft"] / filters["graph"], "at least 10"),
        ("2. eager torch / exported network", eager["torch"] / eager["chain"], "at least 1.8"),
        ("   eager torch / exported in int8", eager["torch"] / eager["int8"], "at least 1.8"),
        (
            "3. segments in order / single graph",
            chained["chain"] / chained["graph"],
            "at most 1.05",
        ),
        ("4. exit check / block", checks["block and check"] / checks["block"] - 1, "at most 0.05"),
    ]
    for name, ratio, bar in rows:
        print(f"{name:37} {ratio:8.3f}  ({bar})")
    for ms in found:
        print("   " + ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items()))


def compare_dispatch(bundle: Path, images: NDArray[np.float32], rounds: int) -> None:
    """The dispatcher's own time, and real decisions against the sum over the shares."""
    with Dispatcher(bundle, threads=torch.get_num_threads()) as dispatcher:
        exits = np.concatenate([dispatcher.run(image).exits for image in images])
        own, whole, ideal = [], [], []
        for _ in range(rounds):
            walls, parts = [], []
            for image in images:
                start = time.perf_counter()
                dispatcher.run(image)
                walls.append(1e3 * (time.perf_counter() - start))
                parts += dispatcher.run(image, times=True).segment_ms or []
                own.append(_own_us(dispatcher, image))
            whole.append(statistics.fmean(walls))
            ideal.append(_ideal_ms(exits, parts))
    ratio = statistics.median(whole) / statistics.median(ideal)
    print(f"5. dispatcher's own µs a segment      {statistics.median(own):8.1f}  (at most 30)")
    print("   behind products that evict the caches; 8. tells it of a small network")
    print(f"6. mean latency / sum over the shares {ratio:8.3f}  (at most 1.05)")


def _own_us(dispatcher: Dispatcher, image: NDArray[np.float32]) -> float:
    """Microseconds a segment that pass outside the segments."""
    start = time.perf_counter()
    timed = dispatcher.run(image, times=True).segment_ms or []
    wall = 1e3 * (time.perf_counter() - start)
    return 1e3 * (wall - sum(ms for _, _, ms in timed)) / len(timed)


def compare_batch(bundle: Path, images: NDArray[np.float32], rounds: int) -> None:
    """A batch whose survivors are compacted, against the sum over the shares."""
    with Dispatcher(bundle, threads=torch.get_num_threads()) as dispatcher:
        bars = dispatcher.manifest.thresholds
        exits = dispatcher.run(images).exits
        walls, ideal = [], []
        for _ in range(rounds):
            dispatcher.set_thresholds(bars)
            start = time.perf_counter()
            dispatcher.run(images)
            walls.append(1e3 * (time.perf_counter() - start) / len(images))
            dispatcher.set_thresholds(1.0)  # nobody leaves: every segment on whole batches
            parts = dispatcher.run(images, times=True).segment_ms or []
            per_image = [(segment, 1, ms / count) for segment, count, ms in parts]
            ideal.append(_ideal_ms(exits, per_image))
    ratio = statistics.median(walls) / statistics.median(ideal)
    print(f"7. batch 32 / sum over the shares     {ratio:8.3f}  (at most 1.10)")


def _ideal_ms(exits: NDArray[np.int64], parts: Sequence[tuple[int, int, float]]) -> float:
    """Sum of (share of images × time of their segments), milliseconds an image."""
    means = {
        segment: statistics.fmean(ms for s, _, ms in parts if s == segment)
        for segment in {s for s, _, _ in parts}
    }
    reach = [float((exits >= segment).mean()) for segment in sorted(means)]
    return sum(share * means[segment] for segment, share in enumerate(reach))


def measure_memory(folder: Path) -> None:
    """Growth of the resident memory over many dispatches of a small network."""
    torch.manual_seed(0)
    small = gfnet_with_exits(
        gfnet("gfnet_12_192", num_classes=10, image_size=32, patch_size=4, depth=4), [0, 1, 2]
    ).eval()
    images, _ = noise((3, 32, 32), count=64)
    bundle = export(small, thresholds(small, images), folder, max_batch=8)
    with Dispatcher(bundle, threads=1) as dispatcher:
        for i in range(500):
            dispatcher.run(images[i % 57 : i % 57 + 1 + i % 8].numpy())
        before = _resident_mb()
        for i in range(DISPATCHES):
            dispatcher.run(images[i % 57 : i % 57 + 1 + i % 8].numpy())
        growth = _resident_mb() - before
        own = statistics.median(_own_us(dispatcher, image.numpy()) for image in images)
    print(f"8. growth over {DISPATCHES} dispatches      {growth:8.2f}  MB (0)")
    print(f"   dispatcher's own µs a segment      {own:8.1f}")


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16"))
    parser.add_argument("--only", nargs="+", default=["graphs", "dispatch", "batch", "memory"])
    options = parser.parse_args()
    print(f"{hardware()['cpu']}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"graphs", "dispatch", "batch"} & set(options.only):
            model = network()
            images, _ = noise((3, 224, 224), count=options.images)
            bars = thresholds(model, images)
        if {"graphs", "dispatch"} & set(options.only):
            bundle = export(model, bars, folder)
        if "graphs" in options.only:
            compare_graphs(model, bundle, folder, options.seconds)
        if "dispatch" in options.only:
            compare_dispatch(bundle, images.numpy(), options.rounds)
        if "batch" in options.only:
            bundle = export(model, bars, folder, max_batch=32)
            compare_batch(bundle, images.numpy(), options.rounds)
        if "memory" in options.only:
            measure_memory(folder)


if __name__ == "__main__":
    main()
