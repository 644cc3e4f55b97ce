import contextlib
import json
import random
import tracemalloc
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from compress.data.spec import load_data
from compress.errors import CompressError, UserInputError
from compress.exits.replay import decide, fill_replay, load_replay, save_replay
from compress.measure.accuracy import evaluate_accuracy
from compress.measure.exit_macs import macs_per_exit
from compress.models.gfnet_dynn import GFNetDynn
from tests.exit_networks import KINDS, gfnet
from tests.exits.tables import SOURCE, random_table


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=16)


@pytest.fixture(scope="module")
def network():
    return gfnet()


@pytest.fixture(scope="module", params=[*KINDS])
def any_network(request):
    return KINDS[request.param]()


def fill(network, split, digits, batch_size):
    return fill_replay(
        network, split, digits.normalize, SOURCE, batch_size=batch_size, progress=False
    )


class First:
    """The first images of a split."""

    def __init__(self, split, count: int) -> None:
        self.split, self.labels = split, split.labels[:count]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int):
        for start in range(0, len(self), batch_size):
            indices = torch.arange(start, min(start + batch_size, len(self)))
            yield self.split.images(indices), self.labels[indices]


def test_the_early_return_takes_the_very_decisions_of_the_table(any_network, digits):
    network = any_network
    split = First(digits.splits["test"], 100)
    table = fill(network, split, digits, batch_size=1)
    scores = np.sort(table.scores.ravel())
    # Thresholds that lie exactly on scores are the hardest: >= must hold there too.
    for bar in [0.5, float(scores[150]), float(scores[200]), float(scores[250])]:
        taken = decide(table, bar)
        assert len(set(taken.tolist())) > 1
        for n, (image, _) in enumerate(split.batches(1)):
            logits, number = network.forward_early(digits.normalize(image), bar)
            assert number == taken[n]
            assert torch.equal(logits[0], torch.from_numpy(table.logits[n, number]))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"depth": 40}, id="39-exits"),  # enough for torch to take another sigmoid
        pytest.param({"depth": 4, "distilled": True}, id="two-heads"),
        pytest.param({"depth": 4, "distilled": True, "exit_dist_heads": False}, id="mean-token"),
    ],
)
def test_scores_are_those_of_the_early_return_to_the_last_bit(config, digits):
    torch.manual_seed(1)
    exits = config["depth"] - 1
    model = GFNetDynn(
        exits=range(exits), image_size=16, patch_size=4, width=8, num_classes=10, **config
    ).eval()
    for head, gate in zip(model.intermediate_heads, model.gates, strict=True):
        head.weight.data.normal_(0, 1)
        gate.linear.weight.data.normal_(0, 2)
    split = First(digits.splits["test"], 2)
    table = fill(model, split, digits, batch_size=1)
    for n, (image, _) in enumerate(split.batches(1)):
        inputs = digits.normalize(image)
        for i, score in enumerate(table.scores[n].tolist()):
            never = [1.0] * (exits - i - 1)
            assert model.forward_early(inputs, [1.0] * i + [score] + never)[1] == i
            above = float(np.nextafter(np.float32(score), np.float32(2)))
            assert model.forward_early(inputs, [1.0] * i + [above] + never)[1] == exits


