"""Power sensors as the kernels of several machines show them, as files in a folder."""

from pathlib import Path


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def ina3221(root: Path, address: str, number: int, channels: dict[int, tuple]) -> None:
    """A chip as JetPack 5 and 6 show it, with the sum of shunt voltages as channel 7."""
    chip = f"sys/bus/i2c/devices/{address}"
    write(root, {f"{chip}/name": "ina3221"})
    folder = f"{chip}/hwmon/hwmon{number}"
    write(root, {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 99999})
    write(root, {f"{folder}/curr7_input": 99999, f"{folder}/name": "ina3221"})
    for channel, (label, millivolts, milliamperes) in channels.items():
        write(
            root,
            {
                f"{folder}/in{channel}_label": label,
                f"{folder}/in{channel}_input": millivolts,
                f"{folder}/curr{channel}_input": milliamperes,
                f"{folder}/in{channel}_enable": 1,
                f"{folder}/in{channel + 3}_input": 12,  # the shunt voltage, without a label
            },
        )


def orin_nano(root: Path) -> None:
    ina3221(
        root,
        "1-0040",
        1,
        {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("VDD_SOC", 5000, 300)},
    )


def agx_orin(root: Path) -> None:
    rails = {
        1: ("VDD_GPU_SOC", 20000, 200),
        2: ("VDD_CPU_CV", 20000, 50),
        3: ("VIN_SYS_5V0", 4968, 500),
    }
    ina3221(root, "1-0040", 3, rails)
    ina3221(
        root, "1-0041", 4, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 4968, 100), 3: ("NC", 0, 0)}
    )


def agx_thor(root: Path, *, power: bool = True, label: str | None = None) -> None:
    """A module with three rails on a carrier whose input an INA238 measures."""
    rails = {
        1: ("VDD_GPU", 20000, 200),
        2: ("VDD_CPU_SOC_MSS", 20000, 300),
        3: ("VIN_SYS_5V0", 5000, 900),
    }
    ina3221(root, "2-0040", 3, rails)
    chip = "sys/bus/i2c/devices/2-0044"
    folder = f"{chip}/hwmon/hwmon4"
    files = {"name": "ina238", "in0_input": 3, "in1_input": 20000, "curr1_input": 1205}
    write(root, {f"{chip}/name": "ina238", **{f"{folder}/{k}": v for k, v in files.items()}})
    if power:
        write(root, {f"{folder}/power1_input": 24_108_000})
    if label:
        write(root, {f"{folder}/label": label})


def xavier_nx_jetpack_4(root: Path, *, with_power: bool = True) -> None:
    folder = "sys/bus/i2c/devices/7-0040/iio:device0"
    write(root, {"sys/bus/i2c/devices/7-0040/name": "ina3221x"})
    rails = [("VDD_IN", 5000, 900), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 180)]
    for channel, (label, millivolts, milliamperes) in enumerate(rails):
        write(
            root,
            {
                f"{folder}/rail_name_{channel}": label,
                f"{folder}/in_voltage{channel}_input": millivolts,
                f"{folder}/in_current{channel}_input": milliamperes,
            },
        )
        if with_power:
            milliwatts = millivolts * milliamperes // 1000
            write(root, {f"{folder}/in_power{channel}_input": milliwatts})


def rapl_tree(root: Path, domains: dict[str, tuple[str, int]], *, largest: int = 262143) -> None:
    for folder, (name, microjoules) in domains.items():
        base = f"sys/class/powercap/{folder}"
        write(root, {f"{base}/name": name, f"{base}/energy_uj": microjoules})
        write(root, {f"{base}/max_energy_range_uj": largest})
