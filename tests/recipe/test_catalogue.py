"""Finding, listing and copying what is shipped, in a checkout and from a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from compress.errors import ToolchainError, UserInputError
from compress.recipe import catalogue
from compress.recipe.catalogue import copy_recipe, find_recipe, read_header, shipped_recipes

RECIPES = Path("recipes").resolve()


def test_all_files_are_listed_with_what_their_headers_say():
    found = {recipe.name: recipe for recipe in shipped_recipes()}
    assert sorted(found) == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert found["gfnet_12_384_ucm"].path == RECIPES / "gfnet_12_384_ucm.yaml"
    assert (
        found["gfnet_12_384_ucm"].header["Data"].startswith("UC Merced Land Use as it is shipped")
    )


def test_a_field_of_several_lines_is_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "# Title.\n#\n# Purpose   one\n#           two\n# Data      digits\nname: x\n# Later no\n"
    )
    assert read_header(path) == {"Purpose": "one two", "Data": "digits"}
    path.write_text("name: x\n")
    assert read_header(path) == {}


def test_a_bare_name_is_that_of_a_shipped_recipe_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart") == RECIPES / "quickstart.yaml"
    Path("quickstart").write_text("name: mine\n")
    assert find_recipe("quickstart") == Path("quickstart")
    assert find_recipe("some/where.yaml") == Path(
        "some/where.yaml"
    )  # its reader says that it is not


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quickstrat", "did you mean 'quickstart'?"),
        ("zzz", "expected one of gfnet_12_384_cifar10, "),
    ],
)
def test_an_unknown_name(name, hint):
    with pytest.raises(UserInputError) as told:
        find_recipe(name)
    assert f"recipe '{name}' is neither a file nor shipped; {hint}" in str(told.value)


def test_copies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (RECIPES / "quickstart.yaml").read_text(encoding="utf-8")
    assert copy_recipe("quickstart") == Path("quickstart.yaml")
    assert copy_recipe("quickstart", Path("new/mine.yaml")).read_text(encoding="utf-8") == text
    (tmp_path / "folder").mkdir()
    assert copy_recipe("quickstart", Path("folder")) == Path("folder/quickstart.yaml")
    Path("quickstart.yaml").write_text("mine")
    with pytest.raises(UserInputError, match="exists"):
        copy_recipe("quickstart")
    assert Path("quickstart.yaml").read_text() == "mine"
    assert copy_recipe("quickstart.yaml", Path("other.yaml")).read_text() == "mine"
    copy_recipe("gfnet_12_384_ucm", Path("quickstart.yaml"), force=True)
    assert "ucm" in Path("quickstart.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserInputError, match="cannot be read"):
        copy_recipe("none.yaml", Path("x.yaml"))


def test_an_installation_without_recipes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue.compress, "__file__", str(tmp_path / "compress" / "__init__.py"))
    monkeypatch.setattr(catalogue, "_installed_files", list)
    catalogue._shipped_files.cache_clear()
    try:
        with pytest.raises(ToolchainError, match="holds no recipes"):
            shipped_recipes()
    finally:
        catalogue._shipped_files.cache_clear()


@pytest.mark.slow
def test_a_wheel_brings_them(tmp_path):
    """Built from the sources, unpacked as pip would, and asked from a folder without recipes."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(Path(), source, ignore=ignored)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", tmp_path / "dist", source], check=True)
    (built,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        held = {Path(name).name for name in archive.namelist() if name.endswith(".yaml")}
    assert held == {path.name for path in RECIPES.glob("*.yaml")}
    target = tmp_path / "env"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--prefix", target]
    subprocess.run([*pip, "--ignore-installed", built], check=True)
    (packages,) = target.rglob("site-packages")
    code = (
        f"import sys; sys.path.insert(0, {str(packages)!r})\n"
        "import compress.run; raise SystemExit(compress.run.main(['list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == sorted(
        path.stem for path in RECIPES.glob("*.yaml")
    )
