"""The blocks of the published logs, rebuilt from tables that hold the counts of the logs."""

# ruff: noqa: E501 - lines of the logs are as long as they are

import ast
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from compress.exits.log_text import deployment_block, sweep_block
from compress.exits.replay import ReplayTable
from compress.exits.sweep import evaluate_at
from compress.measure.exit_macs import exit_check_macs, macs_per_exit
from compress.models.gfnet import GFNET_VARIANTS
from compress.models.gfnet_dynn import GFNetDynn
from tests.exits.tables import SOURCE


@dataclass(frozen=True)
class Log:
    """A network of the logs: per block that images leave behind, how many and how many right."""

    classes: int
    image_size: int
    leave: dict[int, tuple[int, int]]
    lines: str
    mmacs: tuple[float, float]  # true ones: millions, per cent of the whole network
    wrong5: int = 0
    loss: float = 0.3


DEPLOYED = {
    "RESISC45": Log(
        classes=45, image_size=256, wrong5=18, loss=0.236, mmacs=(2240, 60.1),
        leave={4: (1392, 1389), 5: (1995, 1968), 7: (2266, 2197), 11: (647, 514)},
        lines="""\
[0.0, 0.0, 0.0, 0.0, 99.78448275862068, 98.64661654135338, 0.0, 96.954986760812, 0.0, 0.0, 0.0, 79.44358578052551]
[0, 0, 0, 0, 1392, 1995, 0, 2266, 0, 0, 0, 647]
[0.0, 0.0, 0.0, 0.0, 22.095238095238095, 31.666666666666664, 0.0, 35.96825396825397, 0.0, 0.0, 0.0, 10.269841269841269]
* Acc@1 96.317 Acc@5 99.714 loss 0.236""",
    ),
    "UC Merced": Log(
        classes=21, image_size=256, loss=0.365, mmacs=(2956, 79.3),
        leave={7: (139, 139), 8: (67, 67), 9: (153, 150), 11: (61, 58)},
        lines="""\
[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 100.0, 100.0, 98.0392156862745, 0.0, 95.08196721311475]
[0, 0, 0, 0, 0, 0, 0, 139, 67, 153, 0, 61]
[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 33.095238095238095, 15.95238095238095, 36.42857142857142, 0.0, 14.523809523809526]
* Acc@1 98.571 Acc@5 100.000 loss 0.365""",
    ),
    "CIFAR-10": Log(
        classes=10, image_size=224, wrong5=2, loss=0.107, mmacs=(2273, 79.7),
        leave={7: (1944, 1944), 8: (3580, 3570), 9: (3178, 3161), 11: (1298, 1170)},
        lines="""\
[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 100.0, 99.72067039106145, 99.46507237256135, 0.0, 90.13867488443759]
[0, 0, 0, 0, 0, 0, 0, 1944, 3580, 3178, 0, 1298]
[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 19.439999999999998, 35.8, 31.78, 0.0, 12.98]
* Acc@1 98.450 Acc@5 99.980 loss 0.107""",
    ),
}  # fmt: skip

SWEPT = {
    0.5: Log(
        classes=45, image_size=256, mmacs=(2046, 54.9),
        leave={2: (540, 537), 3: (101, 100), 4: (779, 776), 5: (1968, 1944), 6: (848, 822),
               7: (1427, 1371), 8: (637, 472)},
        lines="""\
****************0.5****************
Exiting Layer0:[0.0/0]
Exiting Layer1:[0.0/0]
Exiting Layer2:[8.571428298950195/99.44444274902344]
Exiting Layer3:[1.6031745672225952/99.00990295410156]
Exiting Layer4:[12.365078926086426/99.6148910522461]
Exiting Layer5:[31.238094329833984/98.78048706054688]
Exiting Layer6:[13.460317611694336/96.9339599609375]
Exiting Layer7:[22.650793075561523/96.07568359375]
Exiting Layer8:[10.11111068725586/74.09732818603516]
Exiting Layer9:[0.0/0]
Exiting Layer10:[0.0/0]
Exiting Layer11:[0.0/0]
acc_val=95.58730158730158,""",
    ),
    0.8: Log(
        classes=21, image_size=256, mmacs=(2912, 78.2),
        leave={7: (140, 140), 8: (67, 67), 9: (154, 151), 10: (55, 46), 11: (4, 4)},
        lines="""\
420
408
****************0.8****************
Exiting Layer0:[0.0/0]
Exiting Layer1:[0.0/0]
Exiting Layer2:[0.0/0]
Exiting Layer3:[0.0/0]
Exiting Layer4:[0.0/0]
Exiting Layer5:[0.0/0]
Exiting Layer6:[0.0/0]
Exiting Layer7:[33.33333206176758/100.0]
Exiting Layer8:[15.952381134033203/100.0]
Exiting Layer9:[36.66666793823242/98.05194854736328]
Exiting Layer10:[13.095237731933594/83.63636016845703]
Exiting Layer11:[0.9523809552192688/100.0]
acc_val=97.14285714285714,""",
    ),
    0.75: Log(
        classes=10, image_size=224, mmacs=(2056, 72.1),
        leave={5: (1800, 1792), 6: (444, 439), 7: (1598, 1594), 8: (3120, 3087), 9: (2347, 2302),
               10: (691, 583)},
        lines="""\
****************0.75****************
Exiting Layer0:[0.0/0]
Exiting Layer1:[0.0/0]
Exiting Layer2:[0.0/0]
Exiting Layer3:[0.0/0]
Exiting Layer4:[0.0/0]
Exiting Layer5:[18.0/99.55555725097656]
Exiting Layer6:[4.440000057220459/98.87387084960938]
Exiting Layer7:[15.979999542236328/99.74968719482422]
Exiting Layer8:[31.200000762939453/98.94230651855469]
Exiting Layer9:[23.469999313354492/98.08265686035156]
Exiting Layer10:[6.909999847412109/84.37047576904297]
Exiting Layer11:[0.0/0]
acc_val=97.97,""",
    ),
}  # fmt: skip


