"""The manifest of a bundle: what its segments are, and the proof that they are the ones written.

A bundle is a folder: `manifest.json`, `segment_0.onnx` … `segment_n.onnx`, later `*.engine` beside
them. Segment i takes the image (i = 0) or the hidden state of the one before it, as `hidden_in`,
and gives `hidden`, `logits`, `gate`; the last gives `logits`. `gate` is a probability, sigmoid
included. Shapes are those of one image, without the batch. A network without exits may give further
outputs under names of its own; where it is no classifier these are all, and there are no classes.

A bundle may come from a stranger: names of files are plain names inside the folder, every number
has its range, neighbouring segments must fit together and run on from one another, and a file is
opened only after its sha256, which covers all its weights: none may lie in other files.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from compress.errors import UserInputError
from compress.files import check_readable, sha256_of, write_json
from compress.runtime.onnx_wire import has_external_data
from compress.runtime.preprocessing import Preprocessing
from compress.runtime.thresholds import check_thresholds

__all__ = [
    "MANIFEST",
    "MAX_OUTPUTS",
    "MAX_RANK",
    "RESERVED",
    "Manifest",
    "Segment",
    "TensorSpec",
    "read_manifest",
    "write_manifest",
]

FORMAT = "compress.bundle/1"
MANIFEST = "manifest.json"
DTYPES = ("float32", "float16", "int32")
RESERVED = ("image", "hidden_in", "hidden", "logits", "gate", "exit")  # no further output has these
PRECISIONS = ("fp32", "fp16", "int8")
LARGEST = 1 << 31  # elements of a tensor, and every other count but multiply-adds
MAX_MACS = 1 << 53
MAX_BYTES = 64 << 20  # of a manifest: class names are its only long part
MAX_SEGMENTS = 1 << 10
MAX_RANK = 8
MAX_OUTPUTS = 1 << 8  # of a segment
MAX_TEXT = 1000  # characters of a name
MAX_OPSET = 1 << 10
MAX_BATCH = 1 << 12
MAX_BATCH_BYTES = 16 << 30  # of one tensor of the largest batch

Item = TypeVar("Item")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a segment.

    Attributes:
        name: "image", "hidden_in", "hidden", "logits", "gate", or that of a further output, of
            letters, digits, _ and dots.
        dtype: "float32" or "float16"; of further outputs also "int32".
        shape: of one image, without the batch: () of a gate.
    """

    name: str
    dtype: str
    shape: Tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """One part of the network, up to an exit or to the end.

    Attributes:
        file: name of the ONNX file in the folder of the bundle.
        sha256: of that file.
        blocks: first block and the one after the last; (0, 0) where the network has no blocks.
        macs: multiply-adds of one image in this segment, its head and gate included.
        threshold: of its gate, in [0, 1]; None of the last segment, which has no gate.
        inputs: what it takes.
        outputs: what it gives.
        precision: "fp32", "fp16" or "int8".
    """

    file: str
    sha256: str
    blocks: Tuple[int, int]
    macs: int
    threshold: Optional[float]
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    precision: str = "fp32"

    @property
    def stem(self) -> str:
        """Name of the file without its suffix, which an engine has too."""
        return Path(self.file).stem

    def output(self, name: str) -> TensorSpec:
        """Return the output of that name; KeyError where there is none."""
        return {spec.name: spec for spec in self.outputs}[name]


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    Attributes:
        name: of the network, such as "gfnet_dynn_12_384".
        classes: their names, in the order of the logits; none where the network has no logits.
        preprocessing: how a picture becomes an image; None where only prepared ones are taken.
        batch: smallest (always 1) and largest number of images that a segment takes at a time.
        target: name of what the files were written for, such as "jetpack6.2".
        opset: of the ONNX files.
        segments: in the order of the network.
        parity: how well the files agree with the torch network, as measured.
        provenance: checkpoint, versions, command.
        notes: further figures of the export, such as exit rates before and after quantisation.
    """

    name: str
    classes: Tuple[str, ...]
    preprocessing: Optional[Preprocessing]
    batch: Tuple[int, int]
    target: str
    opset: int
    segments: Tuple[Segment, ...]
    parity: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exits(self) -> int:
        """E, the exits before the final head."""
        return len(self.segments) - 1

    @property
    def thresholds(self) -> List[float]:
        """Return the threshold of each exit."""
        return [s.threshold for s in self.segments if s.threshold is not None]

    @property
    def further_outputs(self) -> Tuple[TensorSpec, ...]:
        """What the network gives beside its logits; none where it has exits."""
        return tuple(spec for spec in self.segments[-1].outputs if spec.name != "logits")

    @property
    def image(self) -> TensorSpec:
        """What the first segment takes."""
        return self.segments[0].inputs[0]

    def with_thresholds(self, thresholds: Union[float, Sequence[float]]) -> "Manifest":
        """Return the manifest with other thresholds, one for all exits or one for each.

        Raises:
            UserInputError: they do not fit the exits, or lie outside [0, 1].
        """
        bars = check_thresholds(thresholds, self.exits)
        gated = [replace(s, threshold=bar) for s, bar in zip(self.segments, bars)]
        return replace(self, segments=(*gated, self.segments[-1]))

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        value = {**asdict(self), "format": FORMAT}
        value["preprocessing"] = self.preprocessing.to_dict() if self.preprocessing else None
        return value


def write_manifest(manifest: Manifest, bundle: Path) -> None:
    """Write `manifest.json`, whole or not at all, checked as a reader will."""
    value = json.loads(json.dumps(manifest.to_dict(), allow_nan=False))
    _check_consistent(_parse(value))
    write_json(Path(bundle) / MANIFEST, value)


def read_manifest(bundle: Path, *, check_files: bool = True) -> Manifest:
    """Read and check the manifest of a bundle.

    Args:
        bundle: its folder.
        check_files: also compare the sha256 of every segment.

    Raises:
        UserInputError: it is no bundle, of another version, inconsistent, or a segment is missing
            or altered.
    """
    bundle = Path(bundle)
    if not bundle.is_dir():
        raise UserInputError(
            f"bundle {bundle} is not a folder; expected what python -m compress.export_trt wrote"
        )
    path = check_readable(bundle / MANIFEST, "manifest")
    try:
        manifest = _parse(_read_json(path))
        _check_consistent(manifest)
    except (KeyError, TypeError, ValueError, RecursionError) as err:
        missing = f"{err} is missing" if isinstance(err, KeyError) else str(err)
        raise UserInputError(
            f"manifest {path} cannot be used ({missing}); it is damaged, so export the bundle again"
        ) from err
    if check_files:
        for segment in manifest.segments:
            _check_file(bundle, segment)
    return manifest


def _check_file(bundle: Path, segment: Segment) -> None:
    path = check_readable(bundle / segment.file, "segment")
    found = sha256_of(path)
    if found != segment.sha256:
        raise UserInputError(
            f"segment {path} has sha256 {found[:12]}…, its manifest says {segment.sha256[:12]}…; "
            "it was altered or belongs to another bundle, so copy or export the bundle again"
        )
    try:
        has_elsewhere = has_external_data(path)
    except (OSError, ValueError) as err:
        raise UserInputError(
            f"segment {path} cannot be read as ONNX ({err}); export the bundle again"
        ) from err
    if has_elsewhere:
        raise UserInputError(
            f"segment {path} keeps weights in other files, which no sha256 covers; export the "
            "bundle again, which puts all weights into the segments"
        )


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, more than a manifest has")
    text = path.read_text(encoding="utf-8")  # its errors and those of JSON are ValueErrors
    value = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} in place of an object")
    found = value.get("format")
    if found != FORMAT:
        raise UserInputError(
            f"manifest {path} has the format {found!r:.60}; this version reads {FORMAT}, so export "
            "the bundle again or install the version that wrote it"
        )
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} in place of a number")


def _parse(value: Mapping[str, Any]) -> Manifest:
    pre = value["preprocessing"]
    return Manifest(
        name=_name(value["name"]),
        classes=_items(value["classes"], _text, empty=True),
        preprocessing=None if pre is None else Preprocessing.from_dict(pre),
        batch=_batch(value["batch"]),
        target=_name(value["target"]),
        opset=_count(value["opset"], smallest=1, largest=MAX_OPSET),
        segments=_items(value["segments"], _segment, most=MAX_SEGMENTS),
        parity=_object(value["parity"]),
        provenance=_object(value["provenance"]),
        notes=_object(value["notes"]),
    )


def _segment(value: Mapping[str, Any]) -> Segment:
    threshold = value["threshold"]
    if threshold is not None:
        (threshold,) = check_thresholds([_number(threshold)], 1)
    file, sha256 = _text(value["file"]), _text(value["sha256"])
    if file != Path(file).name or not file.endswith(".onnx") or file.startswith("."):
        raise ValueError(f"file {file!r:.60} is not a plain name that ends with .onnx")
    if not file.isprintable() or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"file {file!r:.60} with sha256 {sha256!r:.80}")
    if value["precision"] not in PRECISIONS:
        raise ValueError(f"precision {value['precision']!r:.60}")
    return Segment(
        file=file,
        sha256=sha256,
        blocks=_pair(value["blocks"], smallest=0),
        macs=_count(value["macs"], largest=MAX_MACS),
        threshold=threshold,
        inputs=_items(value["inputs"], _tensor, most=1),
        outputs=_items(value["outputs"], _tensor, most=MAX_OUTPUTS),
        precision=value["precision"],
    )


def _tensor(value: Mapping[str, Any]) -> TensorSpec:
    shape = _items(value["shape"], lambda size: _count(size, smallest=1), empty=True, most=MAX_RANK)
    if _elements(shape) > LARGEST or value["dtype"] not in DTYPES:
        raise ValueError(f"a tensor of shape {list(shape)} and type {value['dtype']!r:.60}")
    return TensorSpec(name=_text(value["name"]), dtype=value["dtype"], shape=shape)


def _check_consistent(manifest: Manifest) -> None:
    """Raise ValueError unless every segment takes what the one before it gives."""
    last = manifest.segments[-1]
    image, classes = manifest.image, len(manifest.classes)
    if image.name != "image" or image.dtype != "float32" or len(image.shape) != 3:
        raise ValueError(f"the first segment takes {image.name} {list(image.shape)}")
    if manifest.preprocessing is not None:
        prepared = manifest.preprocessing.shape
        if image.shape != prepared:
            raise ValueError(f"images of {list(image.shape)}, preprocessing to {list(prepared)}")
    carried = image
    for segment in manifest.segments:
        wanted = _output_names(manifest, segment)
        (taken,) = segment.inputs
        if (taken.dtype, taken.shape) != (carried.dtype, carried.shape) or taken.name in wanted[:1]:
            raise ValueError(f"{segment.file} does not fit the segment before it")
        if tuple(output.name for output in segment.outputs) != wanted:
            raise ValueError(f"{segment.file} does not give {', '.join(wanted)}, and no more")
        logits = TensorSpec("logits", "float32", (classes,))
        if "logits" in wanted and segment.output("logits") != logits:
            raise ValueError(f"{segment.file} gives other logits than {classes} classes")
        if (segment.threshold is None) != (segment is last):
            raise ValueError(f"{segment.file} has the threshold {segment.threshold}")
        if segment is not last:
            carried = segment.output("hidden")
            if carried.dtype == "int32":
                raise ValueError(f"{segment.file} gives a hidden state of whole numbers")
            if segment.output("gate") != TensorSpec("gate", "float32", ()):
                raise ValueError(f"{segment.file} gives a gate of another shape")
    if len({segment.file for segment in manifest.segments}) < len(manifest.segments):
        raise ValueError("two segments in one file")
    _check_blocks(manifest)
    _check_batch(manifest)


def _output_names(manifest: Manifest, segment: Segment) -> Tuple[str, ...]:
    """Return what a segment must give; of a network without exits, what it gives, once checked."""
    if segment is not manifest.segments[-1]:
        return ("hidden", "logits", "gate")
    if manifest.exits:
        return ("logits",)
    logits = ("logits",) if manifest.classes else ()
    names = tuple(spec.name for spec in manifest.further_outputs)
    for name in names:
        if name in RESERVED or not re.fullmatch(r"[A-Za-z0-9_.]+", name) or names.count(name) > 1:
            raise ValueError(f"{segment.file} gives {name!r:.60}, which is no name of its own")
    return (*logits, *names)


def _check_blocks(manifest: Manifest) -> None:
    """Raise ValueError unless the segments run on from one another, from the first block on.

    Segments of one network often have the same shapes, so only their blocks tell when one of them
    was left out or stands in another's place.
    """
    done = 0
    for segment in manifest.segments:
        first, stop = segment.blocks
        if first != done:
            raise ValueError(f"{segment.file} begins at block {first}, expected {done}")
        if first == stop and len(manifest.segments) > 1:
            raise ValueError(f"{segment.file} holds no block")
        done = stop


def _check_batch(manifest: Manifest) -> None:
    specs = [spec for s in manifest.segments for spec in (*s.inputs, *s.outputs)]
    largest = 4 * max(_elements(spec.shape) for spec in specs)  # bytes; float16 is half of it
    if manifest.batch[1] * largest > MAX_BATCH_BYTES:
        raise ValueError(f"batches of {manifest.batch[1]} images of tensors of {largest} bytes")


def _elements(shape: Tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _items(
    value: Any, read: Callable[[Any], Item], *, empty: bool = False, most: int = LARGEST
) -> Tuple[Item, ...]:
    if not isinstance(value, list) or not (value or empty) or len(value) > most:
        raise ValueError(f"{value!r:.60} in place of a list")
    return tuple(read(item) for item in value)


def _pair(value: Any, *, smallest: int, largest: int = LARGEST) -> Tuple[int, int]:
    first, last = _items(value, lambda n: _count(n, smallest=smallest, largest=largest), most=2)
    if first > last:
        raise ValueError(f"{first} before {last}")
    return first, last


def _batch(value: Any) -> Tuple[int, int]:
    batch = _pair(value, smallest=1, largest=MAX_BATCH)
    if batch[0] != 1:  # images leave one by one, so any number may travel on
        raise ValueError(f"batches from {batch[0]} images on")
    return batch


def _count(value: Any, *, smallest: int = 0, largest: int = LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise ValueError(f"{value!r:.60} in place of a whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{value!r:.60} in place of a number")
    try:
        return float(value)
    except OverflowError as err:  # JSON has whole numbers of any length
        raise ValueError("a number that is too large") from err


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{value!r:.60} in place of text")
    return value


def _name(value: Any) -> str:
    if not _text(value).isprintable():  # it is printed
        raise ValueError(f"{value!r:.60} in place of a name")
    return str(value)


def _object(value: Any) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.60} in place of an object")
    return value
