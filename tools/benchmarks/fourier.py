"""Transforms as real products beside ONNX Runtime's own DFT and torch's FFT, at one thread.

    python tools/benchmarks/fourier.py [--lengths 8,16,…] [--signals 16] [--quick]

Every case is a forward one-sided transform of real values whose two parts are read, or the inverse
of such parts, in float32. The three run in turn, many times, and of each the run counts that took
the least processor time: work is compared, whatever else the machine does. The bars: never slower
than ONNX Runtime's DFT, at most three times torch's FFT. Last comes GFNet-XS by FFT, lowered by the
pass, beside the same network with the matrix form written by hand; its bar is 1.05.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.export.fourier import rewrite_transforms_
from compress.export.graph import graph_from_module
from compress.export.graph_tidy import tidy_
from compress.models.gfnet import gfnet
from compress.models.global_filter import with_matrix_filters
from compress.optional import require

LENGTHS = """
    8 12 16 30 32 60 64 100 127 128 200 256 360 480 509 512 720 1000 1021 1024 1536 2000 2039 2048
    3000 3072 4000 4093 4096
"""
GRIDS = ((14, 14), (16, 16), (60, 60), (90, 180), (256, 256))
ORT_BAR, TORCH_BAR, GFNET_BAR = 1.0, 3.0, 1.05


def main() -> None:
    """Measure all cases and print them beside the bars."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", default=",".join(LENGTHS.split()), help="of one axis")
    parser.add_argument("--signals", type=int, default=16, help="transformed at once (16)")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each case (0.4)")
    parser.add_argument("--no-gfnet", action="store_true", help="leave the network out")
    parser.add_argument("--no-grids", action="store_true", help="leave two axes out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("case                     lowered us   ORT DFT us  torch us   / ORT   / torch")
    worst = [0.0, 0.0]
    cases: list[tuple[tuple[int, ...], int]] = [
        ((int(n),), args.signals) for n in args.lengths.split(",") if n
    ]
    if not args.no_grids:
        cases += [(grid, 3) for grid in GRIDS]
    for grid, signals in cases:
        for inverse in (False, True):
            ratios = _case(grid, signals, inverse, args.seconds)
            worst = [max(a, b) for a, b in zip(worst, ratios, strict=True)]
    print(f"largest / ORT DFT: {worst[0]:.2f} (<= {ORT_BAR:g} is good)")
    print(f"largest / torch FFT: {worst[1]:.2f} (<= {TORCH_BAR:g} is good)")
    if not args.no_gfnet:
        _gfnet(args.seconds)


def transform_graph(grid: Sequence[int], signals: int, *, inverse: bool) -> Any:
    """Return a graph of one transform over the last axes, both parts apart, by DFT nodes."""
    half = (*grid[:-1], grid[-1] // 2 + 1)
    parts, whole = {"re": half, "im": half}, {"whole": tuple(grid)}
    nodes = _inverse_nodes(len(grid)) if inverse else _forward_nodes(len(grid))
    inputs, outputs = (parts, whole) if inverse else (whole, parts)
    constants = {"n": grid[-1], "zero": 0, "one": 1, "last": [-1]}
    graph = helper.make_graph(
        nodes,
        "transform",
        _values(inputs, signals),
        _values(outputs, signals),
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _values(shapes: dict[str, tuple[int, ...]], signals: int) -> list[Any]:
    made = helper.make_tensor_value_info
    return [made(name, TensorProto.FLOAT, (signals, *shape)) for name, shape in shapes.items()]


def _forward_nodes(axes: int) -> list[Any]:
    make = helper.make_node
    nodes = [
        make("Unsqueeze", ["whole", "last"], ["x"]),
        make("DFT", ["x", "n"], ["z0"], axis=axes, onesided=1),
    ]
    nodes += [make("DFT", [f"z{i}"], [f"z{i + 1}"], axis=i + 1) for i in range(axes - 1)]
    for name, index in (("re", "zero"), ("im", "one")):
        nodes.append(make("Gather", [f"z{axes - 1}", index], [name], axis=axes + 1))
    return nodes


def _inverse_nodes(axes: int) -> list[Any]:
    make = helper.make_node
    nodes = [make("Unsqueeze", [n, "last"], [f"{n}1"]) for n in ("re", "im")]
    nodes.append(make("Concat", ["re1", "im1"], ["z0"], axis=axes + 1))
    nodes += [make("DFT", [f"z{i}"], [f"z{i + 1}"], axis=i + 1, inverse=1) for i in range(axes - 1)]
    last = make("DFT", [f"z{axes - 1}", "n"], ["y"], axis=axes, inverse=1, onesided=1)
    return [*nodes, last, make("Squeeze", ["y", "last"], ["whole"])]


def _case(
    grid: tuple[int, ...], signals: int, inverse: bool, seconds: float
) -> tuple[float, float]:
    original = transform_graph(grid, signals, inverse=inverse)
    lowered = transform_graph(grid, signals, inverse=inverse)
    rewrite_transforms_(lowered)
    tidy_(lowered)
    x = torch.randn(signals, *grid)
    spectrum = torch.fft.rfftn(x, dim=tuple(range(1, x.dim())))
    axes = tuple(range(1, x.dim()))
    by_torch: Callable[[], Any]
    if inverse:
        feed = {"re": spectrum.real.numpy().copy(), "im": spectrum.imag.numpy().copy()}
        by_torch = partial(torch.fft.irfftn, spectrum, s=grid, dim=axes)
    else:
        feed, by_torch = {"whole": x.numpy()}, partial(torch.fft.rfftn, x, dim=axes)
    runners: list[Callable[[], Any]] = [_runner(lowered, feed), _runner(original, feed), by_torch]
    _check(runners[0](), x, spectrum, inverse)
    ours, ort, own = fastest(runners, seconds)
    name = f"{'inverse' if inverse else 'forward'} {signals}x{'x'.join(map(str, grid))}"
    print(
        f"{name:24} {ours * 1e6:10.1f} {ort * 1e6:12.1f} {own * 1e6:9.1f} {ours / ort:7.3f} "
        f"{ours / own:9.2f}",
        flush=True,
    )
    return ours / ort, ours / own


def fastest(runners: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Return the processor seconds of the fastest run of each, run in turn, all after all."""
    best = [float("inf")] * len(runners)
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < stop:
        for place in range(len(runners)):
            i = (place * (1 + rounds % 2) + rounds) % len(runners)  # another runs before, by turns
            start = time.process_time()
            runners[i]()
            best[i] = min(best[i], time.process_time() - start)
        rounds += 1
    return best


def _runner(graph: Any, feed: dict[str, Any]) -> Callable[[], Any]:
    ort = require("onnxruntime", "measuring")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, feed)


def _check(found: Any, x: torch.Tensor, spectrum: torch.Tensor, inverse: bool) -> None:
    got = found[0] if inverse else found[0] + 1j * found[1]
    wanted = (x if inverse else spectrum).numpy()
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    if not error <= 1e-5:
        raise SystemExit(f"the lowered transform differs from torch by {error:.1e}")


def _gfnet(seconds: float) -> None:
    torch.manual_seed(0)
    network = gfnet("gfnet_xs", depth=4, num_classes=10).eval()
    image = torch.randn(1, 3, 224, 224)
    graphs = [
        graph_from_module(
            module, image, input_name="image", output_names=["logits"], free_batch=False
        )
        for module in (network, with_matrix_filters(network))
    ]
    by_pass, by_hand = fastest(
        [_runner(graph, {"image": image.numpy()}) for graph in graphs], 10 * seconds
    )
    print(
        f"GFNet-XS, 4 blocks, 224 pixels: lowered {by_pass * 1e3:.2f} ms, by hand "
        f"{by_hand * 1e3:.2f} ms, ratio {by_pass / by_hand:.3f} (<= {GFNET_BAR:g} is good)"
    )


if __name__ == "__main__":
    main()
