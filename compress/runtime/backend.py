"""What a backend does for the dispatcher: run segments, and keep what crosses where it is."""

from typing import Dict, Optional

import numpy as np

__all__ = ["Backend"]


class Backend:
    """Runs the segments of one bundle, in order, on one batch at a time.

    A batch goes load, run(0), keep, run(1), …; `keep` is left out where no image left. Tensors
    that cross between segments stay inside the backend; to and from the host travel the image, the
    gates, and the logits of images that leave.

    Attributes:
        name: such as "onnxruntime".
        max_batch: the largest batch that `load` takes.
    """

    name = "none"
    max_batch = 1

    def load(self, images: np.ndarray) -> None:
        """Take a batch (B, C, H, W) float32, 1 <= B <= max_batch. It is copied or used at once."""
        raise NotImplementedError

    def run(self, segment: int) -> Optional[np.ndarray]:
        """Run a segment on what those before it gave.

        Returns:
            gates (B,) float32, valid until the next call; None of the last segment.
        """
        raise NotImplementedError

    def logits(self) -> np.ndarray:
        """Return logits (B, K) float32 of the segment just run, valid until the next `run`."""
        raise NotImplementedError

    def outputs(self) -> Dict[str, np.ndarray]:
        """Return the further outputs (B, …) of the segment just run by name, valid until `run`.

        They are fetched only when this is called. There are none unless the manifest names some.
        """
        return {}

    def keep(self, rows: np.ndarray) -> None:
        """Let only these images of the batch travel on: their places, ascending, at least one.

        The rows of every tensor that a later segment takes move, those of the image among them.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back. A closed backend is not used again."""
