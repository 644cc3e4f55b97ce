"""A finished run, written by hand: two chains, every kind of step, figures that are easy to check.

Written as the steps write theirs; what a test reads on the page it looks up here.
"""

import json

HARDWARE = {"cpu": "Abacus 9", "cores": 2, "torch_threads": 2, "cuda": None}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0+cpu"}
ABOUT = {"versions": VERSIONS, "hardware": HARDWARE}


def latency(median):
    return {"median": median, "p10": median / 2, "p90": median * 2, "p99": median * 3}


def network(name, macs, params, median, **more):
    return {
        "network": name,
        "macs": macs,
        "params": params,
        "latency_ms": {"torch": latency(median)},
        "test_images": 400,
        **more,
    }


SLIM_ROWS = [
    network("baseline", 8_000_000, 200_000, 1.0, acc1=95.0),
    network("slim 0.5", 2_000_000, 40_000, 0.4, acc1_slimmed=60.25, acc1_finetuned=94.5,
            ratio=0.5, true_pruned_ratio=0.45, threshold=0.02),
]  # fmt: skip
EXIT_ROWS = [
    network("baseline", 6_000_000, 100_000, 2.0, acc1=97.0),
    network("dynn", 6_500_000, 110_000, 1.2, acc1=96.75, expected_macs=3_000_000.0,
            exit_threshold=0.7),
]  # fmt: skip
LAYERS = [
    {"name": "features.1", "before": 16, "after": 16},
    {"name": "features.4", "before": 32, "after": 8},
]
HISTOGRAM = {"edges": [0.0, 0.01, 0.02, 0.5], "counts": [30, 6, 12]}
CURVE = [
    {"epoch": 1, "train_loss": 2.5, "validation_loss": 2.25, "acc1": 40.0},
    {"epoch": 2, "train_loss": 0.5, "validation_loss": 0.75, "acc1": 95.5},
]


def exit_report(threshold, share, acc1):
    return {
        "positions": [1, 3, 5],
        "thresholds": [threshold, threshold],
        "counts": [200, 150, 50],
        "correct": [199, 147, 41],
        "rates": [50.0, 37.5, 12.5],
        "accuracies": [99.5, 98.0, 82.0],
        "images": 400,
        "acc1": acc1,
        "expected_macs": 6_000_000 * share,
        "macs_share": share,
    }


EVALUATED = {
    "threshold": 0.7,
    "test": exit_report(0.7, 0.5, 96.75),
    "sweep": [exit_report(0.5, 0.375, 95.25), exit_report(0.7, 0.5, 96.75)],
    "calibration": [
        {"position": 1, "auroc": 0.875, "ece_before": 0.125, "ece_after": 0.0625},
        {"position": 3, "auroc": 0.75, "ece_before": 0.25, "ece_after": 0.03125},
    ],
    "oracle": {"acc1": 99.0, "expected_macs": 1_500_000.0},
}
FRONT = [
    {"method": "search", "points": [{"cost_share": 0.25, "acc1": 94.0}]},
    {"method": "uniform", "points": [{"cost_share": 0.75, "acc1": 96.5}]},
]
PLAN = {
    "format": "compress.plan/1",
    "exits": [1, 3],
    "thresholds": [0.7, 0.8],
    "objective": {"kind": "max-drop", "value": 0.5},
    "cost": {"expected": 3_000_000, "full": 6_000_000, "unit": "macs", "source": "counted"},
    "accuracy": {"images": 400, "correct": 387, "interval": [0.945, 0.983], "confidence": 0.95},
    "guarantee": None,
}
PATHS = ["layer1.8.relu", "features.14.block.conv2"]
EVALUATED_BY_PATH = {
    **EVALUATED,
    "test": {**exit_report(0.7, 0.5, 96.75), "positions": [*PATHS, "final head"]},
    "calibration": [
        {"position": path, "auroc": auroc, "ece_before": 0.125, "ece_after": 0.0625}
        for path, auroc in zip(PATHS, (0.875, 0.625), strict=True)
    ],
}
REFUSED = {
    **PLAN,
    "format": "compress.plan/2",
    "exits": [],
    "thresholds": [],
    "cost": {"expected": 2.0, "full": 2.0, "unit": "ms", "source": "measured"},
    "refused": {"exits": PATHS, "thresholds": [0.7, 0.8], "expected": 2.5},
}
PARITY = {
    "worst_relative_error": 2.5e-7,
    "worst_gate_error": 1.5e-6,
    "top1_agreement": 1.0,
    "exit_agreement": 0.96875,
    "images": 32,
}
PROFILE = {
    "rows": [
        {"name": "blocks", "hits": 800, "total_ms": 300.0, "per_hit_ms": 0.375, "share": 0.75},
        {"name": "gate", "hits": 600, "total_ms": 100.0, "per_hit_ms": 1 / 6, "share": 0.25},
    ]
}
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'

RECIPE = {"name": "small", "data": "digits", "image_size": 16, "seed": 3,
          "chains": {"thin": [], "early": []}}  # fmt: skip
TASKS = {
    "thin/train": {"checkpoint": "best.pth", "test": {"acc1": 95.0, "count": 400}},
    "thin/slim/0.5": {"ratio": 0.5, "threshold": 0.02,
                      "gamma": {"share_below_1pct": 0.625, "histogram": HISTOGRAM}},
    "thin/finetune/0.5": {"test": {"acc1": 94.5, "count": 400}},
    "thin/export/0.5": {"onnx": "model.onnx", "opset": 18, "parity": PARITY},
    "thin/compare": {"table": "table.txt"},
    "early/train": {"test": {"acc1": 97.0, "count": 400}},
    "early/exits/dynn": {"validation": {}},
    "early/evaluate/dynn": EVALUATED,
    "early/plan/dynn": {"front": FRONT, "chosen": {"cost_share": 0.5, "acc1": 96.75}},
    "early/export/dynn": {"bundle": "bundle", "opset": 18, "segments": 3, "parity": PARITY,
                          "size_bytes": 1_500_000},
    "early/dispatch/dynn": {"images": 400, "same_decisions": 399, "acc1": 96.5,
                            "exit_counts": [201, 149, 50]},
    "early/benchmark": {"profiles": {"dynn": PROFILE},
                        "latency": {"dynn": {"bundle": latency(0.8)}},
                        "energy": {"reason": "this machine has no power rail"}, **ABOUT},
    "early/compare": {"table": "table.txt"},
}  # fmt: skip
FILES = {
    "recipe.json": RECIPE,
    "thin/slim/0.5/slim.report.json": {"layers": LAYERS, **ABOUT},
    "thin/compare/table.json": {"rows": SLIM_ROWS, **ABOUT},
    "early/compare/table.json": {"rows": EXIT_ROWS, **ABOUT},
    "early/plan/dynn/plan.json": PLAN,
}
LINES = {"thin/train": CURVE, "thin/finetune/0.5": CURVE, "early/exits/dynn": CURVE}


def write_run(folder, **replaced):
    """Write the run; `replaced` gives other content, or None, for a file by its name."""
    content = {name: json.dumps(value) for name, value in FILES.items()}
    content |= {
        f"{task}/done.json": json.dumps({"fingerprint": "0", "figures": figures})
        for task, figures in TASKS.items()
    }
    content |= {
        f"{task}/metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines)
        for task, lines in LINES.items()
    }
    for name, text in (content | replaced).items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder


def done(figures):
    """Return the text of a done.json."""
    return json.dumps({"fingerprint": "0", "figures": figures})