def table_of_log(log: Log) -> ReplayTable:
    """GFNet-XS with heads and gates behind all blocks, and outcomes with the counts of the log."""
    leaves = np.repeat(list(log.leave), [count for count, _ in log.leave.values()])
    right = np.concatenate([np.arange(count) < good for count, good in log.leave.values()])
    missed5 = np.flatnonzero(~right)[: log.wrong5]
    scores = (np.arange(11) == leaves[:, None]).astype(np.float32)
    with torch.device("meta"):
        model = GFNetDynn(
            exits=range(11),
            num_classes=log.classes,
            image_size=log.image_size,
            **GFNET_VARIANTS["gfnet_12_384"],
        )
    logits = logits_with(log, right, missed5)
    shape = (3, log.image_size, log.image_size)
    return ReplayTable(
        logits=np.repeat(logits[:, None], 12, axis=1),
        scores=scores,
        labels=np.zeros(len(leaves), dtype=np.int64),
        positions=tuple(range(11)),
        depth=12,
        macs=np.array(macs_per_exit(model, shape)),
        check_macs=np.array(exit_check_macs(model, shape)),
        source=SOURCE,
    )


def logits_with(log: Log, right: np.ndarray, missed5: np.ndarray) -> np.ndarray:
    """Logits of class 0, the label everywhere, whose mean cross entropy is that of the log."""
    kind = np.where(right, 0, 1)
    kind[missed5] = 2

    def kinds(size: float) -> np.ndarray:
        made = np.zeros((3, log.classes))
        made[0, 0] = size  # right
        made[1:, :2] = size / 2, size  # second
        made[2, 0] = -1.0  # behind all others
        return made

    def loss(size: float) -> float:
        made = kinds(size)
        losses = np.log(np.exp(made).sum(axis=1)) - made[:, 0]
        return float(losses[kind].mean())

    low, high = 1.0, 6.5  # the loss falls in between
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) > log.loss else (low, middle)
    return kinds(low).astype(np.float32)[kind]


@pytest.mark.parametrize("log", DEPLOYED.values(), ids=DEPLOYED)
def test_a_deployment_to_the_last_digit(log):
    report = evaluate_at(table_of_log(log), 0.8, positions=list(log.leave)[:-1])
    lines = deployment_block(report).splitlines()
    assert lines[:2] == ["threshold=0.8", "EXIT CORRECT RATE:"]
    assert "\n".join(lines[2:6]) == log.lines
    assert [len(ast.literal_eval(line)) for line in lines[2:5]] == [12] * 3


@pytest.mark.parametrize("threshold", SWEPT)
def test_a_sweep_to_the_last_digit(threshold):
    log = SWEPT[threshold]
    report = evaluate_at(table_of_log(log), threshold)
    text = sweep_block(report)
    assert log.lines in text
    cost = report.expected_macs / 1e9
    assert text.splitlines()[-3:] == [
        f"acc_val={report.acc1},total_GMACs={cost}G",
        f"****************{threshold}****************",
        f"threshold:{threshold}-->expected_acc:{report.acc1}<=>expected_GMACs{cost}G",
    ]


@pytest.mark.parametrize("log", DEPLOYED.values(), ids=DEPLOYED)
def test_true_multiply_adds_of_a_deployment(log):
    report = evaluate_at(table_of_log(log), 0.8, positions=list(log.leave)[:-1])
    assert (round(report.expected_macs / 1e6), round(100 * report.macs_share, 1)) == log.mmacs


@pytest.mark.parametrize("threshold", SWEPT)
def test_true_multiply_adds_of_a_sweep(threshold):
    """Within what the heads and gates on the way add, which the figures of the log leave out."""
    report = evaluate_at(table_of_log(SWEPT[threshold]), threshold)
    mmacs, share = SWEPT[threshold].mmacs
    assert report.expected_macs / 1e6 == pytest.approx(mmacs, abs=1)
    assert 100 * report.macs_share == pytest.approx(share, abs=0.1)


def test_thresholds_of_their_own_are_all_told():
    log = DEPLOYED["UC Merced"]
    report = evaluate_at(table_of_log(log), [0.8, 0.7, 0.8], positions=[7, 8, 9])
    assert deployment_block(report).startswith("threshold=0.8, 0.7, 0.8\n")
