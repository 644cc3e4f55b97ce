"""The recipes that are shipped: where they lie, and what their headers say.

In a checkout they are the folder `recipes/` beside the package. A wheel installs the same files as
data files, and its record of installed files tells where.

A header is the comment that a recipe begins with: a title, then fields such as

    # Purpose   train a VGG with an L1 penalty on γ,
    #           and slim it

Imports nothing heavy: listing, showing and copying need neither torch nor pydantic.
"""

import difflib
import functools
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

import compress
from compress.errors import ToolchainError, UserInputError
from compress.files import check_output, write_text

__all__ = ["ShippedRecipe", "copy_recipe", "find_recipe", "read_header", "shipped_recipes"]

DISTRIBUTION = "early-exit-compress"
FIELD = re.compile(r"# ([A-Z][a-z]+) +(.*)")


@dataclass(frozen=True, kw_only=True)
class ShippedRecipe:
    """One recipe that comes with the toolkit.

    Attributes:
        name: what `python -m compress run` knows it by.
        path: its file.
        header: the fields of its header, by name.
    """

    name: str
    path: Path
    header: dict[str, str]


def shipped_recipes() -> list[ShippedRecipe]:
    """Return all recipes that are shipped, by name.

    Raises:
        ToolchainError: the installation holds none.
    """
    return [
        ShippedRecipe(name=path.stem, path=path, header=read_header(path))
        for path in _shipped_files()
    ]


def find_recipe(name: str) -> Path:
    """Return the file that is meant: a path as it is, a bare name as that of a shipped recipe.

    Raises:
        UserInputError: a bare name that no shipped recipe has.
    """
    path = Path(name)
    if path.exists() or len(path.parts) != 1 or path.suffix:
        return path  # whoever reads it says so where it does not exist
    files = {file.stem: file for file in _shipped_files()}
    if name not in files:
        near = difflib.get_close_matches(name, files, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(files)}"
        raise UserInputError(f"recipe {name!r} is neither a file nor shipped; {hint}")
    return files[name]


def copy_recipe(name: str, destination: Path | None = None, *, force: bool = False) -> Path:
    """Copy a recipe to change it, and return the copy.

    Args:
        name: as `find_recipe` takes it.
        destination: a file or folder; None is the current folder.
        force: replace what stands there.

    Raises:
        UserInputError: there is no such recipe, or the destination exists.
    """
    source = find_recipe(name)
    target = Path() if destination is None else destination
    if target.is_dir():
        target /= source.name
    write_text(check_output(target, force=force), _text_of(source))
    return target


def read_header(path: Path) -> dict[str, str]:
    """Return the fields of the header of a recipe, each on one line; {} where there is none."""
    fields: dict[str, str] = {}
    name = ""
    for line in _text_of(path).splitlines():
        if not line.startswith("#"):
            break
        found = FIELD.fullmatch(line)
        if found:
            name = found[1]
            fields[name] = found[2]
        elif name:
            fields[name] += " " + line.lstrip("# ")
    return fields


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UserInputError(f"recipe {path} cannot be read ({err}); check the path") from err


@functools.cache
def _shipped_files() -> tuple[Path, ...]:
    beside = Path(compress.__file__).parent.parent / "recipes"
    found = sorted(beside.glob("*.yaml")) or sorted(_installed_files())
    if not found:
        raise ToolchainError(
            "this installation holds no recipes; install early-exit-compress anew, or give the "
            "path of a YAML file"
        )
    return tuple(found)


def _installed_files() -> list[Path]:
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [
        Path(str(file.locate())).resolve()
        for file in files
        if file.parent.name == "recipes" and file.suffix == ".yaml"
    ]
