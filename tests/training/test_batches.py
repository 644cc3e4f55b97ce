import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.data.prefetch import prefetched
from compress.errors import UserInputError
from compress.training.batches import derived_seed, plan_batches, prepare_images
from tests.training.fakes import fake_data


@given(
    images=st.integers(1, 200),
    per_slice=st.integers(1, 8),
    slices=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_an_epoch_draws_no_image_twice_and_misses_less_than_a_batch(
    images: int, per_slice: int, slices: int, seed: int
) -> None:
    if images < slices:
        with pytest.raises(UserInputError, match="training split has"):
            plan_batches(images, batch_size=per_slice * slices, slices=slices)
        return
    plan = plan_batches(images, batch_size=per_slice * slices, slices=slices)
    order = plan.order(seed=seed, epoch=3)
    drawn = order.flatten().tolist()
    assert order.shape == (plan.steps, slices, plan.slice_size)
    assert len(set(drawn)) == len(drawn) == plan.images_per_epoch
    assert set(drawn) <= set(range(images))
    missed = images - len(drawn)
    assert missed < (per_slice * slices if images >= per_slice * slices else slices)


def test_how_a_step_is_divided_does_not_change_its_images() -> None:
    whole = plan_batches(50, batch_size=12, slices=1).order(seed=7, epoch=2)
    divided = plan_batches(50, batch_size=12, slices=4).order(seed=7, epoch=2)
    assert torch.equal(whole.flatten(1), divided.flatten(1))


def test_the_order_depends_on_seed_and_epoch() -> None:
    plan = plan_batches(50, batch_size=10, slices=1)
    first = plan.order(seed=0, epoch=0)
    assert torch.equal(first, plan.order(seed=0, epoch=0))
    assert not torch.equal(first, plan.order(seed=0, epoch=1))
    assert not torch.equal(first, plan.order(seed=1, epoch=0))


def test_a_set_smaller_than_a_batch_is_one_step() -> None:
    plan = plan_batches(7, batch_size=128, slices=2)
    assert (plan.steps, plan.slice_size) == (1, 3)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserInputError, match="batch_size is 10; expected a multiple of 4"):
        plan_batches(100, batch_size=10, slices=4)


def test_derived_seeds_differ_by_every_part() -> None:
    parts = [("a", s, p) for s in range(30) for p in range(30)]
    seeds = {derived_seed(*part) for part in parts} | {derived_seed("a", 1), derived_seed("a", 11)}
    assert len(seeds) == 902
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("a", 1, 11) != derived_seed("a", 11, 1)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetching_keeps_the_order(workers: int) -> None:
    def load(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(prefetched(load, range(20), workers=workers)) == [n * n for n in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetching_passes_an_error_on(workers: int) -> None:
    def load(item: int) -> int:
        if item == 3:
            raise UserInputError("image 3 is damaged")
        return item

    with pytest.raises(UserInputError, match="image 3 is damaged"):
        list(prefetched(load, range(9), workers=workers))


def test_prefetching_stops_its_threads_when_it_is_left() -> None:
    loading = prefetched(lambda item: item, range(1000), workers=2)
    next(loading)
    loading.close()
    assert not any(thread.name.startswith("load") for thread in threading.enumerate())


def test_images_are_normalised_and_targets_one_hot() -> None:
    data = fake_data()
    images = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    batch = prepare_images(data)(images, torch.tensor([2, 0]), 5)
    assert torch.equal(batch.images, torch.ones(2, 3, 4, 4))
    assert batch.targets.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_an_augmentation_gets_the_seed() -> None:
    seen = []

    def augment(images: torch.Tensor, labels: torch.Tensor, *, seed: int):
        seen.append(seed)
        return images.float(), torch.full((len(labels), 3), 1 / 3)

    prepare_images(fake_data(), augment)(torch.zeros(1, 3, 4, 4), torch.tensor([0]), 41)
    assert seen == [41]
