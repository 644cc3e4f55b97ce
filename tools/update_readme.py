"""Put the tables of finished runs into the README: `python tools/update_readme.py`.

A line `<!-- table: FILE -->` in the README is followed by a text block, which gets FILE's content.
"""

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- table: (\S+) -->\n```text\n).*?(```)", re.DOTALL)


def filled(readme: str, root: Path) -> str:
    """Return the README with every table block filled from its file below `root`."""
    return BLOCK.sub(lambda m: m[1] + (root / m[2]).read_text(encoding="utf-8") + m[3], readme)


def main() -> int:
    """Fill the README of the current folder."""
    readme = Path("README.md")
    try:
        readme.write_text(filled(readme.read_text(encoding="utf-8"), Path()), encoding="utf-8")
    except FileNotFoundError as err:
        print(f"{err.filename} does not exist; run `make run` first", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
