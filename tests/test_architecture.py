"""The house as it was meant: who imports whom, what is public, what a bare machine can do."""

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compress
from compress.__main__ import VERBS

ROOT = Path(__file__).parent.parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages(compress.__path__, "compress.")
    if module.name != "compress.__main__"
]
HEAVY = ("torch", "onnx", "onnxruntime", "PIL", "tqdm", "pydantic", "sklearn", "accelerate",
         "scipy", "jinja2", "matplotlib")  # fmt: skip
GROUND = ("__init__.py", "__main__.py", "cli.py", "errors.py", "files.py", "optional.py",
          "build_engines.py", "device_options.py", "dispatch.py", "measure_device.py",
          "monitor.py", "export/triton_bls.py",
          *(path.relative_to(ROOT / "compress").as_posix()
            for path in sorted((ROOT / "compress" / "runtime").rglob("*.py"))))  # fmt: skip


def test_imports_run_one_way():
    # In a process of its own: import-linter sets logging up anew, and disables existing loggers.
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_torchvision_and_timm_are_nowhere_in_the_import_graph():
    """Their wheels do not import beside a CPU torch, so one import would break every door."""
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES}: importlib.import_module(name)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torchvision', 'timm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_calls_public_is_there_and_the_rest_is_private(name):
    module = importlib.import_module(name)
    is_package_without_names = hasattr(module, "__path__") and not hasattr(module, "__all__")
    if is_package_without_names or name.rpartition(".")[2].startswith("_"):
        return
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    public = {each for each in defined if not each.startswith("_")}
    assert all(hasattr(module, each) for each in module.__all__)
    assert sorted(module.__all__) == sorted(set(module.__all__))
    missing = {each for each in public if each not in module.__all__ and _is_used(name, each)}
    assert not missing, f"used elsewhere, but not in __all__ of {name}: {missing}"


def _is_used(module: str, name: str) -> bool:
    """Whether another module of the package imports the name."""
    pattern = re.compile(rf"from {re.escape(module)} import [^#\n]*\b{name}\b")
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "compress").rglob("*.py"))
    return any(pattern.search(source) for source in sources)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_door_needs_neither_torch_nor_anything_heavy(verb):
    code = (
        "import sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"
        f"import compress.{verb} as door\n"
        "door.main(['-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert re.search("default|--json|list \\| train", done.stdout)


def test_every_door_is_a_verb_and_every_verb_a_door():
    package = ROOT / "compress"
    doors = {
        path.stem
        for path in package.glob("*.py")
        if "def main(argv" in path.read_text(encoding="utf-8")
    }
    doors |= {path.parent.name for path in package.glob("*/__main__.py")}
    assert doors == set(VERBS)


def test_the_package_alone_needs_numpy_alone():
    needed = importlib.metadata.requires("early-exit-compress") or []
    assert [each for each in needed if "extra ==" not in each] == ["numpy"]


@pytest.mark.parametrize("name", GROUND)
def test_what_goes_to_a_device_is_python_3_8(name):
    source = (ROOT / "compress" / name).read_text(encoding="utf-8")
    assert ast.parse(source, feature_version=(3, 8)).body  # raises for newer syntax


def test_recipes_are_files_and_nothing_imports_them():
    assert not list((ROOT / "recipes").glob("*.py"))
