"""What it costs to export a network with exits once and to cut its graph: ratios, in one run.

    python tools/benchmarks/cut.py [--seconds 60] [--networks gfnet resnet50 resnet56] [--no-export]

For each network, all with random weights and three exits: time of the export of a bundle with
exits against one of the plain network; latency of the segments in order against the whole graph
with all its exits, float32 and int8. ONNX Runtime on the CPU, batch 1, as many threads as torch
takes.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint import save
from compress.export.chain import run_chain
from compress.export.cut import cut_graph
from compress.export.deployed_form import deployed_form
from compress.export.export_job import ExportJob, export_checkpoint
from compress.export.graph import graph_from_module
from compress.export.lowering import lowered
from compress.export.onnx_file import onnx_session
from compress.export.quantise import linear_nodes, quantised
from compress.export.targets import target
from compress.export.whole_network import WholeNetwork, results_of_exits
from compress.measure.latency import measure_latency
from compress.measure.versions import hardware
from compress.models.gfnet import gfnet
from compress.models.give_exits import with_exits
from compress.models.resnet import ResNet
from compress.opened import Opening

TARGET = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to measure: how it is built, its image's side, and where its exits stand."""

    build: Callable[[], nn.Module]
    side: int
    exits: Sequence[int | str]


def resnet50() -> nn.Module:
    """The bottleneck ResNet of 50 layers, for ImageNet."""
    counts, widths = (3, 4, 6, 3), (64, 128, 256, 512)
    return ResNet(
        stage_widths=[4 * width for width in widths],
        block_widths=[[[w, w]] * count for w, count in zip(widths, counts, strict=True)],
        num_classes=1000,
        projections=[True] * 4,
    )


def resnet56() -> nn.Module:
    """The basic ResNet of 56 layers, for CIFAR."""
    widths = (16, 32, 64)
    return ResNet(
        stage_widths=widths,
        block_widths=[[[width]] * 9 for width in widths],
        num_classes=10,
        projections=[False] * 3,
        stem_width=16,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
    )


NETWORKS = {
    "gfnet": Network(
        build=lambda: gfnet("gfnet_12_384", num_classes=45), side=224, exits=(7, 8, 9)
    ),
    "resnet50": Network(build=resnet50, side=224, exits=("layer2.3", "layer3.2", "layer3.5")),
    "resnet56": Network(build=resnet56, side=32, exits=("layer2.3", "layer2.8", "layer3.4")),
}


def compare_exports(name: str, network: Network) -> None:
    """Seconds of an export with exits against one without, in turn."""
    torch.manual_seed(0)
    plain = network.build().eval()
    image = torch.zeros(1, 3, network.side, network.side)
    split = with_exits(plain, network.exits, image).eval()
    taken: dict[bool, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for with_all, model in ((False, plain), (True, split)):
            checkpoint = Path(folder) / f"{with_all}.pth"
            save(model, checkpoint)
            start = time.perf_counter()
            export_checkpoint(
                ExportJob(
                    checkpoint=checkpoint,
                    output=checkpoint.with_suffix(".bundle"),
                    opening=Opening(image_size=network.side),
                    split_exits=with_all,
                    thresholds=0.5 if with_all else None,
                    target=TARGET,
                    progress=False,
                )
            )
            taken[with_all] = time.perf_counter() - start
    seconds = f"{taken[True]:.1f} s / {taken[False]:.1f} s"
    _tell(f"{name}: export with exits / plain", taken[True] / taken[False], "at most 1.2", seconds)


def compare_chain(name: str, network: Network, seconds: float) -> None:
    """The segments in order against the whole graph, float32 and int8."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, network.side, network.side)
    model = with_exits(network.build().eval(), network.exits, image).eval()
    results = results_of_exits(len(network.exits))
    names = [output for each in results for output in each]
    whole = WholeNetwork(deployed_form(model), split=True)
    graph = graph_from_module(
        whole, image, input_name="image", output_names=names, free_batch=False
    )
    graph = lowered(graph, target(TARGET))
    parts = cut_graph(graph, results, image.numpy())
    feeds = [taken for taken, _ in run_chain([onnx_session(p.proto) for p in parts], image.numpy())]
    int8_parts = [
        quantised(part.proto, [feed], crossing=[spec.name for spec in part.gives])
        if linear_nodes(part.proto, [spec.name for spec in part.gives])
        else part.proto
        for part, feed in zip(parts, feeds, strict=True)
    ]
    for precision, one, several in (
        ("fp32", graph, [part.proto for part in parts]),
        ("int8", quantised(graph, [{"image": image.numpy()}]), int8_parts),
    ):
        ratio, told = _chain_ratio(one, several, image, seconds)
        _tell(f"{name} {precision}: segments in order / whole", ratio, "at most 1.05", told)


def _chain_ratio(one: Any, several: Sequence[Any], image: torch.Tensor, seconds: float) -> Any:
    whole, chain = onnx_session(one), [onnx_session(each) for each in several]
    feed = {"image": image.numpy()}
    times = measure_latency(
        {
            "whole": lambda: whole.run(None, feed),
            "chain": lambda: run_chain(chain, feed["image"]),
        },
        max_seconds=seconds,
        min_iterations=10,
        progress=False,
    )
    found = {name: latency.median_ms for name, latency in times.items()}
    told = f"{found['chain']:.2f} ms / {found['whole']:.2f} ms"
    return found["chain"] / found["whole"], told


def _tell(name: str, ratio: float, bar: str, told: str) -> None:
    print(f"{name:45} {ratio:7.3f}  ({bar}; {told})", flush=True)


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the latencies")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--no-export", action="store_true", help="leave the exports out")
    options = parser.parse_args()
    print(f"{hardware()['cpu']}, {torch.get_num_threads()} threads")
    for name in options.networks:
        if not options.no_export:
            compare_exports(name, NETWORKS[name])
        compare_chain(name, NETWORKS[name], options.seconds / 2 / len(options.networks))


if __name__ == "__main__":
    main()
