"""The manifest of a bundle: what its segments are, and the proof that they are the ones written.

A bundle is a folder: `manifest.json`, `segment_0.onnx` … `segment_n.onnx`, later `*.engine` beside
them. A segment takes the image and what earlier segments made, and gives what later ones read, then
`logits` and `gate`; the last gives `logits`. `gate` is a probability, sigmoid included. Shapes are
those of one image, without the batch. A network without exits may give further outputs under names
of its own; where it is no classifier these are all, and there are no classes.

One name is one tensor in the whole bundle. Those that cross from segment to segment are `hidden_0`,
`hidden_1`, … in the order in which they are made: the segment that makes one gives it, every later
segment that reads it takes it, and those between leave it alone. Segments that were exchanged do
not take and give the same names, even where their tensors have the same shapes.

A bundle may come from a stranger: names of files are plain names inside the folder, every number
has its range, what a segment takes must have been made before, and a file is opened only after its
sha256, which covers all its weights: none may lie in other files.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from compress.errors import UserInputError
from compress.files import check_readable, sha256_of, write_json
from compress.runtime import bundle_format_1
from compress.runtime.json_values import LARGEST, count, items, name, number, object_, pair, text
from compress.runtime.onnx_wire import has_external_data
from compress.runtime.preprocessing import Preprocessing
from compress.runtime.probe_file import ProbeFile
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

FORMAT = "compress.bundle/2"
MANIFEST = "manifest.json"
IMAGE = "image"
RESULTS = ("logits", "gate")  # what the host reads of a segment with an exit
RESERVED = (IMAGE, "hidden_in", "hidden", *RESULTS, "exit")  # no further output has these
ITEM_BYTES = {"float32": 4, "float16": 2, "int32": 4, "int64": 8, "bool": 1}  # of what may cross
FURTHER_DTYPES = ("float32", "float16", "int32")
PRECISIONS = ("fp32", "fp16", "int8")
MAX_MACS = 1 << 53
MAX_BYTES = 64 << 20  # of a manifest: class names are its only long part
MAX_SEGMENTS = 1 << 10
MAX_RANK = 8
MAX_OUTPUTS = 1 << 8  # of a segment, and as many inputs
MAX_TENSORS = 1 << 13  # of all segments, one counted wherever it is named
MAX_OPSET = 1 << 10
MAX_BATCH = 1 << 12
MAX_BATCH_BYTES = 16 << 30  # of all tensors of the largest batch that live at a time


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a segment.

    Attributes:
        name: in the bundle: "image", "logits", "gate", "hidden_0" and so on, or that of a further
            output, of letters, digits, _ and dots.
        dtype: "float32", "float16" or "int32"; of what crosses also "int64" or "bool".
        shape: of one image, without the batch: () of a gate.
        alias: its name in the file, where that is another: a file of format 1 has `hidden_in` and
            `hidden` for whatever it takes and gives.
    """

    name: str
    dtype: str
    shape: Tuple[int, ...]
    alias: Optional[str] = None

    @property
    def file_name(self) -> str:
        """Its name in the file of its segment, and in the engine."""
        return self.name if self.alias is None else self.alias

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return ITEM_BYTES[self.dtype] * _elements(self.shape)

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values, without an alias where there is none."""
        value: Dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        return value if self.alias is None else {**value, "alias": self.alias}


@dataclass(frozen=True)
class Segment:
    """One part of the network, up to an exit or to the end.

    Attributes:
        file: name of the ONNX file in the folder of the bundle.
        sha256: of that file.
        at: path of the module behind which its exit stands, such as "layer2.4"; None of the last
            segment, which ends at the final head.
        macs: multiply-adds of one image in this segment, its head and gate included.
        threshold: of its gate, in [0, 1]; None of the last segment, which has no gate.
        inputs: what it takes.
        outputs: what it gives: what crosses, then logits and gate, or further outputs.
        precision: "fp32", "fp16" or "int8".
    """

    file: str
    sha256: str
    at: Optional[str]
    macs: int
    threshold: Optional[float]
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]
    precision: str = "fp32"

    @property
    def stem(self) -> str:
        """Name of the file without its suffix, which an engine has too."""
        return Path(self.file).stem

    @property
    def gives(self) -> Tuple[TensorSpec, ...]:
        """What it makes for later segments; the last makes nothing for others."""
        if self.threshold is None:
            return ()
        return tuple(spec for spec in self.outputs if spec.name not in RESULTS)

    def output(self, name: str) -> TensorSpec:
        """Return the output of that name; KeyError where there is none."""
        return {spec.name: spec for spec in self.outputs}[name]

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON values."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        specs = {side: [spec.to_dict() for spec in found] for side, found in sides.items()}
        return {**vars(self), **specs}


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
        probe: images with what the files made of them, see compress.runtime.probe.
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
    probe: Optional[ProbeFile] = None

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

    def living(self, segment: int) -> Tuple[TensorSpec, ...]:
        """Return what lives on behind a segment, as it was made: the image, then what crosses.

        A tensor lives from the segment that makes it, and the image from the first, until the last
        segment that takes it has run.
        """
        later = {spec.name for part in self.segments[segment + 1 :] for spec in part.inputs}
        made = (spec for part in self.segments[: segment + 1] for spec in part.gives)
        return tuple(spec for spec in (self.image, *made) if spec.name in later)

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
        return {
            **vars(self),
            "format": FORMAT,
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "segments": [segment.to_dict() for segment in self.segments],
            "probe": self.probe.to_dict() if self.probe else None,
        }


def write_manifest(manifest: Manifest, bundle: Path) -> None:
    """Write `manifest.json`, whole or not at all, checked as a reader will.

    It is of this version's format, whichever the manifest was read from.
    """
    value = json.loads(json.dumps(manifest.to_dict(), allow_nan=False))
    _check_consistent(_parse(value))
    write_json(Path(bundle) / MANIFEST, value)


def read_manifest(bundle: Path, *, check_files: bool = True) -> Manifest:
    """Read and check the manifest of a bundle, of this format or the one before.

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
    if found == bundle_format_1.FORMAT:
        return bundle_format_1.upgraded(value)
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
        name=name(value["name"]),
        classes=items(value["classes"], text, empty=True),
        preprocessing=None if pre is None else Preprocessing.from_dict(pre),
        batch=_batch(value["batch"]),
        target=name(value["target"]),
        opset=count(value["opset"], smallest=1, largest=MAX_OPSET),
        segments=items(value["segments"], _segment, most=MAX_SEGMENTS),
        parity=object_(value["parity"]),
        provenance=object_(value["provenance"]),
        notes=object_(value["notes"]),
        probe=ProbeFile.from_json(value.get("probe")),
    )


