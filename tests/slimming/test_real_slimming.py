"""The benchmark on real networks in its short form, on a part of the real images."""

import tarfile

import pytest

from tools.benchmarks import cifar10_resnet
from tools.benchmarks.cifar10_resnet import FILES, SHARED, Plan, measure, shortened, table

TAKEN = {"train": 120, "test": 30}  # of every class


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(SHARED / "cifar10_jpeg.tar.xz") as archive:
        for member in archive:
            parts = member.name.split("/")  # cifar10/train/<class>/0000.jpg
            if len(parts) == 4 and int(parts[3].partition(".")[0]) < TAKEN[parts[1]]:
                archive.extract(member, folder, filter="data")
    return folder / "cifar10"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} with real networks is absent")
def test_the_repair_saves_a_real_network_and_a_killed_run_goes_on(images, tmp_path, monkeypatch):
    plan = shortened(
        Plan(checkpoints=(SHARED / FILES[0],), data=images, folder=tmp_path, ratios=(0.4,))
    )
    measured = measure(plan)
    whole, slim = measured["rows"]
    share = 100 / whole["images"]
    assert whole["correct"] * share > 75
    assert slim["macs"] < whole["macs"]
    tried = {name: correct * share for name, correct in slim["tried"].items()}
    assert tried["plain"] < tried["fold"] < 45
    assert tried["repair"] > tried["fold"] + 20
    assert slim["made_by"] == "repair"
    assert len(table(measured).splitlines()) == 4

    def again(*_):
        raise AssertionError("it was measured before")

    for name in ("_slim", "correct", "_latency"):
        monkeypatch.setattr(cifar10_resnet, name, again)
    assert measure(plan) == measured
