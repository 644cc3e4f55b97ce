"""Set the thresholds of an exported bundle anew, from what its own files compute."""

from dataclasses import replace
from pathlib import Path

from compress.data.image_data import ImageData
from compress.errors import UserInputError
from compress.exits.plan_job import replay_of
from compress.exits.recalibrate import Recalibration, recalibrated
from compress.export.bundle_replay import reference_rates, replay_bundle
from compress.export.source import image_data_for
from compress.runtime import reference_rates as reference
from compress.runtime.manifest import read_manifest, write_manifest

__all__ = ["recalibrate_bundle"]

CALIBRATION = "calibration"


def recalibrate_bundle(
    bundle: Path,
    checkpoint: Path,
    data: str | ImageData,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Recalibration:
    """Give a bundle the thresholds that let as many images leave at each exit as in torch.

    The manifest gets the new thresholds, a note of the rates before and after, and the rates that a
    monitor compares a stream with; files and engines stay as they are, as thresholds live outside.

    Args:
        bundle: its folder.
        checkpoint: of the network that is to be matched, with exits behind the same blocks: the
            one that was exported, or the one before slimming.
        data: whose calibration split is run.
        seed: of the split.
        progress: show bars on stderr.

    Raises:
        UserInputError: the bundle has no exits, or a file cannot be used.
    """
    manifest = read_manifest(bundle)
    if manifest.exits == 0:
        raise UserInputError(
            f"bundle {bundle} has no exits; expected one that was exported with --split-exits"
        )
    images = image_data_for(data, manifest.image.shape[1:], seed=seed)
    before = replay_of(checkpoint, images, (CALIBRATION,), progress=progress)[CALIBRATION]
    after = replay_bundle(bundle, images.splits[CALIBRATION], before.source, progress=progress)
    found = recalibrated(before, after, manifest.thresholds)
    rates = reference_rates(after, found.thresholds)
    notes = {
        **manifest.notes,
        "recalibration": found.to_dict(),
        reference.CALIBRATION: rates.to_dict(),
    }
    write_manifest(replace(manifest.with_thresholds(found.thresholds), notes=notes), bundle)
    return found
