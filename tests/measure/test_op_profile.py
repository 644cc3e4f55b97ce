"""The per-operation profile: hits by counting, lines that add up, the columns of the logs."""

import copy
import time

import pytest
import torch
from torch import nn

from compress.errors import UserInputError
from compress.measure import op_profile
from compress.measure.op_profile import (
    Operation,
    OpProfile,
    device_profile_of,
    profile_operations,
)
from compress.measure.op_ranges import PREFIX, Ranges
from compress.measure.prediction import predict
from compress.measure.segment_times import segment_profile_of
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from tests.exit_networks import RESNET_EXITS, residual

SMALL = {"width": 16, "depth": 4, "image_size": 32, "patch_size": 8, "num_classes": 5}
LINES = [
    "patch embedding", "position", "blocks", "norm and pool", "head", "gate", "decision and loop",
    "final head",
]  # fmt: skip


@pytest.fixture
def dynn() -> GFNetDynn:
    """Exits behind blocks 0 and 2; the gates let an image go or not by its brightness alone."""
    torch.manual_seed(0)
    return GFNetDynn(exits=[0, 2], **SMALL).eval()


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, 32, 32, generator=generator) for _ in range(count)]


def hits(profile: OpProfile) -> dict[str, int]:
    return {operation.name: operation.hits for operation in profile.operations}


def test_hits_follow_from_where_the_images_leave(dynn):
    sample = images(12)
    bars = [torch.sigmoid(dynn.forward_all(x)[1]) for x in sample]
    threshold = torch.cat(bars).median().item()  # some leave, some do not
    expected = [dynn.forward_early(x, threshold)[1] for x in sample]
    profile = profile_operations(dynn, sample, thresholds=threshold)
    leaving = tuple(expected.count(k) for k in range(3))
    assert len(set(expected)) > 1
    assert profile.leaving == leaving
    assert profile.positions == (0, 2, 3)
    checks = leaving[0] + 2 * (leaving[1] + leaving[2])
    assert hits(profile) == {
        "patch embedding": 12,
        "position": 12,
        "blocks": leaving[0] + 3 * leaving[1] + 4 * leaving[2],
        "norm and pool": checks + leaving[2],
        "head": checks,
        "gate": checks,
        "decision and loop": checks,
        "final head": leaving[2],
    }


def test_lines_add_up_and_their_shares_to_one(dynn):
    profile = profile_operations(dynn, images(4), thresholds=1.0)
    assert [operation.name for operation in profile.operations] == LINES
    assert all(operation.total_ms > 0 for operation in profile.operations)
    assert sum(map(profile.share, profile.operations)) == pytest.approx(1)
    assert profile.forward_ms == pytest.approx(profile.total_ms / 4)
    value = profile.to_dict()
    assert value["operations"][2]["per_hit_ms"] == profile.operations[2].total_ms / 16
    assert value["leaving"] == [0, 0, 4]


def test_more_images_than_the_profiler_takes_at_a_time(dynn, monkeypatch):
    monkeypatch.setattr(op_profile, "CHUNK", 3)
    profile = profile_operations(dynn, iter(images(8)), thresholds=0.0)
    assert profile.images == 8
    assert hits(profile)["blocks"] == 8
    assert hits(profile)["final head"] == 0


