import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compress.data.augment import Augment, AugmentConfig
from compress.data.image_data import Preprocessing
from compress.data.mixing import cut_box, cutmix, mixup
from compress.errors import UserInputError

SIZE, CLASSES = 12, 5
PREPROCESSING = Preprocessing(
    image_size=SIZE,
    resize="pillow-bicubic",
    resize_size=SIZE,
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.25, 1.0),
)
PLAIN = Preprocessing(
    image_size=SIZE, resize="pillow-bicubic", resize_size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3
)
EVERYTHING = AugmentConfig(
    random_crop_padding=2,
    horizontal_flip=True,
    rand_augment=True,
    color_jitter=0.4,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)
SINGLE = {
    "crop": AugmentConfig(random_crop_padding=2),
    "flip": AugmentConfig(horizontal_flip=True),
    "rand_augment": AugmentConfig(rand_augment=True),
    "color_jitter": AugmentConfig(color_jitter=0.4),
    "mixup": AugmentConfig(mixup_alpha=0.8),
    "cutmix": AugmentConfig(cutmix_alpha=1.0),
    "everything": EVERYTHING,
}


def batch(size: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (size, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.arange(size) % CLASSES


@pytest.mark.parametrize("config", SINGLE.values(), ids=SINGLE.keys())
def test_the_seed_decides_everything_and_the_global_state_stays(config: AugmentConfig) -> None:
    augment = Augment(config, CLASSES, PREPROCESSING)
    images, labels = batch()
    original = images.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(images, labels, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.rand(5)
    np.random.seed(4)  # noqa: NPY002  # the global generator must not matter
    other = augment(images, labels, seed=8)
    again = augment(images, labels, seed=7)
    fresh = Augment(config, CLASSES, PREPROCESSING)(images, labels, seed=7)
    for repeated in (again, fresh):
        assert torch.equal(first[0], repeated[0])
        assert torch.equal(first[1], repeated[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, original)
    inputs, targets = first
    assert (inputs.shape, inputs.dtype) == ((20, 3, SIZE, SIZE), torch.float32)
    assert (targets.shape, targets.dtype) == ((20, CLASSES), torch.float32)
    assert torch.isfinite(inputs).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(20))


def test_with_everything_off_nothing_changes() -> None:
    images, labels = batch()
    inputs, targets = Augment(AugmentConfig(), CLASSES, PREPROCESSING)(images, labels, seed=0)
    assert torch.equal(inputs, PREPROCESSING.normalize(images))
    assert torch.equal(targets, torch.eye(CLASSES)[labels])


@pytest.mark.parametrize("name", ["crop", "flip", "rand_augment", "color_jitter", "everything"])
def test_pixels_stay_in_range(name: str) -> None:
    images, labels = batch()
    inputs, _ = Augment(SINGLE[name], CLASSES, PLAIN)(images, labels, seed=1)
    assert inputs.min() >= -1e-6
    assert inputs.max() <= 1 + 1e-6


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    images, labels = batch(8)
    inputs, _ = Augment(SINGLE["crop"], CLASSES, PLAIN)(images, labels, seed=1)
    padded = torch.nn.functional.pad(images.float() / 255, (2, 2, 2, 2))
    offsets = set()
    for image, cut in zip(padded, inputs, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image[:, top : top + SIZE, left : left + SIZE], cut)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 1  # each image has its own


def test_flips_mirror_about_half_of_the_images() -> None:
    images, labels = batch(200)
    inputs, _ = Augment(SINGLE["flip"], CLASSES, PLAIN)(images, labels, seed=1)
    pixels = images.float() / 255
    flipped = (inputs == pixels.flip(-1)).flatten(1).all(1)
    kept = (inputs == pixels).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 60 < flipped.sum() < 140  # five standard deviations around 100


def test_rand_augment_varies_within_a_batch() -> None:
    images = torch.full((64, 3, SIZE, SIZE), 90, dtype=torch.uint8)
    images[:, :, ::2] = 200
    labels = torch.zeros(64, dtype=torch.int64)
    inputs, _ = Augment(SINGLE["rand_augment"], CLASSES, PLAIN)(images, labels, seed=1)
    assert len(inputs[::16].flatten(1).unique(dim=0)) > 1


def test_mixup_by_hand() -> None:
    images, targets = torch.rand(6, 3, 4, 4), torch.eye(6)
    mixed, soft = mixup(images, targets, alpha=0.8, rng=np.random.default_rng(5))
    rng = np.random.default_rng(5)
    share = rng.beta(0.8, 0.8)
    partner = rng.permutation(6)
    for image in range(6):
        other = partner[image]
        torch.testing.assert_close(
            mixed[image], share * images[image] + (1 - share) * images[other]
        )
        assert soft[image].sum().item() == pytest.approx(1)
        if other != image:
            assert soft[image, image].item() == pytest.approx(share)


@given(st.integers(0, 10_000))
def test_cutmix_targets_are_the_areas(seed: int) -> None:
    count = 6
    images = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 3, 9, 7)
    mixed, soft = cutmix(images, torch.eye(count), alpha=1.0, rng=np.random.default_rng(seed))
    for source in range(count):  # pixels tell which image they came from
        share = (mixed[:, 0] == source).flatten(1).float().mean(1)
        torch.testing.assert_close(soft[:, source], share)


@pytest.mark.parametrize(
    ("share", "centre", "expected"),
    [
        pytest.param(0.75, (4, 4), (2, 6, 2, 6), id="inside"),
        pytest.param(0.75, (0, 7), (0, 2, 5, 8), id="clipped"),
        pytest.param(1.0, (3, 3), (3, 3, 3, 3), id="nothing"),
        pytest.param(0.0, (4, 4), (0, 8, 0, 8), id="all"),
    ],
)
def test_boxes_by_hand(share: float, centre: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert cut_box(share, centre, (8, 8)) == expected


def test_mixup_and_cutmix_take_turns() -> None:
    images = torch.zeros(8, 3, SIZE, SIZE, dtype=torch.uint8)
    images[4:] = 255
    labels = torch.zeros(8, dtype=torch.int64)
    augment = Augment(AugmentConfig(mixup_alpha=1.0, cutmix_alpha=1.0), CLASSES, PLAIN)
    blended = 0
    for seed in range(60):
        inputs, _ = augment(images, labels, seed=seed)
        blended += bool(((inputs > 0) & (inputs < 1)).any())  # CutMix leaves black and white
    assert 15 < blended < 45


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("random_crop_padding", -1),
        ("mixup_alpha", -0.1),
        ("cutmix_alpha", float("nan")),
        ("rand_augment_ops", 0),
        ("rand_augment_magnitude", 30),
        ("color_jitter", 1.5),
    ],
)
def test_settings_out_of_range_are_told(field: str, value: float) -> None:
    with pytest.raises(UserInputError, match=f"{field} is .*; expected"):
        AugmentConfig(**{field: value})  # type: ignore[arg-type]


def test_kornia_is_imported_for_what_needs_it_alone() -> None:
    code = """
import sys
from compress.data.augment import Augment, AugmentConfig
from compress.data.spec import load_data
data = load_data("digits", image_size=8)
Augment(AugmentConfig(mixup_alpha=1, cutmix_alpha=1), 10, data.preprocessing)
assert "kornia" not in sys.modules and "torchvision" not in sys.modules
Augment(AugmentConfig(horizontal_flip=True), 10, data.preprocessing)
assert "kornia" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
