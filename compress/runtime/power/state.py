"""What power depends on besides the work: the board, its power mode, the clocks.

A Jetson at 15 W and the same one at MAXN are two different devices, and so is one before and after
`jetson_clocks`. So every reading carries this.
"""

import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

__all__ = ["board_name", "power_state"]

Command = Callable[[List[str]], Optional[str]]

GPU_DEVICES = r"gpu|gv11b|gp10b|gm20b|ga10b|gb10b"  # names of a Jetson's graphics in devfreq


def power_state(root: Path = Path("/"), command: Optional[Command] = None) -> Dict[str, Any]:
    """Return board, power mode and clocks, as far as this machine tells them.

    Args:
        root: of the file system; a copied tree serves as well.
        command: runs a command and returns what it printed, or None; by default for real, and not
            at all on a copied tree.

    Returns:
        board, power_mode, cpu and gpu, each only where known. Clocks are in MHz: of each group of
        cores and of the graphics, governor, now, lowest and highest allowed.
    """
    root = Path(root)
    if command is None:
        command = _run if root == Path("/") else (lambda arguments: None)
    state = {
        "board": board_name(root),
        "power_mode": _power_mode(root, command),
        "cpu": _cpu_clocks(root),
        "gpu": _gpu_clocks(root),
    }
    return {name: value for name, value in state.items() if value}


def board_name(root: Path = Path("/")) -> Optional[str]:
    """Return the model in the device tree, such as "NVIDIA Jetson AGX Orin", or None."""
    text = _text(Path(root) / "proc/device-tree/model")
    return text.rstrip("\0").strip() if text else None


def _power_mode(root: Path, command: Command) -> Optional[str]:
    """Ask nvpmodel; where it does not answer, read what it wrote."""
    said = re.search(r"NV Power Mode:\s*(\S+)", command(["nvpmodel", "-q"]) or "")
    if said:
        return said.group(1)
    status = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if not status:
        return None
    number = status.group(1)
    table = _text(root / "etc/nvpmodel.conf") or ""
    named = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", table)
    return named.group(1) if named else f"mode {number}"


def _cpu_clocks(root: Path) -> Dict[str, Any]:
    clocks = {}
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        clocks[policy.name] = {
            "governor": _text(policy / "scaling_governor"),
            "now_mhz": _scaled(policy / "scaling_cur_freq", 1e3),  # kHz
            "min_mhz": _scaled(policy / "scaling_min_freq", 1e3),
            "max_mhz": _scaled(policy / "scaling_max_freq", 1e3),
        }
    return clocks


def _gpu_clocks(root: Path) -> Dict[str, Any]:
    clocks = {}
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(GPU_DEVICES, device.name):
            clocks[device.name] = {
                "governor": _text(device / "governor"),
                "now_mhz": _scaled(device / "cur_freq", 1e6),  # Hz
                "min_mhz": _scaled(device / "min_freq", 1e6),
                "max_mhz": _scaled(device / "max_freq", 1e6),
            }
    return clocks


def _scaled(path: Path, unit: float) -> Optional[float]:
    try:
        return int(_text(path) or "") / unit
    except ValueError:
        return None


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _run(arguments: List[str]) -> Optional[str]:
    try:
        done = subprocess.run(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):  # not there, or it hangs
        return None
    return done.stdout