class Slow(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return self.inner(x)


class SlowConv(nn.Conv2d):
    @classmethod
    def like(cls, layer: nn.Conv2d) -> "SlowConv":
        return cls(layer.in_channels, layer.out_channels, 3, layer.stride, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("part", "line"),
    [("gates.1", "gate"), ("patch_embed", "patch embedding"), ("blocks.2", "blocks"),
     ("intermediate_heads.0", "head"), ("head", "final head")],
)  # fmt: skip
def test_a_slow_operation_shows_in_its_own_line_and_in_no_other(dynn, part, line):
    parent, _, child = part.rpartition(".")
    setattr(dynn.get_submodule(parent), child, Slow(dynn.get_submodule(part)))
    profile = profile_operations(dynn, images(3), thresholds=1.0, warmup=1)
    slowest = max(profile.operations, key=lambda operation: operation.total_ms)
    assert slowest.name == line
    assert slowest.total_ms >= 300


@pytest.mark.parametrize("head", ["linear", "conv:8"])
def test_a_network_with_exits_behind_modules_is_broken_down_by_its_layers(head):
    model = residual(head, size=32)
    sample = images(10)
    scores = torch.cat([torch.sigmoid(model.forward_all(x)[1]) for x in sample])
    bars = scores.median(dim=0).values.tolist()
    taken = [model.forward_early(x, bars)[1] for x in sample]
    leaving = tuple(taken.count(k) for k in range(4))
    assert sum(count > 0 for count in leaving) > 1
    profile = profile_operations(model, sample, thresholds=bars)
    assert (profile.leaving, profile.positions) == (leaving, (*RESNET_EXITS, "final head"))
    found = hits(profile)
    assert found["conv1 (Conv2d)"] == 10
    assert found["layer1.1.conv1 (Conv2d)"] == 10  # before the first exit
    assert found["layer2.0.conv1 (Conv2d)"] == 10 - leaving[0]
    assert found["layer2.1.conv1 (Conv2d)"] == 10 - leaving[0] - leaving[1]
    assert found["fc (Linear)"] == leaving[3]
    assert (
        found["head"]
        == found["gate"]
        == sum(count * min(k + 1, 3) for k, count in enumerate(leaving))
    )
    assert found["decisions and the rest"] == 10
    assert sum(map(profile.share, profile.operations)) == pytest.approx(1)
    with pytest.raises(UserInputError, match="is by its layers"):
        device_profile_of(profile, name="n", device="d")


@pytest.mark.parametrize(
    ("part", "line"),
    [("gates.1", "gate"), ("heads.0.classifier.0", "head"),
     ("backbone.layer1.0.conv1", "layer1.0.conv1 (SlowConv)")],
)  # fmt: skip
def test_a_slow_layer_of_any_network_shows_in_its_own_line(part, line):
    model = residual(size=32)
    parent, _, child = part.rpartition(".")
    layer = model.get_submodule(part)
    slow = SlowConv.like(layer) if isinstance(layer, nn.Conv2d) else Slow(layer)
    setattr(model.get_submodule(parent), child, slow)
    profile = profile_operations(model, images(3), thresholds=1.0, warmup=1)
    slowest = max(profile.operations, key=lambda operation: operation.total_ms)
    assert slowest.name == line
    assert slowest.total_ms >= 300


def test_segments_are_timed_apart_from_their_checks():
    model = residual(size=32)
    model.heads[1] = Slow(model.heads[1])  # 100 ms of the second check
    model.backbone.layer2[1].conv1 = Slow(model.backbone.layer2[1].conv1)  # of the third segment
    profile = segment_profile_of(model, images(2), name="here", device="d", net_power_w=3.0)
    assert profile.exits == RESNET_EXITS
    assert len(profile.segments_ms) == 4
    assert min(*profile.segments_ms, *profile.checks_ms) > 0
    bodies = [
        whole - check
        for whole, check in zip(profile.segments_ms, [*profile.checks_ms, 0], strict=True)
    ]
    slow = [ms >= 100 for ms in profile.checks_ms], [ms >= 100 for ms in bodies]
    assert slow == ([False, True, False], [False, False, True, False])
    assert 100 <= profile.whole_ms < sum(profile.segments_ms) - 90  # without any check
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    told = predict(profile, [1, 1, 0, 2], positions=(*RESNET_EXITS, "final head"))
    reached = (1.0, 0.75, 0.5, 0.5)
    assert told.forward_ms == pytest.approx(
        sum(share * ms for share, ms in zip(reached, profile.segments_ms, strict=True))
    )
    assert told.whole_ms == profile.whole_ms
    with pytest.raises(UserInputError, match="these stand behind a,b,c"):
        predict(profile, [1, 1, 0, 2], positions=("a", "b", "c", "final head"))
    with pytest.raises(UserInputError, match="given no image"):
        segment_profile_of(model, [], name="here", device="d")


def test_a_range_inside_one_of_the_same_name_is_not_opened():
    ranges = Ranges(torch.device("cpu"))
    inner = ranges.around("a", lambda: torch.ones(2))
    outer = ranges.around("a", lambda: inner() + inner())
    with torch.autograd.profiler.profile(use_kineto=False) as profiler:
        outer()
        inner()
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts[PREFIX + "a"] == 2


def test_the_network_is_left_as_it_was(dynn):
    dynn.train()
    dynn.blocks[0].eval()
    before = copy.deepcopy(dynn.state_dict())
    attributes = {name: set(vars(module)) for name, module in dynn.named_modules()}
    profile_operations(dynn, images(2), thresholds=0.5)
    assert (dynn.training, dynn.blocks[0].training) == (True, False)
    assert {name: set(vars(module)) for name, module in dynn.named_modules()} == attributes
    assert all(torch.equal(before[name], tensor) for name, tensor in dynn.state_dict().items())


@pytest.mark.parametrize("distilled", [False, True])
def test_a_network_without_exits(distilled):
    config = {**SMALL, "distilled": distilled}
    profile = profile_operations(GFNet(**config), images(3))
    assert hits(profile) == {
        "patch embedding": 3, "position": 3, "blocks": 12, "norm and pool": 3, "final head": 3,
        "the rest": 3,
    }  # fmt: skip
    assert profile.leaving is None
    assert profile.positions is None


@pytest.mark.parametrize("exit_dist_heads", [False, True])
def test_pooling_inside_pooling_counts_once(exit_dist_heads):
    config = {**SMALL, "distilled": True, "exit_dist_heads": exit_dist_heads}
    profile = profile_operations(GFNetDynn(exits=[1], **config), images(2), thresholds=1.0)
    assert hits(profile)["norm and pool"] == 4
    assert hits(profile)["head"] == 2


def test_any_other_network_is_broken_down_by_its_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    profile = profile_operations(model, images(3))
    assert hits(profile) == {
        "0 (Conv2d)": 3, "1 (ReLU)": 3, "2 (Flatten)": 3, "3 (Linear)": 3, "the rest": 3
    }  # fmt: skip
    assert profile.network == "Sequential"


def test_a_profile_predicts_its_own_run(dynn):
    profile = profile_operations(dynn, images(6), thresholds=1.0)
    device = device_profile_of(profile, name="here", device="this machine", net_power_w=2.0)
    prediction = predict(device, profile.leaving, positions=profile.positions)
    assert prediction.forward_ms == pytest.approx(profile.forward_ms)
    assert prediction.net_energy_mj == pytest.approx(2 * profile.forward_ms)
    earlier = predict(device, [1, 0, 0], positions=profile.positions)
    assert earlier.forward_ms < prediction.forward_ms


def test_what_no_image_reached_predicts_nothing(dynn):
    profile = profile_operations(dynn, images(2), thresholds=0.0)
    with pytest.raises(UserInputError, match="no image reached final head"):
        device_profile_of(profile, name="here", device="this machine")
    whole = profile_operations(GFNet(**SMALL), images(1))
    with pytest.raises(UserInputError, match="no exits"):
        device_profile_of(whole, name="here", device="this machine")


@pytest.mark.parametrize(
    ("given", "thresholds", "message"),
    [
        ([], 0.5, "no image"),
        ([torch.zeros(2, 3, 32, 32)], 0.5, "one image"),
        ([torch.zeros(3, 32, 32)], 0.5, "one image"),
        (images(1), None, "has exits and the thresholds None"),
        (images(1), [0.5], "1 thresholds for 2 exits"),
        (images(1), 1.5, "threshold"),
    ],
)
def test_what_cannot_be_profiled(dynn, given, thresholds, message):
    with pytest.raises(UserInputError, match=message):
        profile_operations(dynn, given, thresholds=thresholds)


def test_thresholds_for_a_network_without_exits():
    with pytest.raises(UserInputError, match="has no exits"):
        profile_operations(GFNet(**SMALL), images(1), thresholds=0.5)


# Of the log: line number, hits, microseconds, then what its columns print.
LOG = """\
   532       840     608144.3    724.0      3.3          x = self.patch_embed(x)
   536      7954   15381674.7   1933.8     82.3              x = blk.forward(x)
   545      1830    1165160.4    636.7      6.2                  g = self.gates[blk_idx](…)
   552       122      47990.9    393.4      0.3          x = self.head(x)"""
LOG_TOTAL_MS = 18700.3


def test_columns_are_those_of_the_log():
    rows = [line.split()[:3] for line in LOG.splitlines()]
    operations = [
        Operation(name=number, hits=int(count), total_ms=float(spent) / 1000)
        for number, count, spent in rows
    ]
    rest = LOG_TOTAL_MS - sum(operation.total_ms for operation in operations)
    operations.append(Operation(name="others", hits=840, total_ms=rest))
    profile = OpProfile(
        network="gfnet_dynn_12_384", device="cuda:0", threads=6, images=840,
        operations=tuple(operations),
    )  # fmt: skip
    text = profile.to_text().splitlines()
    assert text[:3] == ["Timer unit: 1e-06 s", "", "Total time: 18.7003 s"]
    columns = len("   532       840     608144.3    724.0      3.3")
    printed = [line[:columns].split(maxsplit=1)[1] for line in LOG.splitlines()]
    assert [line.rpartition("  ")[0].strip() for line in text[7:11]] == printed
    assert text[5].split("  Operation")[0].split() == ["Hits", "Time", "Per", "Hit", "%", "Time"]
