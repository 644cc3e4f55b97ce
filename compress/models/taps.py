"""What chosen modules of a network give while it runs, seen through hooks.

Nothing of the network is rewritten, and the hooks are gone when its run ends, however it ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from compress.errors import UnsupportedModelError

__all__ = ["Left", "tapped", "tensor_of"]


class Left(BaseException):
    """Leaves the forward of a network from inside; only who hung the hooks catches it.

    Not an Exception, so that no `except Exception` of the network keeps it from leaving.
    """

    def __init__(self, logits: Tensor, exit_number: int) -> None:
        super().__init__(exit_number)
        self.logits = logits
        self.exit_number = exit_number


@contextmanager
def tapped(
    network: nn.Module,
    paths: Sequence[str],
    see: Callable[[int, Tensor], None],
    *,
    in_order: bool = True,
) -> Iterator[None]:
    """Call `see(number, tensor)` whenever one of the modules has run.

    Args:
        network: whose modules they are.
        paths: of the modules.
        see: takes the number of the path, and what the module gives.
        in_order: they must run in the order in which they are given.

    Raises:
        UnsupportedModelError: a module ran twice, or not at all, or out of order, or gave no float
            tensor.
    """
    done: set[int] = set()

    def hook_of(number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if number in done:
                raise UnsupportedModelError(
                    f"module {paths[number]!r} runs more than once for an image; an exit needs one "
                    "that runs once"
                )
            if in_order and number != len(done):
                raise UnsupportedModelError(
                    f"module {paths[number]!r} runs before {paths[len(done)]!r}, but its exit is "
                    "named behind that one's; expected exits in the order in which they run"
                )
            done.add(number)
            see(number, tensor_of(output, paths[number]))

        return hook

    hooks = [
        network.get_submodule(path).register_forward_hook(hook_of(number))
        for number, path in enumerate(paths)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    missing = [path for number, path in enumerate(paths) if number not in done]
    if missing:
        raise UnsupportedModelError(
            f"module {missing[0]!r} does not run in the forward of the network; expected one that "
            "every image passes, see python -m compress.exits list"
        )


def tensor_of(output: Any, path: str) -> Tensor:
    """Return what an exit reads of what a module gave: the tensor, or the first of a tuple.

    Raises:
        UnsupportedModelError: it is no float tensor.
    """
    found = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
        raise UnsupportedModelError(
            f"module {path!r} gives a {kind}; expected a float tensor for an exit to read"
        )
    return found
