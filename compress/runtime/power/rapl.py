"""The energy counters of Intel and AMD processors (RAPL), from /sys/class/powercap.

The packages add up to the processors. Cores and graphics lie inside a package; "psys" is the whole
platform and holds the packages: neither is added. Memory is a counter of its own on servers only,
and is left out, so that figures of all machines mean the same.

A counter starts again from 0 behind `max_energy_range_uj`, after some minutes under load. It has to
be read at least once in between.
"""

import re
from pathlib import Path
from typing import Dict, List, Optional

from compress.errors import ToolchainError
from compress.runtime.power.sampling import PowerSource

__all__ = ["RaplSource", "find_rapl"]


class RaplSource(PowerSource):
    """Counters of all packages, in millijoules since the source was made.

    Args:
        domains: for each package its folder.
    """

    name = "rapl"
    kind = "energy"

    def __init__(self, domains: Dict[str, Path]) -> None:
        self._domains = domains
        self._last = {name: _counter(folder, "energy_uj") for name, folder in domains.items()}
        self._range = {
            name: _counter(folder, "max_energy_range_uj") for name, folder in domains.items()
        }
        self._spent_uj = dict.fromkeys(domains, 0)
        self.rails = tuple(domains)
        self.total_of = self.rails

    def read(self) -> Dict[str, float]:
        """Return the energy of each package since the source was made, mJ."""
        now = {name: _counter(folder, "energy_uj") for name, folder in self._domains.items()}
        for name, value in now.items():
            step = value - self._last[name]
            self._spent_uj[name] += step if step >= 0 else step + self._range[name]
        self._last = now
        return {name: spent / 1000 for name, spent in self._spent_uj.items()}


def find_rapl(root: Path = Path("/")) -> Optional[RaplSource]:
    """Return the counters of this machine's processors, or None where there are none.

    Args:
        root: of the file system; a copied tree serves as well.

    Raises:
        ToolchainError: there are some, but they may not be read, or hold no number.
    """
    domains: Dict[str, Path] = {}
    for folder in _packages(Path(root) / "sys/class/powercap"):
        domains[(folder / "name").read_text().strip()] = folder
    if not domains:
        return None
    try:
        return RaplSource(domains)
    except PermissionError as err:
        raise ToolchainError(
            f"the processor has energy counters (RAPL: {', '.join(domains)}), but reading them "
            f"needs more rights: {err.filename or 'energy_uj'} is closed to this user; run as "
            "root, or have an administrator allow reading energy_uj"
        ) from err
    except (OSError, ValueError) as err:
        raise ToolchainError(
            f"the processor has energy counters (RAPL: {', '.join(domains)}), but reading them "
            f"failed ({err}); expected a whole number in energy_uj and max_energy_range_uj"
        ) from err


def _packages(powercap: Path) -> List[Path]:
    """Return the folders of packages. `intel-rapl-mmio` shows the same ones a second time."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        name = folder / "name"
        is_top = re.fullmatch(r"intel-rapl:\d+", folder.name)
        if is_top and name.is_file() and name.read_text().startswith("package"):
            found.append(folder)
    return found


def _counter(folder: Path, name: str) -> int:
    return int((folder / name).read_text())
