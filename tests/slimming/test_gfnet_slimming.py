import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compress
from compress.errors import UserInputError
from compress.measure.exit_macs import macs_per_exit
from compress.models import infer
from compress.models.frequency_scale import with_frequency_scale
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.global_filter import with_matrix_filters
from compress.models.hidden_scale import with_hidden_scale
from compress.slim import main
from compress.slimming.scales import channel_scales
from compress.slimming.slim import SlimOptions, slim_model
from compress.training.objectives import with_gamma_penalty
from tests.models import published_gfnet as published

TINY = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 3, "num_classes": 5}
HIDDEN = 3 * 32  # units in all blocks
FREQUENCIES = 3 * 10  # of a 4x4 grid as of the 3x6 grid of the distilled form
BOTH = ("hidden", "frequency")
FREE = SlimOptions(round_to=1, min_channels=1)
SMALL = ["--no-latency", "--round-to", "2", "--min-channels", "2"]
KINDS = ["plain", "distilled", "exits"]


def network(kind: str = "plain", *, seed: int = 0, **config: object) -> GFNet:
    """A network in which every tensor is random, none at its start value."""
    torch.manual_seed(seed)
    config = {**TINY, **config}
    if kind == "exits":
        model: GFNet = GFNetDynn(exits=[0, 1], **config)
    else:
        model = GFNet(**config, distilled=kind == "distilled")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def scaled(kind: str, seed: int = 0) -> GFNet:
    """The same with random scales for both groups."""
    return network(kind, seed=seed, hidden_scale=True, frequency_scale=True)


def masked(model: GFNet, kept: dict[str, torch.Tensor]) -> GFNet:
    """Set the scales of what is not kept to zero, in place."""
    with torch.no_grad():
        for name, places in kept.items():
            scale = model.get_parameter(f"{name}.scale")
            mask = torch.zeros_like(scale)
            mask[places] = 1
            scale *= mask
    return model


