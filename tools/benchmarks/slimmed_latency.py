"""Whether a slimmed VGG16 is as much faster as it is smaller: ONNX latency beside MACs.

    python tools/benchmarks/slimmed_latency.py [--ratios 0.2 0.4 0.6] [--seconds 20]

Slims a VGG16-BN (100 classes, 224x224), writes ONNX, and times all files in ONNX Runtime in turn.
A latency ratio well above the MACs ratio is a network that got smaller without getting faster.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from compress.export.onnx_file import onnx_from_module, onnx_session, session_runner
from compress.measure.latency import Subject, measure_latency
from compress.measure.macs import count_macs
from compress.measure.versions import hardware
from compress.models.vgg import vgg_bn
from compress.slimming.slim import slim_model


def spread_vgg16() -> nn.Module:
    """A VGG16-BN with random weights whose γ are uniform in (0, 1): every layer loses its share."""
    torch.manual_seed(0)
    model = vgg_bn(16, num_classes=100).eval()
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
    return model


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    unpruned = spread_vgg16()
    image = torch.randn(1, 3, 224, 224)
    networks = {"unpruned": unpruned}
    networks |= {f"slim {r}": slim_model(unpruned, r).model for r in options.ratios}
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Subject] = {}
        for name, network in networks.items():
            path = Path(folder) / f"{name}.onnx"
            onnx_from_module(network, image, path)
            sessions[name] = session_runner(onnx_session(path), image)
        times = measure_latency(sessions, max_seconds=options.seconds, min_iterations=10)
    macs = {name: count_macs(network, (3, 224, 224)) for name, network in networks.items()}
    print(f"{hardware()['cpu']}, {times['unpruned'].iterations} runs in turn, batch 1")
    for name in networks:
        latency = times[name].median_ms
        print(
            f"{name}: {latency:.1f} ms, latency / unpruned "
            f"{latency / times['unpruned'].median_ms:.3f}, MACs / unpruned "
            f"{macs[name] / macs['unpruned']:.3f}"
        )


if __name__ == "__main__":
    main()
