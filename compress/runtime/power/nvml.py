"""The energy of an NVIDIA graphics card, through the driver's own library (NVML).

`nvmlDeviceGetTotalEnergyConsumption` counts millijoules since the driver was loaded (Volta and
newer). Where it is not supported, the power of the card is sampled instead. Neither holds what the
processor takes.

The library is called through ctypes: it comes with the driver, and no package is needed. A Jetson
has the library, but no sensor behind it.
"""

import ctypes
from typing import Any, Dict, Optional

from compress.errors import ToolchainError
from compress.runtime.power.sampling import PowerSource

__all__ = ["NvmlSource", "find_nvml"]

LIBRARIES = ("libnvidia-ml.so.1", "libnvidia-ml.so")
SUCCESS, NOT_SUPPORTED = 0, 3
NAME_BYTES = 96


class NvmlSource(PowerSource):
    """One card: its counter in millijoules, or its power in milliwatts.

    Args:
        library: NVML, initialised.
        handle: of the card.
        name: of the card.
        kind: "energy" or "power".
    """

    name = "nvml"

    def __init__(self, library: Any, handle: Any, name: str, kind: str) -> None:
        self._library = library
        self._handle = handle
        self.kind = kind
        self.rails = (name,)
        self.total_of = self.rails

    def read(self) -> Dict[str, float]:
        """Return the energy, mJ, or the power, mW, of the card."""
        code, value = _value(self._library, self._handle, self.kind)
        if code != SUCCESS:
            raise OSError(f"NVML answered with code {code}")
        return {self.rails[0]: float(value)}


def find_nvml(index: int = 0, library: Optional[Any] = None) -> Optional[NvmlSource]:
    """Return the sensor of a graphics card, or None where there is no card or no driver.

    Args:
        index: of the card, as the driver counts them.
        library: NVML or what stands for it; None looks for the driver's.

    Raises:
        ToolchainError: the driver is there, but does not tell energy or power.
    """
    library = library or _load()
    if library is None or library.nvmlInit_v2() != SUCCESS:
        return None
    handle = ctypes.c_void_p()
    code = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
    if code != SUCCESS:
        return None
    name = f"GPU {index} ({_name(library, handle)})"
    for kind in ("energy", "power"):
        code, _ = _value(library, handle, kind)
        if code == SUCCESS:
            return NvmlSource(library, handle, name, kind)
    reason = "it is not supported" if code == NOT_SUPPORTED else f"it answered with code {code}"
    raise ToolchainError(
        f"{name} has a driver, but asked for energy and power, {reason}; expected a card with a "
        "power sensor, so measure at its supply"
    )


def _load() -> Optional[Any]:
    return next((found for found in map(_open, LIBRARIES) if found is not None), None)


def _open(name: str) -> Optional[Any]:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _value(library: Any, handle: Any, kind: str) -> Any:
    """Return NVML's code, and the value."""
    if kind == "energy":
        energy = ctypes.c_ulonglong()
        code = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy))
        return code, energy.value
    power = ctypes.c_uint()
    return library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(power)), power.value


def _name(library: Any, handle: Any) -> str:
    text = ctypes.create_string_buffer(NAME_BYTES)
    if library.nvmlDeviceGetName(handle, text, ctypes.c_uint(NAME_BYTES)) != SUCCESS:
        return "unnamed"
    return text.value.decode("utf-8", "replace")