def outputs(model: GFNet, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(model.forward_all(images)) if isinstance(model, GFNetDynn) else [model(images)]


@pytest.mark.parametrize("groups", [("hidden",), ("frequency",), BOTH])
@pytest.mark.parametrize("kind", KINDS)
def test_the_slim_network_is_the_one_whose_removed_scales_are_zero(kind, groups):
    model, images = scaled(kind), torch.randn(3, 3, 16, 16)
    result = slim_model(model, 0.4, SlimOptions(round_to=1, min_channels=1, groups=groups))
    twin = masked(scaled(kind), result.selection.kept)
    for after, before in zip(outputs(result.model, images), outputs(twin, images), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert not any(name.endswith("scale") for name in result.model.state_dict())
    assert result.model.config["hidden_scale"] is result.model.config["frequency_scale"] is False
    totals = {"hidden": HIDDEN, "frequency": FREQUENCIES}
    for group, selection in result.by_kind.items():
        # Of n distinct scores the rule keeps those above the one at int(n * 0.4).
        going = int(totals[group] * 0.4) + 1
        assert sum(selection.widths.values()) == totals[group] - going


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_network_is_ranked_by_its_weights(kind):
    model = network(kind)
    result = slim_model(model, 0.5, FREE)
    columns = torch.stack([block.mlp.fc2.weight.norm(dim=0) for block in model.blocks])
    threshold = columns.flatten().sort().values[HIDDEN // 2]
    assert result.selection.threshold == pytest.approx(threshold.item())
    for i, block in enumerate(result.model.blocks):
        kept = (columns[i] > threshold).nonzero().flatten()
        assert torch.equal(result.selection.kept[f"blocks.{i}.mlp"], kept)
        assert torch.equal(block.mlp.fc1.weight, model.blocks[i].mlp.fc1.weight[kept])
        torch.testing.assert_close(block.mlp.fc2.weight, model.blocks[i].mlp.fc2.weight[:, kept])
    assert infer(result.model.state_dict())[1]["hidden"] == result.model.config["hidden"]
    assert set(result.model.state_dict()) == set(model.state_dict())


def test_frequencies_are_ranked_by_what_they_do_to_real_pictures():
    model = network()
    result = slim_model(model, 0.5, SlimOptions(round_to=1, min_channels=1, groups=("frequency",)))
    norms = {}
    for i, block in enumerate(model.blocks):
        half = torch.view_as_complex(block.filter.complex_weight.detach())
        kernel = torch.fft.irfft2(half, s=(4, 4), dim=(0, 1))
        energy = torch.fft.fft2(kernel, dim=(0, 1)).abs().square().sum(-1)  # (4, 4), all channels
        for row in range(4):
            for column in range(3):
                mirrored = (-row % 4, -column % 4)
                pair = energy[row, column] + (energy[mirrored] if mirrored != (row, column) else 0)
                norms[i, 3 * row + column] = pair.sqrt().item()
    largest = {key for key in norms if norms[key] > result.selection.threshold + 1e-4}
    for i, numbers in enumerate(result.model.config["frequencies"]):
        # 9 and 11 are the conjugates of 3 and 5 and have no number of their own
        assert numbers == sorted(k for block, k in largest if block == i and k not in (9, 11))


def test_heads_gates_and_exits_are_not_touched():
    model = network("exits")
    slim = slim_model(model, 0.4, SlimOptions(round_to=1, min_channels=1, groups=BOTH)).model
    assert isinstance(slim, GFNetDynn)
    assert slim.config["exits"] == [0, 1]
    old, new = model.state_dict(), slim.state_dict()
    assert set(old) == set(new)
    cut = ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "filter.complex_weight")
    for name, tensor in old.items():
        if not name.endswith(cut):
            assert torch.equal(new[name], tensor), name
    assert all(after < before for after, before in zip(
        macs_per_exit(slim, (3, 16, 16)),
        macs_per_exit(with_matrix_filters(model), (3, 16, 16)),
        strict=True,
    ))  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**16),
    ratio=st.floats(0, 0.95),
    round_to=st.sampled_from([1, 2]),
)
def test_any_scores_give_the_masked_network(kind, seed, ratio, round_to):
    options = SlimOptions(round_to=round_to, min_channels=1, groups=BOTH)
    model, images = scaled(kind, seed), torch.randn(2, 3, 16, 16)
    result = slim_model(model, ratio, options)
    twin = masked(scaled(kind, seed), result.selection.kept)
    for after, before in zip(outputs(result.model, images), outputs(twin, images), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    lowered = with_matrix_filters(result.model)
    for after, before in zip(outputs(lowered, images), outputs(result.model, images), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_the_penalty_reaches_the_scales_of_both_groups():
    model = scaled("plain")
    objective = with_gamma_penalty(lambda network, batch: {"loss": torch.zeros(())}, 0.01)
    terms = objective(model, None)
    total = sum(scale.abs().sum() for scale in channel_scales(model).values())
    torch.testing.assert_close(terms["loss"], 0.01 * total)
    assert len(channel_scales(model)) == 6
    terms["loss"].backward()
    grad = model.blocks[0].filter.scale.grad
    torch.testing.assert_close(grad, 0.01 * model.blocks[0].filter.scale.sign())


def test_what_a_network_lost_before_stays_lost():
    first = slim_model(
        network(), 0.3, SlimOptions(round_to=1, min_channels=1, groups=("frequency",))
    ).model
    second = slim_model(first, 0.3, SlimOptions(round_to=1, min_channels=1, groups=BOTH)).model
    for now, then in zip(second.config["frequencies"], first.config["frequencies"], strict=True):
        assert set(now) <= set(then)
    assert sum(map(len, second.config["frequencies"])) < sum(map(len, first.config["frequencies"]))
    hidden = slim_model(first, 0.3, FREE).model  # by default the hidden units alone
    assert hidden.config["frequencies"] == first.config["frequencies"]


@pytest.mark.parametrize("groups", [("hidden",), ("frequency",), BOTH])
def test_a_ratio_of_zero_changes_nothing(groups):
    model = network()
    slim = slim_model(model, 0.0, SlimOptions(groups=groups)).model
    assert slim.config == model.config
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(slim(image), model(image), rtol=1e-4, atol=1e-5)


def test_layers_can_be_left_out():
    options = SlimOptions(round_to=1, min_channels=1, groups=BOTH, ignore=("blocks.1.*",))
    result = slim_model(network(), 0.5, options)
    assert result.model.config["hidden"][1] == 32
    assert len(result.model.config["frequencies"][1]) == 10
    assert {layer.name for layer in result.layers if layer.smallest_kept is None} == {
        "blocks.1.mlp",
        "blocks.1.filter",
    }
    with pytest.raises(UserInputError, match="matches no layer"):
        slim_model(network(), 0.5, SlimOptions(ignore=("*.filter",)))


# The door


@pytest.fixture
def folder(tmp_path):
    """A folder with a foreign checkpoint of each kind."""
    for kind, grid in (("plain", (4, 4)), ("distilled", (3, 6)), ("exits", (4, 4))):
        state = published.random_state(
            width=8,
            depth=3,
            grid=grid,
            classes=5,
            distilled=kind == "distilled",
            exits=2 if kind == "exits" else 0,
        )
        torch.save({"model": state, "epoch": 7}, tmp_path / f"{kind}.pth")
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("groups", ["hidden", "frequency", "hidden,frequency"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_door_slims_every_kind(folder, capsys, kind, groups):
    path = folder / f"{kind}.pth"
    options = ["--no-latency", "--round-to", 1, "--min-channels", 1]
    code, out, _ = run(capsys, "--ratio", 0.4, "--groups", groups, path, "--json", *options)
    assert code == 0
    report = json.loads(out)
    before, after = compress.load(path), compress.load(folder / f"{kind}.slim-0.4.pth")
    assert type(after) is type(before)
    for moment, model in (("before", before), ("after", after)):
        counted = with_matrix_filters(model) if "frequency" in groups else model
        assert report[moment]["params"] == sum(p.numel() for p in model.parameters())
        assert report[moment]["macs"] == compress_macs(counted)
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["after"]["params"] < report["before"]["params"]
    assert set(report["groups"]) == set(groups.split(","))
    assert {layer["kind"] for layer in report["layers"]} == set(report["groups"])
    for group in report["groups"].values():
        assert group["ranked_by"] == "weights"
        assert group["gamma"] is None
    gone = sum(g["channels"] - g["channels_kept"] for g in report["groups"].values())
    whole = sum(g["channels"] for g in report["groups"].values())
    assert report["true_pruned_ratio"] == pytest.approx(gone / whole)
    only = next(iter(report["groups"].values()))["threshold"]
    assert report["threshold"] == (only if len(report["groups"]) == 1 else None)
    assert report["absorption"]["error_absorbed"] is None
    assert not report["absorption"]["applied"]


def compress_macs(model: GFNet) -> int:
    """Multiply-adds from the shapes alone: patches, matrix products, two linear layers, heads."""
    config, total = model.config, 0
    height, width = (side // config["patch_size"] for side in config["image_size"])
    tokens, d = config["grid"][0] * config["grid"][1], config["width"]
    total += height * width * d * 3 * config["patch_size"] ** 2
    for block in model.blocks:
        total += 2 * tokens * d * block.mlp.fc1.out_features
        layer = block.filter
        if hasattr(layer, "fr") or layer.frequencies is not None:
            rows = layer.wr.shape[0] if hasattr(layer, "fr") else len(layer.frequencies)
            total += 4 * (tokens + 1) * rows * d
        else:
            bins = config["grid"][0] * (config["grid"][1] // 2 + 1)
            total += round(2.5 * tokens * torch.tensor(tokens).double().log2().item() * d)
            total += 4 * bins * d
    return total + d * config["num_classes"] * (1 + config["distilled"])


def test_the_table_names_the_groups(folder, capsys):
    arguments = ["--ratio", 0.5, "--groups", "frequency, hidden", folder / "plain.pth", *SMALL]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    lines = out.splitlines()
    start = lines.index("predict pruned ratio: 0.5")
    assert [line.split(":")[0] for line in lines[start + 2 : start + 6]] == [
        "frequency",
        "frequency",
        "hidden",
        "hidden",
    ]
    head = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    assert lines[head].split()[:2] == ["layer", "group"]
    rows = [line.split()[:2] for line in lines[head + 1 : head + 7]]
    assert rows == [
        [f"blocks.{i}.{part}", group]
        for i in range(3)
        for part, group in (("filter", "frequency"), ("mlp", "hidden"))
    ]
    assert "times closer" not in out
    assert "not folded, no layer of this network takes them up" in out
    assert "counted as matrix products" in out
    assert "ranked by their weights, not by trained scales: hidden, frequency" in out


def test_one_warning_says_that_the_network_was_not_trained_for_it(folder, capsys, caplog):
    with caplog.at_level(logging.WARNING, "compress"):
        run(capsys, "--ratio", 0.3, 0.5, folder / "plain.pth", "--dry-run", *SMALL)
    assert len(caplog.records) == 1
    assert "not trained for slimming" in caplog.records[0].getMessage()
    assert "hidden_scale" in caplog.records[0].getMessage()


def test_trained_scales_are_used_and_reported(tmp_path, capsys, caplog):
    model = network(hidden_scale=True)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.scale.copy_(torch.linspace(0, 1, 32).square())
            block.mlp.scale[:8] = 0
    compress.save(model, tmp_path / "trained.pth")
    with caplog.at_level(logging.WARNING, "compress"):
        code, out, _ = run(
            capsys, "--ratio", 0.25, tmp_path / "trained.pth", "--json", "--no-latency"
        )
    report = json.loads(out)
    assert code == 0
    assert not caplog.records
    assert report["groups"]["hidden"]["ranked_by"] == "scale"
    assert report["gamma"]["is_sparse"]
    assert report["widths"] == [24, 24, 24]  # 8 of 32 are dead, and 24 is a multiple of 8
    assert report["absorption"]["error_plain"] < 1e-6
    slim = compress.load(report["output"])
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(slim(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", ["hidden", "hidden,frequency"])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_targets_are_reached(folder, capsys, kind, groups):
    path = folder / "exits.pth"
    options = [path, "--groups", groups, "--dry-run", "--json", *SMALL]
    code, out, err = run(capsys, f"--target-{kind}", 0.7, *options)
    assert code == 0, err
    report = json.loads(out)
    share = report["after"][kind] / report["before"][kind]
    assert share <= 0.7
    assert report["target"]["reached"] == pytest.approx(share)
    less = round(report["target"]["pruning_ratio"] - 0.001, 3)
    _, out, _ = run(capsys, "--ratio", less, *options)
    report = json.loads(out)
    assert report["after"][kind] / report["before"][kind] > 0.7


def test_the_same_command_writes_the_same_network(folder, capsys):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))  # nothing depends on the global random state
        arguments = ["--groups", "hidden,frequency", "-o", folder / name / "out.pth", *SMALL]
        assert run(capsys, "--ratio", 0.4, folder / "plain.pth", *arguments)[0] == 0
    a, b = (compress.load(folder / name / "out.pth") for name in "ab")
    assert a.config == b.config
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name])


def test_a_bare_slim_state_dict_is_recognised(folder, capsys):
    run(capsys, "--ratio", 0.5, folder / "exits.pth", "-o", folder / "out.pth", *SMALL)
    slim = compress.load(folder / "out.pth")
    torch.save(slim.state_dict(), folder / "bare.pth")
    bare = compress.load(folder / "bare.pth")
    assert bare.config["hidden"] == slim.config["hidden"] != [32, 32, 32]
    image = torch.randn(1, 3, 16, 16)
    assert torch.equal(bare(image), slim(image))


def test_a_network_that_is_not_square_is_slimmed(tmp_path, capsys):
    path = compress.save(network(image_size=[12, 20]), tmp_path / "wide.pth")
    code, out, err = run(capsys, "--ratio", 0.5, path, "--json", *SMALL)
    assert code == 0, err
    assert json.loads(out)["settings"]["image_size"] == [12, 20]
    given = ["--data", "digits", "--images", 8, "--force"]
    code, out, err = run(capsys, "--ratio", 0.5, path, *given, "--json", *SMALL)
    assert code == 0, err
    assert json.loads(out)["made_by"]


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("plain.pth", ["--groups", "channels"], "expected hidden or frequency"),
        ("plain.pth", ["--groups", "hidden,rows"], "names 'rows', which GFNet does not have"),
        ("vgg.pth", ["--groups", "hidden"], "which VGG does not have; expected channels"),
        ("plain.pth", ["--input-size", "24"], "built for 16x16"),
        ("nan.pth", [], "blocks.1.mlp: 1 of 32 γ are NaN"),
        ("nan.pth", ["--groups", "frequency"], "computes NaN"),
        ("plain.pth", ["--groups", "frequency", "--round-to", "16"], "no multiple of 16"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_a_sentence(folder, capsys, file, arguments, message):
    from tests.slimming.test_surgery import tiny_vgg

    torch.save(tiny_vgg().state_dict(), folder / "vgg.pth")
    state = torch.load(folder / "plain.pth", weights_only=True)["model"]
    state["blocks.1.mlp.fc2.weight"][2, 5] = torch.nan
    torch.save(state, folder / "nan.pth")
    code, _, err = run(capsys, "--ratio", 0.5, folder / file, "--no-latency", *arguments)
    assert code == 3
    assert message in err
    assert "Traceback" not in err


def test_default_group_of_other_networks_can_be_named(folder, capsys):
    from tests.slimming.test_surgery import tiny_vgg

    torch.save(tiny_vgg().state_dict(), folder / "vgg.pth")
    arguments = ["--groups", "channels", "--input-size", 24, "--json", *SMALL]
    code, out, _ = run(capsys, "--ratio", 0.5, folder / "vgg.pth", *arguments)
    report = json.loads(out)
    assert code == 0
    assert report["groups"]["channels"]["threshold"] == report["threshold"]
    assert report["groups"]["channels"]["gamma"] == report["gamma"]


def test_scales_of_another_group_are_folded_away():
    model = with_frequency_scale(with_hidden_scale(network(), from_weights=True))
    with torch.no_grad():
        model.blocks[0].filter.scale.fill_(2.0)
    slim = slim_model(model, 0.5, FREE).model
    assert slim.config["frequencies"] is None
    weight = 2 * network().blocks[0].filter.complex_weight
    torch.testing.assert_close(slim.blocks[0].filter.complex_weight[:, 1], weight[:, 1])
