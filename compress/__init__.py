"""Slim, early-exit and split networks for the edge.

`compress.load` and `compress.save` read and write checkpoints. They are looked up on first use,
so that `compress.runtime`, which goes to a Jetson with numpy alone, never imports torch.
"""

from typing import Any, List

__all__ = ["__version__", "load", "save"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("load", "save"):
        from compress import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'compress' has no attribute {name!r}")


def __dir__() -> List[str]:
    return __all__
