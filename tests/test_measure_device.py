"""A bundle measured on its device: what the door tells, and what the planner reads of it."""

import json

import numpy as np
import pytest

from compress import measure_device as door
from compress.export.probe import with_probe
from compress.measure.prediction import predict
from compress.runtime.device_measure import measure_device
from compress.runtime.device_profile import read_device_profile
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.manifest import write_manifest
from compress.runtime.power.sampling import PowerSource
from tests.export.triton_bundles import images_with, write_bundle

GATES = [(0.9, 0), (0.1, 0.9), (0.1, 0.1), (0.8, 0)]  # exits 0, 1, the final head, 0


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "tiny.bundle"
    manifest = write_bundle(folder)
    write_manifest(with_probe(images_with(GATES), manifest, folder), folder)
    return folder


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", images_with(GATES))
    return tmp_path / "images.npy"


def run(capsys, *arguments):
    code = door.main([*map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_latency_and_exit_rates_are_told_as_in_the_logs(bundle, images, capsys):
    code, out, err = run(capsys, bundle, images, "--seconds", 0.1, "--power", "none")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[1:4] == [
        "Exiting column.0:[50.00]",
        "Exiting column.1:[25.00]",
        "Exiting final head:[25.00]",
    ]
    assert lines[4].startswith("Avg Forward Time per Image: ")
    assert lines[-1] == "energy consumption: not measured (it was not asked for)"


def test_the_profile_is_one_that_the_planner_reads(bundle, images, tmp_path, capsys):
    output = tmp_path / "here.json"
    arguments = (bundle, images, "--seconds", 0.1, "--power", "none", "-o", output)
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    profile, told = read_device_profile(output), json.loads(out)
    assert list(profile.segments_ms) == told["profile"]["segments_ms"]
    assert len(profile.segments_ms) == 3
    assert min(profile.segments_ms) > 0
    first = predict(profile, [1, 0, 0]).forward_ms
    assert first == pytest.approx(profile.segments_ms[0])
    assert run(capsys, *arguments)[0] == 3  # the profile is there
    assert run(capsys, *arguments, "--force")[0] == 0


def test_without_images_the_probe_is_measured(bundle, capsys):
    code, out, _ = run(capsys, bundle, "--seconds", 0.05, "--power", "none", "--json")
    assert code == 0
    assert json.loads(out)["exit_rates"] == [0.5, 0.25, 0.25]


class Sensor(PowerSource):
    """8 W idle and 13.2 W under load, as in the worked example of the logs."""

    name, rails, total_of = "sensor", ("IN", "GPU"), ("IN",)

    def record(self, phase, rate_hz):
        self.milliwatts = {"idle": 8000.0, "active": 13200.0}[phase]
        return super().record(phase, rate_hz)

    def read(self):
        return {"IN": self.milliwatts, "GPU": 1.0}


def test_energy_of_an_image_is_net_power_times_latency(bundle):
    with Dispatcher(bundle) as dispatcher:
        found = measure_device(
            dispatcher, list(images_with(GATES)), device="a board", seconds=0.2, source=Sensor()
        )
    assert found.energy_mj == pytest.approx(5.2 * found.latency_ms["mean"], rel=1e-6)
    assert found.profile.net_power_w == pytest.approx(5.2)
    assert f"energy consumption: {found.energy_mj:.2f}mJ\n" in found.to_text()
    assert json.loads(json.dumps(found.to_dict()))["reading"]["idle_power_w"] == pytest.approx(8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "0"], "--seconds is 0; expected more than 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--threads", "0"], "--threads is 0"),
        (["nowhere.png"], "does not exist"),
    ],
)
def test_wrong_input_is_one_sentence(bundle, capsys, arguments, words):
    code, _, err = run(capsys, bundle, *arguments)
    assert code == 3
    assert words in err
    assert "Traceback" not in err
