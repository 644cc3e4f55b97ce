"""Progress bars: on stderr, so that results on stdout stay clean; silenced by TQDM_DISABLE too."""

from typing import Any

from compress.optional import require

__all__ = ["progress_bar"]


def progress_bar(total: int, label: str, *, unit: str, show: bool = True, initial: int = 0) -> Any:
    """Return a tqdm bar; it is a context manager with `update` and `set_postfix`."""
    tqdm = require("tqdm", "showing progress").tqdm
    # tqdm reads TQDM_DISABLE only where `disable` is not passed.
    silent = {} if show else {"disable": True}
    return tqdm(total=total, desc=label, unit=unit, initial=initial, leave=False, **silent)
