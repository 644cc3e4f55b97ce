"""Power sensors in fake trees: which rails there are, and which of them make up the total."""

import ctypes
import json
from pathlib import Path

import pytest

from compress.errors import ToolchainError
from compress.runtime.power import rapl
from compress.runtime.power.jetson import find_jetson, total_rails
from compress.runtime.power.nvml import find_nvml
from compress.runtime.power.rapl import find_rapl
from compress.runtime.power.sources import find_source, find_sources
from compress.runtime.power.state import board_name, power_state
from tests.runtime.power_trees import (
    agx_orin,
    agx_thor,
    ina3221,
    orin_nano,
    rapl_tree,
    write,
    xavier_nx_jetpack_4,
)

# Jetson


def test_the_total_of_an_orin_nano_is_its_input_rail(tmp_path):
    orin_nano(tmp_path)
    source = find_jetson(tmp_path)
    assert source.rails == ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    assert source.total_of == ("VDD_IN",)
    assert source.read() == {"VDD_IN": 6000.0, "VDD_CPU_GPU_CV": 2000.0, "VDD_SOC": 1500.0}


def test_the_total_of_an_agx_orin_is_its_two_inputs_and_counts_memory_once(tmp_path):
    agx_orin(tmp_path)
    source = find_jetson(tmp_path)
    assert source.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    assert source.total_of == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    values = source.read()
    assert values["VDDQ_VDD2_1V8AO"] == pytest.approx(496.8)
    assert sum(values[rail] for rail in source.total_of) == pytest.approx(4000 + 1000 + 2484)


@pytest.mark.parametrize(("power", "expected"), [(True, 24_108), (False, 24_100)])
def test_the_total_of_an_agx_thor_is_the_input_of_its_board(tmp_path, power, expected):
    agx_thor(tmp_path, power=power)
    source = find_jetson(tmp_path)
    assert source.rails == ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN")
    assert source.total_of == ("VIN",)
    assert source.read()["VIN"] == pytest.approx(expected)  # mW


def test_an_ina238_has_the_name_of_the_device_tree(tmp_path):
    agx_thor(tmp_path, label="VDD_IN")
    assert find_jetson(tmp_path).total_of == ("VDD_IN",)


@pytest.mark.parametrize("with_power", [True, False])
def test_the_rails_of_jetpack_4(tmp_path, with_power):
    xavier_nx_jetpack_4(tmp_path, with_power=with_power)
    source = find_jetson(tmp_path)
    assert source.total_of == ("VDD_IN",)
    assert source.read() == {"VDD_IN": 4500.0, "VDD_CPU_GPU_CV": 1000.0, "VDD_SOC": 900.0}


def test_xavier_nx_under_jetpack_5(tmp_path):
    rails = {1: ("VDD_IN", 5000, 900), 2: ("VDD_CPU_GPU_CV", 5000, 200), 3: ("VDD_SOC", 5000, 180)}
    ina3221(tmp_path, "7-0040", 5, rails)
    assert find_jetson(tmp_path).read()["VDD_IN"] == 4500.0


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        pytest.param(
            ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
            ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
            id="AGX Xavier",
        ),
        pytest.param(("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"), ("POM_5V_IN",), id="Nano"),
        pytest.param(("VDDQ_VDD2_1V8AO",), ("VDDQ_VDD2_1V8AO",), id="nothing that holds it"),
    ],
)
def test_total_rails(rails, total):
    assert total_rails(rails) == total


def test_a_channel_that_is_off_is_no_rail(tmp_path):
    orin_nano(tmp_path)
    write(tmp_path, {"sys/bus/i2c/devices/1-0040/hwmon/hwmon1/in3_enable": 0})
    assert find_jetson(tmp_path).rails == ("VDD_IN", "VDD_CPU_GPU_CV")


def test_a_rail_that_cannot_be_read_is_told_and_not_left_out(tmp_path):
    agx_orin(tmp_path)
    write(tmp_path, {"sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr3_input": "garbage"})
    with pytest.raises(ToolchainError, match=r"VIN_SYS_5V0.* reading them failed"):
        find_jetson(tmp_path)


def test_one_name_for_two_rails_is_refused(tmp_path):
    orin_nano(tmp_path)
    ina3221(tmp_path, "1-0041", 2, {1: ("VDD_IN", 5000, 100)})
    with pytest.raises(ToolchainError, match="two power rails are named VDD_IN"):
        find_jetson(tmp_path)


def test_other_chips_are_no_power_monitors(tmp_path):
    write(tmp_path, {"sys/bus/i2c/devices/1-0040/name": "eeprom"})
    assert find_jetson(tmp_path) is None


# RAPL


def test_packages_are_added_and_nothing_that_lies_inside_or_around_them(tmp_path):
    rapl_tree(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", 1000),
            "intel-rapl:0:0": ("core", 1000),
            "intel-rapl:1": ("package-1", 5000),
            "intel-rapl:2": ("psys", 9000),
            "intel-rapl-mmio:0": ("package-0", 1000),
        },
    )
    source = find_rapl(tmp_path)
    assert source.kind == "energy"
    assert source.total_of == source.rails == ("package-0", "package-1")
    write(tmp_path, {"sys/class/powercap/intel-rapl:1/energy_uj": 12000})
    assert source.read() == {"package-0": 0.0, "package-1": 7.0}


def test_a_counter_that_starts_again_goes_on(tmp_path):
    rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 262000)})
    source = find_rapl(tmp_path)
    seen = []
    for value in (262100, 57, 1057, 57):  # it starts again twice
        write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": value})
        seen.append(source.read()["package-0"])
    assert seen == pytest.approx([0.1, 0.2, 1.2, 262.343])