def test_batches_differ_only_where_a_score_touches_the_threshold(any_network, digits):
    network = any_network
    split = First(digits.splits["test"], 100)
    one, many = (fill(network, split, digits, batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(many.scores, one.scores, atol=1e-5)
    np.testing.assert_allclose(many.logits, one.logits, atol=1e-4)
    near = (np.abs(one.scores - 0.5) < 1e-5).any(axis=1)
    assert (decide(one, 0.5) == decide(many, 0.5))[~near].all()


def test_the_last_exit_is_the_whole_network(network, digits):
    table = fill(network, digits.splits["validation"], digits, batch_size=64)
    found = evaluate_accuracy(
        network, digits.splits["validation"], digits.normalize, progress=False
    )
    assert table.correct[:, -1].sum() == found.correct


def test_costs_of_any_subset_are_those_of_the_network_with_these_exits_alone(any_network, digits):
    table = fill(any_network, First(digits.splits["test"], 4), digits, batch_size=4)
    for numbers in ([1], [0, 2], [0, 1, 2]):
        positions = [any_network.positions[number] for number in numbers]
        costs = table.macs_of(table.subset(positions))[[*numbers, 3]]
        alone = any_network.with_positions(positions)
        assert costs.tolist() == macs_per_exit(alone, (3, 16, 16))


def test_costs_of_a_subset_leave_out_the_other_exits(network, digits):
    table = fill(network, First(digits.splits["test"], 4), digits, batch_size=4)
    alone = table.macs_of(np.array([1]))
    head_and_gate = 16 * 10 + 4
    assert table.check_macs.tolist() == [head_and_gate] * 3
    assert alone[1] == table.macs[1] - head_and_gate
    assert alone[-1] == table.macs[-1] - 2 * head_and_gate


def test_round_trip(tmp_path):
    table = random_table(20, 3, 5, 0)
    save_replay(table, tmp_path / "t.npz")
    found = load_replay(tmp_path / "t.npz")
    for name in ("logits", "scores", "labels", "macs", "check_macs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))
    assert (found.positions, found.depth, found.source) == (table.positions, 4, table.source)


@pytest.mark.parametrize("depth", [0, 4])
def test_round_trip_of_paths(tmp_path, depth):
    positions = (0, 1, 2) if depth else ("stem", 1, "layer2.0")
    table = replace(random_table(20, 3, 5, 0), positions=positions, depth=depth)
    save_replay(table, tmp_path / "t.npz")
    found = load_replay(tmp_path / "t.npz")
    assert (found.positions, found.depth) == (positions, depth)
    assert found.last == (3 if depth else "final head")


def test_a_table_of_the_format_before_is_read(tmp_path):
    path = tmp_path / "t.npz"
    table = random_table(20, 3, 5, 0)
    save_replay(table, path)
    with np.load(path) as file:
        content = dict(file)
    head = '{"format": "compress.replay/1", "positions": [0, 1, 2], "depth": 4, "source": '
    content["head"] = np.array(head + json.dumps(asdict(SOURCE)) + "}")
    np.savez(path, **content)
    found = load_replay(path)
    assert (found.positions, found.depth, found.source) == ((0, 1, 2), 4, SOURCE)


@pytest.mark.parametrize(
    ("positions", "depth"),
    [
        pytest.param(["layer1", "layer1", "layer2"], 0, id="twice"),
        pytest.param(["blocks.1", 1, 2], 0, id="twice-by-two-names"),
        pytest.param(["layer1", "layer2", "x" * 201], 0, id="too-long"),
        pytest.param(["layer1", "layer2", "a\u001b[2J"], 0, id="a-terminal-would-obey"),
        pytest.param(["layer1", "layer2", "a,b"], 0, id="two-in-one"),
        pytest.param(["layer1", "layer2", "final head"], 0, id="the-name-of-the-final-head"),
        pytest.param(["layer1", "layer2", ""], 0, id="empty"),
        pytest.param(["layer1", "layer2", None], 0, id="none"),
        pytest.param(["layer1", "layer2", True], 0, id="true"),
        pytest.param([0, 1, 1.5], 4, id="half-a-block"),
        pytest.param([0, 1, -1], 0, id="negative"),
        pytest.param([0, 1, "layer2"], 4, id="a-path-among-blocks"),
        pytest.param([0, 2, 1], 4, id="out-of-order"),
        pytest.param([0, 1, 3], 4, id="the-last-block"),
        pytest.param([0, 1, 2], -4, id="negative-depth"),
    ],
)
def test_positions_that_cannot_be(tmp_path, positions, depth):
    path = tmp_path / "t.npz"
    save_replay(random_table(20, 3, 5, 0), path)
    with np.load(path) as file:
        content = dict(file)
    head = {**json.loads(str(content["head"])), "positions": positions, "depth": depth}
    np.savez(path, **{**content, "head": np.array(json.dumps(head))})
    with pytest.raises(UserInputError, match=r"t\.npz cannot be used") as told:
        load_replay(path)
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    "damage",
    ["truncate", "pickle", "labels", "shape", "type", "order", "scores", "nan", "head", "depth",
     "format"],
)  # fmt: skip
def test_damaged_tables(tmp_path, damage):
    path = tmp_path / "t.npz"
    table = random_table(20, 3, 5, 0)
    save_replay(table, path)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        with np.load(path) as file:
            content = dict(file)
        if damage == "pickle":
            content["labels"] = np.array([print] * 20, dtype=object)
        elif damage == "labels":
            content["labels"] = content["labels"] + 5
        elif damage == "shape":
            content["scores"] = content["scores"][:-1]
        elif damage == "type":
            content["logits"] = content["logits"].astype(np.float64)
        elif damage == "scores":
            content["scores"][0, 0] = 1.5
        elif damage == "nan":
            content["logits"][0, -1] = np.nan
        elif damage == "head":
            content["head"] = np.array("[" * 100_000)
        elif damage == "depth":
            content["head"] = np.array(str(content["head"]).replace('"depth": 4', '"depth": 9e15'))
        elif damage == "format":
            content["head"] = np.array(str(content["head"]).replace("replay/2", "replay/3"))
        else:
            content["macs"] = content["macs"][::-1]
        np.savez(path, **content)
    with pytest.raises(
        UserInputError, match=r"replay table .*t\.npz cannot be used .* make it again"
    ):
        load_replay(path)


def test_an_empty_split(network, digits):
    with pytest.raises(UserInputError, match="split of made up is empty"):
        fill(network, First(digits.splits["test"], 0), digits, batch_size=4)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    table = random_table(20, 3, 5, 0)
    save_replay(table, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as file:
        content = {**file, "logits": np.zeros((2_000_000, 4, 5), dtype=np.float32)}
    np.savez_compressed(tmp_path / "t.npz", **content)
    assert (tmp_path / "t.npz").stat().st_size < 2**20
    with pytest.raises(UserInputError, match="compressed, which could hide any size"):
        load_replay(tmp_path / "t.npz")


def claims_more():
    """A member whose header says 8 GB; its few bytes are stored, and the file stays small."""
    header = np.lib.format.magic(1, 0)
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 4, 5), }"
    text = text.ljust(118 - 1) + "\n"
    return header + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 80


def test_a_header_that_claims_more_than_the_file_holds(tmp_path):
    save_replay(random_table(20, 3, 5, 0), tmp_path / "t.npz")
    with zipfile.ZipFile(tmp_path / "t.npz") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["logits.npy"] = claims_more()
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        for name, held in content.items():
            archive.writestr(name, held)
    tracemalloc.start()
    with pytest.raises(UserInputError, match=r"logits.npy claims 8000000128 bytes of 208"):
        load_replay(tmp_path / "t.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_random_damage_is_bad_input_and_nothing_else(tmp_path):
    path = tmp_path / "t.npz"
    save_replay(random_table(20, 3, 5, 0), path)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(
            damaged[: draw.randrange(len(damaged))] if draw.random() < 0.3 else damaged
        )
        with contextlib.suppress(UserInputError):  # anything else is a failure
            load_replay(path)


def test_a_broken_exit_never_fires_and_is_never_right(digits, network):
    broken = network.with_positions([0, 1, 2])
    torch.nn.init.constant_(broken.intermediate_heads[1].bias, float("nan"))
    table = fill(broken, First(digits.splits["test"], 50), digits, batch_size=16)
    assert np.isnan(table.scores[:, 1]).all()
    assert 1 not in decide(table, 0.0, exits=np.array([1, 2]))
    assert not table.correct[:, 1].any()


def test_a_broken_final_head_is_an_error(digits, network):
    broken = network.with_positions([0, 1, 2])
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    with pytest.raises(CompressError, match="NaN or infinity for 8 of 8 images"):
        fill(broken, First(digits.splits["test"], 8), digits, batch_size=4)
