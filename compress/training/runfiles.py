"""The folder of a run: which files it holds, and in which order they are written.

=================  ==================================================================
best.pth           checkpoint of the best evaluation
last.pth           checkpoint of the last whole epoch
metrics.jsonl      one JSON object per epoch
state.pt           the resume point; small, and without tensors, once the run is finished
tensorboard/       event files, where asked for
=================  ==================================================================

At the end of an epoch the resume point is written last. A kill before that repeats the epoch and
writes the others again; so they may be ahead of the resume point, but never behind it.

The resume point is written first of all, too: it is what a folder of ours is known by. Files of
these names that no resume point belongs to are somebody's, and never replaced.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import UserInputError
from compress.files import move_aside, remove, sweep_parts, write_text
from compress.optional import require
from compress.training.state import Position, check_same_run, read_state, write_state

__all__ = ["RunFiles"]

logger = logging.getLogger(__name__)

BESIDE = ("report.json", "gammas.png", "gamma.svg")  # what is written when training is over
EVENTS = "events.out.tfevents.*"


class RunFiles:
    """The files of one run; used by the main process alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.best = self.folder / "best.pth"
        self.last = self.folder / "last.pth"
        self.metrics = self.folder / "metrics.jsonl"
        self.state = self.folder / "state.pt"
        self.events = self.folder / "tensorboard"

    def begin(self, identity: Mapping[str, Any], *, fresh: bool) -> dict[str, Any] | None:
        """Make the folder ready.

        Args:
            identity: JSON values that tell this run from others.
            fresh: discard a run that is there; what is not known as ours is moved aside.

        Returns:
            The resume point to go on from, or None.

        Raises:
            UserInputError: the folder holds another run, or one that cannot be read.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserInputError(f"output {self.folder} is a file; expected a folder for the run")
        sweep_parts(self.folder)
        if fresh:
            self._discard()
        if self.state.exists():
            found = read_state(self.state)
            check_same_run(self.folder, found=found["identity"], asked=identity)
            self._check_complete(found["position"])
            self.write_metrics(found["position"].history)
            return found
        for file in self._written():
            raise UserInputError(
                f"output {file} exists, but no run that it belongs to; give another folder "
                "with -o/--output, or --fresh to move it aside"
            )
        return None

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write all records; rewriting them is what keeps a resume from repeating or losing one."""
        write_text(
            self.metrics, "".join(json.dumps(record, allow_nan=False) + "\n" for record in history)
        )

    def save(
        self, identity: Mapping[str, Any], position: Position, tensors: Mapping[str, Any]
    ) -> None:
        """Write the resume point."""
        write_state(self.state, identity=identity, position=position, tensors=tensors)

    def write_events(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Add the newest record to the TensorBoard events; those of later epochs are dropped."""
        require("tensorboard", "writing TensorBoard events")
        from torch.utils.tensorboard import SummaryWriter

        record = history[-1]
        epoch = record["epoch"]
        with SummaryWriter(str(self.events), purge_step=epoch) as writer:
            for name, value in record.items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, epoch)

    def _written(self) -> list[Path]:
        """What is there of all that a run writes, the resume point last."""
        files = (self.best, self.last, self.metrics, *(self.folder / name for name in BESIDE))
        return [file for file in (*files, self.state) if file.exists()]

    def _discard(self) -> None:
        known = self._is_known()
        events = self.events.glob(EVENTS) if self.events.is_dir() else ()
        for file in (*events, *self._written()):
            if not remove(file, is_ours=lambda _: known):
                logger.warning("%s is of no run of ours: kept as %s", file, move_aside(file).name)

    def _is_known(self) -> bool:
        """Whether the folder holds a resume point of ours."""
        try:
            return self.state.exists() and bool(read_state(self.state))
        except UserInputError:
            return False

    def _check_complete(self, position: Position) -> None:
        needed = [self.best] if position.best_score is not None else []
        missing = [file for file in needed if not file.is_file()]
        if missing:
            raise UserInputError(
                f"{missing[0]} is gone, but {self.state} counts on it; expected the whole folder "
                "of the run, so give --fresh to begin anew"
            )
