"""The power monitors of a Jetson, INA3221 and INA238, straight from the kernel's files.

JetPack 5 and newer: `hwmon` folders with `in{N}_label`, `in{N}_input` (mV) and `curr{N}_input`
(mA). JetPack 4: `iio:device` folders with `rail_name_{N}` and `in_power{N}_input` (mW).

What the total is depends on the board:

- `VDD_IN` (Xavier NX, Orin Nano, Orin NX, TX2) or `POM_5V_IN` (Nano) is the input of the module.
  The other rails lie behind it.
- AGX Orin has no such rail. Its module has two inputs: `VDD_GPU_SOC` and `VDD_CPU_CV` hang on the
  high-voltage one, `VIN_SYS_5V0` is the 5 V one. Their sum is the total. `VDDQ_VDD2_1V8AO`, the
  memory, is fed from the 5 V and so is part of `VIN_SYS_5V0`: added, it would count twice.
- AGX Thor's carrier has an INA238 at the input of the whole board, `VIN` to NVIDIA's tools. All
  else lies behind it, fan and disk too, whose power is idle power as a rule.
- AGX Xavier: all six rails, each with a resistor of its own at an input, add up.

An INA238 has one channel, with `power1_input` in µW and the name in `label` where the device tree
has one. Channels of an INA3221 labelled NC are not connected; `in7` is the sum of the shunt
voltages, no rail.
"""

import re
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Set, Tuple

from compress.errors import ToolchainError
from compress.runtime.power.sampling import PowerSource

__all__ = ["JetsonSource", "find_jetson", "total_rails"]

BOARD_INPUT = "VIN"  # an INA238 without a name of its own
INPUT_RAILS = (BOARD_INPUT, "VDD_IN", "POM_5V_IN")  # of a whole board, or module
BEHIND = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}  # a rail, and the rail that it is part of
SUM_OF_SHUNTS = 7
CHIPS = ("ina3221", "ina3221x", "ina238")

Reader = Callable[[], float]  # milliwatts


class JetsonSource(PowerSource):
    """The rails of a Jetson, in milliwatts.

    Args:
        readers: for each rail what reads it.
    """

    name = "jetson-ina3221"
    kind = "power"

    def __init__(self, readers: Dict[str, Reader]) -> None:
        self._readers = readers
        self.rails = tuple(readers)
        self.total_of = total_rails(self.rails)

    def read(self) -> Dict[str, float]:
        """Return the power of each rail, mW."""
        return {rail: reader() for rail, reader in self._readers.items()}


def total_rails(rails: Tuple[str, ...]) -> Tuple[str, ...]:
    """Return the rails whose sum is what the module takes; see the module.

    >>> total_rails(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"))
    ('VDD_GPU_SOC', 'VDD_CPU_CV', 'VIN_SYS_5V0')
    """
    for rail in INPUT_RAILS:
        if rail in rails:
            return (rail,)
    return tuple(rail for rail in rails if BEHIND.get(rail) not in rails)


def find_jetson(root: Path = Path("/")) -> Optional[JetsonSource]:
    """Return the power monitors of this Jetson, or None where there are none.

    Args:
        root: of the file system; a copied tree serves as well.

    Raises:
        ToolchainError: there are some, but a rail of them cannot be read.
    """
    readers: Dict[str, Reader] = {}
    for folder in _sensor_folders(Path(root)):
        found = _rails(folder)
        for rail, reader in found:
            if rail in readers:
                raise ToolchainError(
                    f"two power rails are named {rail}, the second in {folder}; expected every "
                    "rail once, so the total would not be right"
                )
            readers[rail] = reader
    if not readers:
        return None
    source = JetsonSource(readers)
    try:
        source.read()
    except (OSError, ValueError) as err:
        raise ToolchainError(
            f"power rails {', '.join(readers)} are there, but reading them failed ({err}); "
            "expected a number each, so check the permissions of the sensor"
        ) from err
    return source


def _sensor_folders(root: Path) -> Iterator[Path]:
    """Yield each folder with rails once, by chip address; links lead to the same one twice."""
    seen: Set[Path] = set()
    for chip in sorted((root / "sys/bus/i2c/devices").glob("*")):
        if _text(chip / "name") in CHIPS:
            for folder in sorted([*chip.glob("hwmon/hwmon*"), *chip.glob("iio:device*")]):
                if folder.resolve() not in seen:
                    seen.add(folder.resolve())
                    yield folder


def _rails(folder: Path) -> List[Tuple[str, Reader]]:
    if not folder.name.startswith("hwmon"):
        return _iio_rails(folder)
    return _board_rail(folder) if _text(folder / "name") == "ina238" else _hwmon_rails(folder)


def _board_rail(folder: Path) -> List[Tuple[str, Reader]]:
    """Return the one channel of an INA238; its bus voltage is in1."""
    label = _text(folder / "label") or BOARD_INPUT
    power = folder / "power1_input"
    if power.exists():
        return [(label, lambda: _number(power) / 1000)]  # µW
    voltage, current = folder / "in1_input", folder / "curr1_input"
    if voltage.exists() and current.exists():
        return [(label, _product_reader(voltage, current))]
    return []


def _hwmon_rails(folder: Path) -> List[Tuple[str, Reader]]:
    rails = []
    for channel, label in _labels(folder, r"in(\d+)_label"):
        voltage, current = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        is_off = _text(folder / f"in{channel}_enable") == "0"
        if channel != SUM_OF_SHUNTS and not is_off and voltage.exists() and current.exists():
            rails.append((label, _product_reader(voltage, current)))
    return rails


def _iio_rails(folder: Path) -> List[Tuple[str, Reader]]:
    rails = []
    for channel, label in _labels(folder, r"rail_name_(\d+)"):
        power = folder / f"in_power{channel}_input"
        voltage = folder / f"in_voltage{channel}_input"
        current = folder / f"in_current{channel}_input"
        if power.exists():
            rails.append((label, _reader(power)))
        elif voltage.exists() and current.exists():
            rails.append((label, _product_reader(voltage, current)))
    return rails


def _labels(folder: Path, pattern: str) -> List[Tuple[int, str]]:
    """Return the channels that are connected, and the name of each."""
    found = []
    for path in folder.iterdir():
        match = re.fullmatch(pattern, path.name)
        label = _text(path) if match else None
        if match and label and label.upper() != "NC":
            found.append((int(match.group(1)), label))
    return sorted(found)


def _reader(path: Path) -> Reader:
    return lambda: _number(path)


def _product_reader(voltage: Path, current: Path) -> Reader:
    return lambda: _number(voltage) * _number(current) / 1000  # mV * mA is µW


def _number(path: Path) -> float:
    return float(int(path.read_text()))


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
