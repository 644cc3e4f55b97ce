"""The front over all 2^11 subsets of exits and per-exit thresholds: time, memory, gain.

    python tools/benchmarks/exit_planning.py [--images 10000] [--large 50000]

The table is made up: a network of 12 blocks with 11 exits, whose gates see how sure an exit is
through noise, and whose exit checks cost 5 % of a block. Both sizes run in processes of their own;
memory is the peak of the process above its imports and the table. The bars are 10 seconds at 10,000
images and 1 GiB at 50,000.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from compress.exits.replay import ReplayTable, Source
from compress.planning.costs import costs_from_table
from compress.planning.plan import Objective
from compress.planning.planner import plan_exits
from compress.planning.points import PlanFront, hand_made_settings, plan_front

EXITS, CLASSES = 11, 10
STEM, BLOCK, CHECK = 200, 1000, 50  # multiply-adds
HAND_MADE = ((7, 8, 9), 0.8)
SECONDS, MIB = 10.0, 1024.0
DROPS = (0.0, 0.5, 1.0, 2.0)  # points


def main() -> None:
    """Measure both sizes and print them beside the bars."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000, help="for the time (10000)")
    parser.add_argument("--large", type=int, default=50_000, help="for the memory (50000)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # in the processes
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measure(args.measure)))
        return
    timed, large = _in_own_process(args.images), _in_own_process(args.large)
    for found in (timed, large):
        print(
            f"{found['images']:6d} images: {found['seconds']:6.2f} s, peak "
            f"{found['peak_mib']:6.1f} MiB above a table of {found['table_mib']:.1f} MiB, "
            f"{found['points']} points"
        )
        for drop, shares in found["shares"].items():
            named = ", ".join(f"{name} {share}" for name, share in shares.items())
            print(f"       at most {drop} points below the whole network, share of cost: {named}")
    print(f"time / {SECONDS:g} s: {timed['seconds'] / SECONDS:.3f} (<= 1.0 is good)")
    print(f"memory / {MIB:g} MiB: {large['peak_mib'] / MIB:.3f} (<= 1.0 is good)")


def made_up_table(images: int, seed: int = 0) -> ReplayTable:
    """Return a table of images of many difficulties; the deeper an exit, the more it gets right."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=images)
    labels = rng.integers(0, CLASSES, images)
    logits = np.zeros((images, EXITS + 1, CLASSES), dtype=np.float32)
    scores = np.zeros((images, EXITS), dtype=np.float32)
    for place in range(EXITS + 1):
        skill = -0.8 + 2.6 * (place + 1) / (EXITS + 1)
        margin = skill - difficulty + 0.5 * rng.normal(size=images)
        wrong = (labels + rng.integers(1, CLASSES, images)) % CLASSES
        logits[np.arange(images), place, np.where(margin > 0, labels, wrong)] = 3.0
        if place < EXITS:
            scores[:, place] = 1 / (1 + np.exp(-2 * margin - rng.normal(size=images)))
    checks = np.full(EXITS, CHECK)
    macs = STEM + np.cumsum([*(BLOCK + checks), BLOCK])
    return ReplayTable(
        logits=logits,
        scores=scores,
        labels=labels.astype(np.int64),
        positions=tuple(range(EXITS)),
        depth=EXITS + 1,
        macs=macs.astype(np.int64),
        check_macs=checks.astype(np.int64),
        source=Source(data="made up", split="made up", data_sha256="", checkpoint_sha256=""),
    )


def _measure(images: int) -> dict[str, Any]:
    table = made_up_table(images)
    costs = costs_from_table(table)
    hand_made = hand_made_settings(table, *HAND_MADE)
    before = _peak_mib()
    start = time.perf_counter()
    front = plan_front(table, costs, hand_made=hand_made)
    plan_exits(table, costs, Objective(kind="max-drop", value=0.5), front=front)
    seconds = time.perf_counter() - start
    return {
        "images": images,
        "seconds": seconds,
        "peak_mib": _peak_mib() - before,
        "table_mib": (table.logits.nbytes + table.scores.nbytes + table.labels.nbytes) / 2**20,
        "points": len(front.search),
        "shares": {drop: _shares(table, front, drop) for drop in DROPS},
    }


def _shares(table: ReplayTable, front: PlanFront, drop: float) -> dict[str, str]:
    costs, objective = costs_from_table(table), Objective(kind="max-drop", value=drop)
    plans = {
        name: plan_exits(table, costs, objective, planner=name, front=front)
        for name in ("search", "stopping", "uniform", "hand-made")
    }
    return {name: f"{plan.cost.share:.4f}" for name, plan in plans.items()}


def _in_own_process(images: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
