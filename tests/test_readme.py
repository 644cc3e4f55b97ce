"""The README is run, not only read: its command blocks, its links, its code map."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.update_readme import filled

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"(?:<!-- (tested as|not tested): (.*?) -->\n)?```sh\n(.*?)```", README, re.DOTALL
)


def commands() -> list[str]:
    """Every command of the README in order; what stands for it where a comment says so."""
    found: list[str] = []
    for marker, words, block in BLOCKS:
        if marker != "not tested":
            found += [words] if marker else block.strip().splitlines()
    return found


def test_the_readme_opens_with_the_two_commands():
    assert [block.strip() for _, _, block in BLOCKS[:2]] == ["make run", "make test"]


@pytest.mark.slow
def test_every_command_block_runs(tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    assert len(commands()) >= 6
    for command in commands():
        assert command.startswith("python -m compress"), command
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} printed nothing"


def test_the_code_map_names_what_is_there():
    section = README.partition("## Code map")[2].partition("## Tests")[0]
    for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        folder = ROOT
        for name in re.findall(r"`([^`]+)`", cell):
            place = ROOT / name if "/" in name else folder / name
            folder = place.parent
            assert place.exists(), f"{name} is in the code map, but not in the tree"


def test_links_inside_the_repository_resolve():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_table_is_filled_from_the_run(tmp_path):
    (tmp_path / "t.txt").write_text("ratio  MACs\n")
    before = "a\n<!-- table: t.txt -->\n```text\nold\n```\nb\n"
    assert filled(before, tmp_path) == before.replace("old\n", "ratio  MACs\n")


def test_the_readme_shows_a_table_of_a_run():
    table = re.search(r"<!-- table: .*? -->\n```text\n(.*?)```", README, re.DOTALL)
    assert table
    assert "true ratio" in table[1]
