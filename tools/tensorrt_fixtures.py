"""Install what the slow tests build engines with: `python tools/tensorrt_fixtures.py`.

Two versions of one package cannot live in one environment, so each goes into a plain folder, which
a test puts on the PYTHONPATH of a process of its own:

- `rtx-*`: the builder and ONNX parser of TensorRT-RTX, which need neither GPU nor driver; 1.4 has
  the Python API of TensorRT 10, 1.7 that of TensorRT 11;
- `bindings-*`: the Python bindings alone of TensorRT 8.6 to 11, whose names the tests look up.

NVIDIA's licence lets anyone use these packages, and nobody hand them on: they are never copied into
the repository. A folder that is complete is left alone, so a second call does nothing.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".venv" / "tensorrt"
STAMP = ".installed"
RTX = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
BINDINGS = ("tensorrt-cu12-bindings",)
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "rtx-1.4": (RTX, "1.4.0.76"),
    "rtx-1.7": (RTX, "1.7.1.116"),
    "bindings-8.6.1": (("tensorrt-bindings",), "8.6.1"),
    "bindings-10.3.0": (BINDINGS, "10.3.0"),
    "bindings-10.16.1": (BINDINGS, "10.16.1.11"),
    "bindings-11.4.0": (BINDINGS, "11.4.0.106"),
}
NEWEST_PYTHON = {"bindings-8.6.1": (3, 11), "bindings-10.3.0": (3, 12)}  # with a wheel for it


def wanted() -> list[str]:
    """Return the names of the folders for which the running Python has wheels."""
    here = sys.version_info[:2]
    return [name for name in PACKAGES if here <= NEWEST_PYTHON.get(name, here)]


def requirements(name: str) -> list[str]:
    """Return the exact pins of a folder."""
    packages, version = PACKAGES[name]
    return [f"{package}=={version}" for package in packages]


def is_installed(folder: Path, name: str) -> bool:
    """Whether the folder holds these very pins, for this very Python."""
    stamp = folder / name / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp(name)


def install(folder: Path, name: str) -> None:
    """Fill `folder/name`, whole or not at all.

    Raises:
        subprocess.CalledProcessError: pip failed; it told why on stderr.
    """
    part, whole = folder / f"{name}.part", folder / name
    shutil.rmtree(part, ignore_errors=True)
    # Without dependencies: every package is pinned above, and numpy is the environment's.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(part), *requirements(name)]
    subprocess.run(command, check=True)
    (part / STAMP).write_text(_stamp(name), encoding="utf-8")
    shutil.rmtree(whole, ignore_errors=True)
    part.rename(whole)


def _stamp(name: str) -> str:
    python = "{}.{}".format(*sys.version_info[:2])
    return "\n".join([f"python {python}", *requirements(name)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Install what is missing; return 0, or pip's exit code."""
    parser = argparse.ArgumentParser(prog="python tools/tensorrt_fixtures.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    words = "where the folders are made (default: .venv/tensorrt, where the tests look)"
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=words)
    folder: Path = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted():
        if is_installed(folder, name):
            continue
        print(f"installing {name}: {' '.join(requirements(name))}", file=sys.stderr)
        try:
            install(folder, name)
        except subprocess.CalledProcessError as err:
            print(f"{name} could not be installed; pip told why above", file=sys.stderr)
            return int(err.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
