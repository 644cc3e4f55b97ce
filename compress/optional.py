"""Import a heavy or optional package where it is needed; say what for when it is missing."""

import importlib
from types import ModuleType

from compress.errors import ToolchainError

__all__ = ["require"]


def require(module: str, purpose: str, *, extra: str = "toolkit") -> ModuleType:
    """Import and return `module`.

    Args:
        module: dotted import name, such as "onnxruntime".
        purpose: what it is needed for, as the end of "… is needed for".
        extra: the extra of this distribution that installs it.

    Raises:
        ToolchainError: the package is not installed, or fails to import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise ToolchainError(
            f"{module} is needed for {purpose}, but importing it failed ({err}); "
            f"install it with: pip install 'early-exit-compress[{extra}]'"
        ) from err