def _segment(value: Mapping[str, Any]) -> Segment:
    threshold, at = value["threshold"], value["at"]
    if threshold is not None:
        (threshold,) = check_thresholds([number(threshold)], 1)
    file, sha256 = text(value["file"]), text(value["sha256"])
    if file != Path(file).name or not file.endswith(".onnx") or file.startswith("."):
        raise ValueError(f"file {file!r:.60} is not a plain name that ends with .onnx")
    if not file.isprintable() or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"file {file!r:.60} with sha256 {sha256!r:.80}")
    if value["precision"] not in PRECISIONS:
        raise ValueError(f"precision {value['precision']!r:.60}")
    return Segment(
        file=file,
        sha256=sha256,
        at=None if at is None else name(at),
        macs=count(value["macs"], largest=MAX_MACS),
        threshold=threshold,
        inputs=items(value["inputs"], _tensor, most=MAX_OUTPUTS),
        outputs=items(value["outputs"], _tensor, most=MAX_OUTPUTS),
        precision=value["precision"],
    )


def _tensor(value: Mapping[str, Any]) -> TensorSpec:
    shape = items(value["shape"], lambda size: count(size, smallest=1), empty=True, most=MAX_RANK)
    dtype, alias = text(value["dtype"]), value.get("alias")
    if _elements(shape) > LARGEST or dtype not in ITEM_BYTES:
        raise ValueError(f"a tensor of shape {list(shape)} and type {dtype!r:.60}")
    return TensorSpec(
        name=name(value["name"]),
        dtype=dtype,
        shape=shape,
        alias=None if alias is None else name(alias),
    )


def _batch(value: Any) -> Tuple[int, int]:
    batch = pair(value, smallest=1, largest=MAX_BATCH)
    if batch[0] != 1:  # images leave one by one, so any number may travel on
        raise ValueError(f"batches from {batch[0]} images on")
    return batch


def _check_consistent(manifest: Manifest) -> None:
    """Raise ValueError unless the segments are those of one network, in their order."""
    named = sum(len(s.inputs) + len(s.outputs) for s in manifest.segments)
    if named > MAX_TENSORS:
        raise ValueError(f"its segments name {named} tensors, more than {MAX_TENSORS}")
    _check_image(manifest)
    for segment in manifest.segments:
        _check_names(segment)
        _check_results(manifest, segment)
    if len({segment.file for segment in manifest.segments}) < len(manifest.segments):
        raise ValueError("two segments in one file")
    _check_positions(manifest)
    _check_crossing(manifest)
    _check_memory(manifest)


