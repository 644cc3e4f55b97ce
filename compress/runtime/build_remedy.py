"""What to do about an error of TensorRT's builder: the remedy that fits what it said first.

The first error of a build is its cause; those behind it are what became of it, such as "Cuda
Runtime" errors of what was given up.
"""

import re

__all__ = ["remedy_for"]

# The first that is found in the message.
REMEDIES = (
    (
        r"memory|alloc|workspace",
        "close other programs that use the GPU, or limit --workspace-mib",
    ),
    (
        r"implementation|tactic",
        "no kernel of this TensorRT fits: export with another --precision, or update TensorRT",
    ),
    (
        r"int8|fp8|quantiz|precision|q/dq",
        "this builder lacks that precision: export with --precision fp16",
    ),
    (
        r"driver|cuda (init|runtime|error)|no device|sm_?\d|architecture|compute capability",
        "update the driver, or use the TensorRT that belongs to this GPU",
    ),
)
OTHERWISE = "export the bundle again for this TensorRT (--target)"


def remedy_for(message: str) -> str:
    """Return what to do, as a part of a sentence.

    >>> remedy_for("Cuda Runtime (out of memory)")
    'close other programs that use the GPU, or limit --workspace-mib'
    """
    for pattern, remedy in REMEDIES:
        if re.search(pattern, message, re.IGNORECASE):
            return remedy
    return OTHERWISE
