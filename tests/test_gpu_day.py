"""The page for the day with a device: its commands are such as the doors take."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "gpu_day.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m (compress\.\w+) (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("door", "arguments"), COMMANDS)
def test_every_command_is_one_that_its_door_takes(door, arguments):
    importlib.import_module(door)._parser().parse_args(shlex.split(arguments))


def test_the_page_has_commands_and_its_links_resolve():
    assert len(COMMANDS) > 10
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (Path(__file__).parent.parent / "docs" / target).exists(), target
