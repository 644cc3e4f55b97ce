import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits

from compress.data.spec import load_data
from compress.data.splits import SPLITS
from compress.errors import UserInputError


def test_digits_are_whole_split_and_stratified() -> None:
    data = load_data("digits")
    assert data.name == "digits"
    assert data.classes == tuple("0123456789")
    assert tuple(data.splits) == SPLITS
    sizes = {split: len(part) for split, part in data.splits.items()}
    assert sum(sizes.values()) == 1797
    for split, share in zip(SPLITS, (0.50, 0.10, 0.15, 0.25), strict=True):
        assert abs(sizes[split] - 1797 * share) < 5  # ten classes, each rounded by less than one
        assert data.splits[split].labels.unique().tolist() == list(range(10))
    places = torch.cat([part.positions for part in data.splits.values()])
    assert places.sort().values.tolist() == list(range(1797))


def test_digits_at_their_own_size_are_the_originals() -> None:
    data = load_data("digits", image_size=8)
    original = sklearn_digits()
    for part in data.splits.values():
        images = part.images(torch.arange(len(part)))
        assert images.dtype == torch.uint8
        assert torch.equal(images[:, 0], images[:, 2])
        grey = original.images[part.positions.numpy()]
        assert np.abs(images[:, 1].numpy() / 255 - grey / 16).max() <= 0.5 / 255 + 1e-9
        assert np.array_equal(part.labels.numpy(), original.target[part.positions.numpy()])


def test_digits_are_resized_by_pillow() -> None:
    test = load_data("digits", image_size=20).splits["test"]
    place = int(test.positions[0])
    grey = np.rint(sklearn_digits().images[place] / 16 * 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(grey).resize((20, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(test.images(torch.tensor([0]))[0, 1].numpy(), expected)


def test_seed_and_size_change_the_identity_and_a_second_load_does_not() -> None:
    base = load_data("digits", image_size=8)
    assert load_data("digits", image_size=8).sha256 == base.sha256
    assert load_data("digits", image_size=9).sha256 != base.sha256
    other = load_data("digits", image_size=8, seed=1)
    assert other.sha256 != base.sha256
    assert not torch.equal(other.splits["test"].positions, base.splits["test"].positions)


@pytest.mark.parametrize("spec", ["", "mnist", "mnist:x", "digits:x", "cifar10", "folder:"])
def test_unknown_data_names_the_kinds(spec: str) -> None:
    with pytest.raises(UserInputError, match="digits, cifar10:DIR, cifar100:DIR, folder:DIR"):
        load_data(spec)


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(UserInputError, match=f"image size is {size}; expected at least 1"):
        load_data("digits", image_size=size)
