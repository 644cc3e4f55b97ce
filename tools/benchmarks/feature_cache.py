"""An epoch of exit training on cached features against one through the backbone.

    python tools/benchmarks/feature_cache.py [--network gfnet_12_192] [--images 256]

Both sides train the same heads and gates of a frozen network on the same random images, by the same
loop and in the same order: one reads features from the disk, the other runs the backbone. Epochs
are timed by the loop, without evaluation and checkpoints; the median epoch of each side counts.
Filling the cache is timed besides: it costs about an epoch, once.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from compress.measure.versions import hardware
from compress.models.gfnet import GFNET_VARIANTS, gfnet
from compress.models.gfnet_dynn import GFNetDynn, gfnet_with_exits
from compress.training.exit_config import ExitTrainingConfig
from compress.training.exit_training import train_exits
from compress.training.feature_cache import cached_features

CLASSES = 10
SIDE = 224
GOOD = 50  # times


@dataclass
class RandomImages:
    """A split of random pixels."""

    count: int
    seed: int
    pixels: Tensor = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.labels = torch.randint(CLASSES, (self.count,), generator=generator)
        shape = (self.count, 3, SIDE, SIDE)
        self.pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.count

    def images(self, indices: Tensor) -> Tensor:
        """Return uint8 images (B, 3, S, S)."""
        return self.pixels[indices]


@dataclass
class RandomData:
    """Random images as training data."""

    splits: dict[str, Any]
    name: str = "random"
    classes: tuple[str, ...] = tuple(map(str, range(CLASSES)))
    sha256: str = "0" * 64
    preprocessing: Any = field(
        default_factory=lambda: SimpleNamespace(to_dict=lambda: {"image_size": SIDE})
    )

    def normalize(self, images: Tensor) -> Tensor:
        """Return float32 images in [-1, 1]."""
        return images.float() / 127.5 - 1


def main() -> None:
    """Measure both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=GFNET_VARIANTS, default="gfnet_12_192")
    parser.add_argument("--images", type=int, default=256, help="training images (256)")
    parser.add_argument("--batch-size", type=int, default=64, help="(64)")
    parser.add_argument("--exits", type=int, nargs="+", default=[3, 5, 7, 9], help="(3 5 7 9)")
    args = parser.parse_args()
    splits = {"train": RandomImages(args.images, 1), "validation": RandomImages(8, 2)}
    data = RandomData(splits=splits)
    torch.manual_seed(0)
    network = gfnet(args.network, num_classes=CLASSES, image_size=SIDE)
    model = gfnet_with_exits(network.eval(), args.exits)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cached_features(model, data, Path(folder) / "features")
        filling = time.perf_counter() - started
        seconds = {
            side: _epoch_seconds(model, data, Path(folder), args.batch_size, cached=cached)
            for side, cached in {"cache": True, "backbone": False}.items()
        }
    machine = hardware()
    print(f"{machine['cpu']}, {machine['torch_threads']} threads, {machine['cuda'] or 'no GPU'}")
    print(f"{args.network} at {SIDE}, {args.images} images, {len(args.exits)} exits")
    print(f"filling the cache:         {filling:8.3f} s, once")
    for side, value in seconds.items():
        print(f"an epoch from the {side + ':':<9}{value:8.3f} s")
    ratio = seconds["backbone"] / seconds["cache"]
    print(f"backbone / cache: {ratio:.0f} times (> {GOOD} times is good)")


def _epoch_seconds(
    model: GFNetDynn, data: RandomData, folder: Path, batch_size: int, *, cached: bool
) -> float:
    """The median epoch of a main stage, after one to warm up."""
    config = ExitTrainingConfig(
        epochs=9 if cached else 3,
        batch_size=batch_size,
        head_warmup_epochs=0,
        cache_features=cached,
    )
    run_dir = folder / ("cached" if cached else "through")
    twin = gfnet_with_exits(model, model.config["exits"])
    cache = folder / "features"
    result = train_exits(twin, data, config, run_dir, cache_dir=cache)
    return statistics.median(record["time_s"] for record in result.main.history[1:])


if __name__ == "__main__":
    main()