def _check_image(manifest: Manifest) -> None:
    first, image = manifest.segments[0], manifest.image
    if len(first.inputs) != 1 or image.name != IMAGE:
        taken = ", ".join(spec.name for spec in first.inputs)
        raise ValueError(f"the first segment takes {taken:.200}, expected the image alone")
    if image.dtype != "float32" or len(image.shape) != 3:
        raise ValueError(f"the first segment takes {image.dtype} images of {list(image.shape)}")
    if manifest.preprocessing is not None:
        prepared = manifest.preprocessing.shape
        if image.shape != prepared:
            raise ValueError(f"images of {list(image.shape)}, preprocessing to {list(prepared)}")


def _check_names(segment: Segment) -> None:
    """Raise ValueError unless every tensor of a segment has a name of its own."""
    specs = (*segment.inputs, *segment.outputs)
    for names in ([spec.name for spec in specs], [spec.file_name for spec in specs]):
        twice = next((each for each in names if names.count(each) > 1), None)
        if twice is not None:
            raise ValueError(f"{segment.file} has two tensors of the name {twice!r:.60}")


def _check_results(manifest: Manifest, segment: Segment) -> None:
    """Raise ValueError unless a segment gives what crosses, then what the host reads."""
    is_last = segment is manifest.segments[-1]
    if (segment.threshold is None) != is_last:
        raise ValueError(f"{segment.file} has the threshold {segment.threshold}")
    wanted = _result_names(manifest, segment)
    if tuple(output.name for output in segment.outputs) != wanted:
        raise ValueError(f"{segment.file} does not give {', '.join(wanted):.200}, and no more")
    classes = len(manifest.classes)
    if "logits" in wanted and _kind(segment.output("logits")) != ("float32", (classes,)):
        raise ValueError(f"{segment.file} gives other logits than {classes} classes")
    if not is_last and _kind(segment.output("gate")) != ("float32", ()):
        raise ValueError(f"{segment.file} gives a gate of another shape")


def _result_names(manifest: Manifest, segment: Segment) -> Tuple[str, ...]:
    """Return what a segment must give; of a network without exits, what it gives, once checked."""
    if segment is not manifest.segments[-1]:
        return (*(spec.name for spec in segment.gives), *RESULTS)
    if manifest.exits:
        return ("logits",)
    logits = ("logits",) if manifest.classes else ()
    for spec in manifest.further_outputs:
        if spec.name in RESERVED or not re.fullmatch(r"[A-Za-z0-9_.]+", spec.name):
            raise ValueError(f"{segment.file} gives {spec.name!r:.60}, which is no name of its own")
        if spec.dtype not in FURTHER_DTYPES:
            raise ValueError(f"{segment.file} gives {spec.name!r:.60} of type {spec.dtype}")
    return (*logits, *(spec.name for spec in manifest.further_outputs))


def _check_positions(manifest: Manifest) -> None:
    """Raise ValueError unless every exit stands behind a module of its own."""
    places = [segment.at for segment in manifest.segments]
    for segment, at in zip(manifest.segments, places):
        if (at is None) != (segment.threshold is None) or at == "":
            raise ValueError(f"{segment.file} has its exit at {at!r:.60}")
        if places.count(at) > 1:
            raise ValueError(f"two exits at {at!r:.60}")


def _check_crossing(manifest: Manifest) -> None:
    """Raise ValueError unless every tensor is made once, and taken later, as it was made."""
    made = {IMAGE: manifest.image}
    taken = set()
    for segment in manifest.segments:
        for spec in segment.inputs:
            source = made.get(spec.name)
            if source is None:
                raise ValueError(
                    f"{segment.file} takes {spec.name!r:.60}, which no segment before it gives"
                )
            if _kind(source) != _kind(spec):
                raise ValueError(f"{segment.file} takes {spec.name} of another type or shape")
            taken.add(spec.name)
        for spec in segment.gives:
            expected = f"hidden_{len(made) - 1}"
            if spec.name != expected:
                raise ValueError(f"{segment.file} gives {spec.name!r:.60}, expected {expected}")
            made[spec.name] = spec
    unread = next((each for each in made if each not in taken), None)
    if unread is not None:
        raise ValueError(f"no segment takes {unread}")


def _check_memory(manifest: Manifest) -> None:
    largest = max(_bytes_at_a_time(manifest))
    if manifest.batch[1] * largest > MAX_BATCH_BYTES:
        raise ValueError(f"batches of {manifest.batch[1]} images of {largest} bytes at a time")


def _bytes_at_a_time(manifest: Manifest) -> Iterator[int]:
    """Yield the bytes of one image in all tensors that are there while each segment runs."""
    waiting: Tuple[TensorSpec, ...] = (manifest.image,)
    for i, segment in enumerate(manifest.segments):
        yield sum(spec.image_bytes for spec in (*waiting, *segment.outputs))
        waiting = manifest.living(i)


def _kind(spec: TensorSpec) -> Tuple[str, Tuple[int, ...]]:
    return spec.dtype, spec.shape


def _elements(shape: Tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
