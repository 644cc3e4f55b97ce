"""What a manifest tells of the probe of a bundle: the file, its sha256, and how many images."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Optional

from compress.runtime.json_values import count, object_, text

__all__ = ["MAX_PROBE_IMAGES", "ProbeFile"]

MAX_PROBE_IMAGES = 8


@dataclass(frozen=True)
class ProbeFile:
    """The probe of a bundle, as its manifest names it.

    Attributes:
        file: its name in the folder of the bundle.
        sha256: of that file.
        images: in it, 1 to `MAX_PROBE_IMAGES`.
    """

    file: str
    sha256: str
    images: int

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Optional[ProbeFile]":
        """Return what a manifest says, None where it names no probe.

        Raises:
            ValueError, KeyError: it says something that cannot be.
        """
        if value is None:
            return None
        found = object_(value)
        file, sha256 = text(found["file"]), text(found["sha256"])
        if file != Path(file).name or not re.fullmatch(r"[\w-][\w.-]{0,80}\.bin", file, re.ASCII):
            raise ValueError(f"probe {file!r:.60} is not a plain name that ends with .bin")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"probe {file!r:.60} with sha256 {sha256!r:.80}")
        return cls(file, sha256, count(found["images"], smallest=1, largest=MAX_PROBE_IMAGES))