def test_a_closed_counter_says_that_it_is_closed(tmp_path, monkeypatch):
    rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 1)})

    def closed(folder: Path, name: str) -> int:
        raise PermissionError(13, "Permission denied", str(folder / name))

    monkeypatch.setattr(rapl, "_counter", closed)
    with pytest.raises(ToolchainError, match=r"package-0.*needs more rights.*energy_uj"):
        find_rapl(tmp_path)
    problems = find_sources(tmp_path).problems
    assert "needs more rights" in problems["rapl"]
    assert "no INA3221" in problems["jetson"]


def test_a_counter_that_is_no_number_is_told(tmp_path):
    rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/max_energy_range_uj": "many"})
    with pytest.raises(ToolchainError, match="reading them failed"):
        find_rapl(tmp_path)


# NVML


class FakeNvml:
    """NVIDIA's library with one card."""

    def __init__(self, *, energy: int = 0, power: int = 0, cards: int = 1, starts: int = 0) -> None:
        self.codes = {"energy": energy, "power": power}
        self.cards, self.starts = cards, starts
        self.energy_mj, self.power_mw = 1_000_000, 250_000

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVIDIA's names
        return self.starts

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:  # noqa: N802
        return 0 if index.value < self.cards else 6

    def nvmlDeviceGetName(self, handle, text, size) -> int:  # noqa: N802
        text.value = b"NVIDIA Test"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, out) -> int:  # noqa: N802
        ctypes.cast(out, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.energy_mj
        return self.codes["energy"]

    def nvmlDeviceGetPowerUsage(self, handle, out) -> int:  # noqa: N802
        ctypes.cast(out, ctypes.POINTER(ctypes.c_uint))[0] = self.power_mw
        return self.codes["power"]


def test_the_counter_of_a_graphics_card():
    source = find_nvml(library=FakeNvml())
    assert (source.kind, source.rails) == ("energy", ("GPU 0 (NVIDIA Test)",))
    assert source.read() == {"GPU 0 (NVIDIA Test)": 1_000_000.0}


def test_an_older_graphics_card_gives_its_power():
    source = find_nvml(library=FakeNvml(energy=3))
    assert source.kind == "power"
    assert source.read() == {"GPU 0 (NVIDIA Test)": 250_000.0}


def test_a_driver_without_a_sensor_is_told_and_one_without_a_card_is_none():
    with pytest.raises(ToolchainError, match="it is not supported"):
        find_nvml(library=FakeNvml(energy=3, power=3))
    assert find_nvml(library=FakeNvml(cards=0)) is None
    assert find_nvml(library=FakeNvml(starts=9)) is None


def test_a_failing_driver_is_a_failed_reading():
    library = FakeNvml()
    source = find_nvml(library=library)
    library.codes["energy"] = 999
    with pytest.raises(OSError, match="999"):
        source.read()


# Which sensor


def test_no_sensor_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(ToolchainError) as caught:
        find_source(root=tmp_path)
    for part in ("cannot be measured", "INA3221", "powercap", "NVIDIA"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sensor_that_sees_the_work_comes_first(tmp_path):
    rapl_tree(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    card = FakeNvml()
    assert find_source(root=tmp_path, nvml=card).name == "rapl"
    assert find_source(root=tmp_path, nvml=card, device="cuda").name == "nvml"
    assert find_source("rapl", root=tmp_path, nvml=card, device="cuda").name == "rapl"
    orin_nano(tmp_path)
    assert find_source(root=tmp_path, nvml=card, device="cuda").name == "jetson-ina3221"
    with pytest.raises(ToolchainError, match="tpu is no kind"):
        find_source("tpu", root=tmp_path)


# Power mode and clocks


def test_power_mode_and_clocks_of_a_jetson(tmp_path):
    cpu, gpu = "sys/devices/system/cpu/cpufreq/policy0", "sys/class/devfreq/17000000.ga10b"
    write(
        tmp_path,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin\0",
            "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_30W >\n",
            f"{cpu}/scaling_governor": "schedutil",
            f"{cpu}/scaling_cur_freq": 729600,
            f"{cpu}/scaling_max_freq": 2201600,
            f"{gpu}/cur_freq": 306000000,
            f"{gpu}/governor": "nvhost_podgov",
            "sys/class/devfreq/13e10000.host1x/cur_freq": 1,
        },
    )
    state = power_state(tmp_path)
    assert state["board"] == board_name(tmp_path) == "NVIDIA Jetson AGX Orin"
    assert state["power_mode"] == "MODE_30W"
    assert state["cpu"]["policy0"]["now_mhz"] == pytest.approx(729.6)
    assert state["cpu"]["policy0"]["min_mhz"] is None
    assert [*state["gpu"]] == ["17000000.ga10b"]
    assert state["gpu"]["17000000.ga10b"]["now_mhz"] == 306.0
    json.dumps(state, allow_nan=False)


def test_nvpmodel_itself_is_asked_first(tmp_path):
    write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0002"})
    asked = []

    def command(arguments):
        asked.append(arguments)
        return "NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W\n2\n"

    assert power_state(tmp_path, command)["power_mode"] == "MODE_15W"
    assert asked == [["nvpmodel", "-q"]]
    assert power_state(tmp_path, lambda arguments: None)["power_mode"] == "mode 2"


def test_a_machine_that_tells_nothing(tmp_path):
    assert power_state(tmp_path) == {}
