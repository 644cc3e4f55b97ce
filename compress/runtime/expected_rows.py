"""How many images of a full batch reach each segment: what its engine should be fastest for."""

from math import ceil
from typing import List

from compress.errors import UserInputError
from compress.runtime.manifest import Manifest
from compress.runtime.reference_rates import ReferenceRates
from compress.runtime.row_sizes import row_sizes, size_for

__all__ = ["expected_rows"]


def expected_rows(manifest: Manifest) -> List[int]:
    """Return of each segment how many images it is expected to run with, of the largest batch.

    The exit rates are those of the calibration images, as the manifest notes them; a bundle without
    them expects all images everywhere. Of a batch of 32 where 70 % leave at the first exit, 9.6
    reach the second segment: it runs with 16.
    """
    most = manifest.batch[1]
    try:
        rates = ReferenceRates.from_manifest(manifest).rates
    except UserInputError:
        return [most] * len(manifest.segments)
    sizes = row_sizes(most)
    reached = [sum(rates[number:]) for number in range(len(manifest.segments))]
    # Sums of shares may miss a whole number by a rounding.
    rows = [min(most, max(1, ceil(share * most - 1e-6))) for share in reached]
    return [size_for(sizes, each) for each in rows]
