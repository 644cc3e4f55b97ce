"""Slimming VGG16-BN in memory: this toolkit against torch-pruning's own pruner on the same γ.

    python tools/benchmarks/slimming.py [--repeats 5] [--ratio 0.4]

Both remove the same channels from every layer of the same network (100 classes, seeded γ).
Ours also folds the constants of the removed channels into the next layers and gives a copy;
torch-pruning changes the network in place. Every measurement runs in a process of its own, in turn;
medians are compared. Memory is the peak above what the imports alone took, network included.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

SIDES = ("ours", "torch-pruning")


def main() -> None:
    """Measure both sides in turn and print times, memory and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--ratio", type=float, default=0.4, help="share of channels to remove (0.4)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side (5)")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)  # in the processes
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measure(args.measure, args.ratio)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(args.repeats):
        for side in SIDES:
            found[side].append(_in_own_process(side, args.ratio))
            last = found[side][-1]
            print(
                f"{repeat + 1}/{args.repeats} {side:>13}: {last['seconds']:6.3f} s, "
                f"peak {last['peak_mib']:7.1f} MiB above the imports",
                flush=True,
            )
    _report(found)


def _report(found: dict[str, list[dict[str, Any]]]) -> None:
    widths = {tuple(one["widths"]) for runs in found.values() for one in runs}
    if len(widths) > 1:
        sys.exit(f"the two sides left different widths, so they are not comparable: {widths}")
    seconds, peak = (
        {side: statistics.median(run[figure] for run in runs) for side, runs in found.items()}
        for figure in ("seconds", "peak_mib")
    )
    checkpoint = found["ours"][0]["checkpoint_mib"]
    for side in SIDES:
        print(f"{side:>13}: median {seconds[side]:.3f} s, {peak[side]:.1f} MiB")
    print(f"   checkpoint: {checkpoint:.1f} MiB")
    print(f"time, ours / torch-pruning: {_ratio(seconds):.3f} (<= 1.0 is good)")
    print(f"peak memory, ours / torch-pruning: {_ratio(peak):.3f} (<= 1.0 is good)")
    print(f"peak memory, ours / checkpoint: {peak['ours'] / checkpoint:.3f} (< 2.0 is good)")


def _ratio(medians: dict[str, float]) -> float:
    return medians["ours"] / medians["torch-pruning"]


def _in_own_process(side: str, ratio: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", side, "--ratio", str(ratio)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(side: str, ratio: float) -> dict[str, Any]:
    # Both sides import everything, so that the baseline is the same.
    import torch
    import torch_pruning  # noqa: F401

    from compress.models.vgg import vgg_bn
    from compress.slimming.slim import slim_model  # noqa: F401

    baseline = _peak_mib()
    network = vgg_bn(16, num_classes=100).eval()
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(generator=generator)
    checkpoint = sum(tensor.nbytes for tensor in network.state_dict().values()) / 2**20
    start = time.perf_counter()
    slim = (_slim_ours if side == "ours" else _slim_theirs)(network, ratio)
    seconds = time.perf_counter() - start
    widths = [m.out_channels for m in slim.modules() if isinstance(m, torch.nn.Conv2d)]
    return {
        "seconds": seconds,
        "peak_mib": _peak_mib() - baseline,
        "checkpoint_mib": checkpoint,
        "widths": widths,
    }


def _slim_ours(network: Any, ratio: float) -> Any:
    from compress.slimming.slim import SlimOptions, slim_model

    return slim_model(network, ratio, SlimOptions(round_to=1, min_channels=1)).model


def _slim_theirs(network: Any, ratio: float) -> Any:
    import torch
    import torch_pruning as tp

    tp.pruner.BNScalePruner(
        network,
        torch.zeros(1, 3, 224, 224),
        importance=tp.importance.BNScaleImportance(normalizer=None),
        global_pruning=True,
        pruning_ratio=ratio,
        round_to=None,
        ignored_layers=[network.classifier[6]],
    ).step()
    return network


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux


if __name__ == "__main__":
    main()
