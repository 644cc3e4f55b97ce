"""Networks of any kind with exits: what they give, what they run, what they leave behind."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.checkpoint import save
from compress.errors import CompressError, UnsupportedModelError, UserInputError
from compress.models.early_exit import EarlyExitNetwork
from compress.models.gate import gate_features
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.give_exits import with_exits
from compress.models.outputs import logits_of
from compress.models.with_exits import WithExits
from tests.exit_networks import gfnet
from tests.tapped_networks import (
    CLASSES,
    IMAGE_SHAPE,
    NETWORKS,
    Catching,
    Spoilt,
    Tapped,
    in_place,
    swin,
    trained,
    unet,
)

CASES = [
    pytest.param(tapped, head, id=f"{name}, {head}")
    for name, tapped in NETWORKS.items()
    for head in tapped.heads
]
ONE_HEAD = [pytest.param(tapped, tapped.heads[-1], id=name) for name, tapped in NETWORKS.items()]


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed))


def given_exits(tapped: Tapped, head: str) -> tuple[nn.Module, EarlyExitNetwork]:
    """A network, and the same with heads and gates that say something."""
    backbone = trained(tapped.build)
    network = with_exits(backbone, tapped.at, pictures(1), head=head)
    assert isinstance(network, EarlyExitNetwork)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (*network.heads.parameters(), *network.gates.parameters()):
            parameter.normal_(0, 0.5, generator=generator)
        for name, buffer in network.heads.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5, generator=generator)
    return backbone, network.eval()


@contextmanager
def reading(network: nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Copies of what modules give, before anybody changes it."""
    seen: dict[str, Tensor] = {}

    def hook_of(path: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            seen[path] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    hooks = [network.get_submodule(p).register_forward_hook(hook_of(p)) for p in paths]
    yield seen
    for hook in hooks:
        hook.remove()


def by_hand(network: EarlyExitNetwork, number: int, tap: Tensor) -> Tensor:
    """Logits of a head, written down again."""
    head = network.heads[number]
    state = dict(head.named_parameters())
    if tap.dim() == 4 and head.channels_last:
        tap = tap.permute(0, 3, 1, 2)
    if head.kind.startswith("conv"):
        tap = head.see(tap)
    if tap.dim() == 4:
        tap = torch.cat([tap.mean((2, 3)), tap.flatten(2).max(2).values], 1)
    elif tap.dim() == 3:
        tap = tap.mean(1)
    names = sorted({name.rsplit(".", 1)[0] for name in state if name.startswith("classifier")})
    for place, name in enumerate(names):
        tap = tap @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        tap = tap.relu() if place < len(names) - 1 else tap
    return tap


@torch.no_grad()
@pytest.mark.parametrize(("tapped", "head"), CASES)
def test_every_exit_reads_what_its_module_gives(tapped: Tapped, head: str) -> None:
    backbone, network = given_exits(tapped, head)
    images = pictures(3)
    with reading(backbone, tapped.at) as taps:
        final = logits_of(backbone(images))
    logits, gates = network.every_exit(images)
    assert torch.equal(logits[-1], final)  # to the bit
    assert torch.equal(network(images), final)
    assert len(logits) == len(tapped.at) + 1
    for number, path in enumerate(tapped.at):
        expected = by_hand(network, number, taps[path])
        torch.testing.assert_close(logits[number], expected, rtol=1e-4, atol=1e-4)
        linear = network.gates[number].linear
        gate = gate_features(logits[number]) @ linear.weight[0] + linear.bias
        torch.testing.assert_close(gates[number], gate)
    stacked = network.forward_all(images)
    assert stacked[0].shape == (3, len(logits), CLASSES)
    assert stacked[1].shape == (3, len(gates))
    assert all(torch.equal(stacked[0][:, i], each) for i, each in enumerate(logits))


@torch.no_grad()
@pytest.mark.parametrize(("tapped", "head"), CASES)
def test_cached_inputs_of_the_heads_give_the_same(tapped: Tapped, head: str) -> None:
    """Also where layers behind a tap change it in place."""
    _, network = given_exits(tapped, head)
    kept = network.head_inputs(pictures(3))
    logits, gates = network.from_head_inputs(kept)
    wanted = network.forward_all(pictures(3))
    torch.testing.assert_close(logits, wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gates, wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tapped", "head"), ONE_HEAD)
def test_an_image_leaves_where_the_rule_says(tapped: Tapped, head: str) -> None:
    _, network = given_exits(tapped, head)
    generator = torch.Generator().manual_seed(3)
    taken = set()
    for number in range(24):
        image = pictures(1, seed=number)
        with torch.no_grad():
            logits, gates = network.every_exit(image)
        bars = torch.rand(len(gates), generator=generator).tolist()
        expected = next(
            (i for i, gate in enumerate(gates) if gate.sigmoid().item() >= bars[i]), len(gates)
        )
        got, left = network.forward_early(image, bars)
        assert left == expected
        assert torch.equal(got, logits[expected])
        assert torch.equal(network.run_until(image, expected), logits[expected])
        taken.add(expected)
    assert len(taken) > 1


@pytest.mark.parametrize(("tapped", "head"), ONE_HEAD)
def test_what_stands_behind_an_exit_does_not_run(tapped: Tapped, head: str) -> None:
    backbone, network = given_exits(tapped, head)
    for number, path in enumerate(tapped.at):
        ran = calls(network.backbone)
        open_gate = [1.0] * number + [0.0] + [1.0] * (len(tapped.at) - number - 1)
        with torch.no_grad():  # a sigmoid reaches 1 only far out
            for gate in network.gates[:number]:
                gate.linear.bias.fill_(-50.0)
        _, left = network.forward_early(pictures(1), open_gate)
        assert left == number
        whole = calls(backbone)
        backbone(pictures(1))
        assert ran == whole[: len(ran)]
        assert ran[-1] == path
        assert len(ran) < len(whole) or path == whole[-1]


def calls(network: nn.Module) -> list[str]:
    """A list that fills with the names of modules in the order in which they end."""
    ran: list[str] = []
    for name, module in network.named_modules():
        if name:
            module._forward_hooks.clear()
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


def hooks_of(network: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()
    )


@pytest.mark.parametrize(("tapped", "head"), ONE_HEAD)
def test_no_hook_stays(tapped: Tapped, head: str) -> None:
    backbone, network = given_exits(tapped, head)
    network.every_exit(pictures(2))
    network.forward_early(pictures(1), 0.0)
    network.forward_early(pictures(1), 1.0)
    network.run_until(pictures(1), 0)
    with pytest.raises(RuntimeError):  # the images have too many channels
        network.every_exit(torch.zeros(1, 5, 16, 16))
    with pytest.raises(RuntimeError):
        network.forward_early(torch.zeros(1, 5, 16, 16), 1.0)
    assert hooks_of(network) == hooks_of(backbone) == 0


def test_hooks_of_the_user_stay() -> None:
    backbone = trained(unet)
    seen: list[str] = []
    backbone.middle.register_forward_hook(lambda *_: seen.append("middle"))
    network = with_exits(backbone, ["down2"], pictures(1))
    seen.clear()
    network.every_exit(pictures(1))
    assert seen == ["middle"]
    network.forward_early(pictures(1), 0.0)
    assert seen == ["middle"]  # not reached


def test_a_network_that_catches_exceptions_is_left_all_the_same() -> None:
    network = with_exits(trained(Catching), ["one"], pictures(1))
    _, left = network.forward_early(pictures(1), 0.0)
    assert (left, network.backbone.caught) == (0, 0)


def test_a_gate_that_is_no_number_lets_nobody_go() -> None:
    network = with_exits(trained(unet), ["down2"], pictures(1))
    torch.nn.init.constant_(network.gates[0].linear.bias, float("nan"))
    assert network.forward_early(pictures(1), 0.0)[1] == 1


@pytest.mark.parametrize(
    ("images", "thresholds", "message"),
    [
        (2, 0.5, "forward_early was given 2 images; expected one"),
        (1, [0.5], "threshold"),
        (1, 1.5, "threshold"),
        (1, float("nan"), "threshold"),
    ],
)
def test_early_returns_that_cannot_be(images: int, thresholds: object, message: str) -> None:
    network = with_exits(trained(unet), ["down1", "down2"], pictures(1))
    with pytest.raises(UserInputError, match=message):
        network.forward_early(pictures(images), thresholds)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["linear", "conv:8"])
def test_everything_can_be_trained_where_layers_work_in_place_behind_a_tap(head: str) -> None:
    """Gradients are those of a network that copies what it changes."""
    network = with_exits(trained(in_place), NETWORKS["in place"].at, pictures(1), head=head)
    twin = copy.deepcopy(network)
    vars(twin.backbone)["forward"] = lambda x, net=twin.backbone: not_in_place(net, x)
    for each in (network, twin):
        each.train()
        logits, gates = each.forward_all(pictures(4))
        (logits.square().sum() + gates.sum()).backward()
    pairs = zip(network.named_parameters(), twin.parameters(), strict=True)
    for (name, one), other in pairs:
        assert one.grad is not None, name
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)


def not_in_place(net: nn.Module, x: Tensor) -> Tensor:
    x = net.two(net.one(x).relu())
    x = torch.cat([2 * x[:, :4], x[:, 4:]], 1).relu()
    return net.fc((net.three(x) + 1).mean((2, 3)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("tapped", "head"), ONE_HEAD)
def test_saved_and_loaded_it_gives_the_same_bits(
    tmp_path: Path, tapped: Tapped, head: str, suffix: str
) -> None:
    _, network = given_exits(tapped, head)
    backbone = network.backbone
    if tapped.factory is not None:
        backbone.arch, backbone.config = "factory", {"factory": tapped.factory}
    path = save(network, tmp_path / f"net{suffix}")
    loaded = compress.load(path, factory=tapped.factory)
    assert isinstance(loaded, EarlyExitNetwork)
    assert loaded.exit_paths == tapped.at
    assert loaded.config == network.config
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():  # kernels may sum in another order where memory is aligned otherwise
        for one, other in zip(
            network.forward_all(pictures(3)), loaded.forward_all(pictures(3)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    if tapped.factory is not None:
        with pytest.raises(UserInputError, match=f"--model {tapped.factory} if you trust it"):
            compress.load(path)
    else:
        with pytest.raises(UserInputError, match="which needs no --model"):
            compress.load(path, factory="tests.tapped_networks:unet")


def test_maps_with_channels_last_are_read_as_such() -> None:
    """A Swin-like network passes on (B, H, W, C)."""
    network = with_exits(trained(swin), ["patches", "stages.0"], pictures(1))
    assert [head.to_config() for head in network.heads] == [
        {"head": "linear", "channels": 12, "dims": 4},
        {"head": "linear", "channels": 12, "dims": 4, "channels_last": True},
    ]


def test_exits_are_taken_along_where_they_stay() -> None:
    _, network = given_exits(NETWORKS["U-Net"], "linear")
    changed = with_exits(network, ["down1", "middle", "merge2"], pictures(1))
    assert changed.exit_paths == ("down1", "middle", "merge2")
    was, now = (net.every_exit(pictures(2))[0] for net in (network, changed))
    assert torch.equal(now[1], was[1])
    assert torch.equal(now[2], was[2])
    other_kind = with_exits(network, ["middle"], pictures(1), head="hidden:4")
    assert other_kind.heads[0].to_config()["head"] == "hidden:4"
    fewer = network.with_positions(["middle"])
    assert torch.equal(fewer.every_exit(pictures(2))[0][0], was[1])
    before = was[1].clone()
    torch.nn.init.zeros_(fewer.backbone.down1[0].weight)  # nothing is shared
    assert torch.equal(network.every_exit(pictures(2))[0][1], before)


@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_left_as_it_was(training: bool) -> None:
    backbone = trained(unet).train(training)
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    network = with_exits(backbone, ["down2"], pictures(1))
    assert backbone.training is network.training is training
    assert all(torch.equal(state[name], t) for name, t in backbone.state_dict().items())


def test_a_gfnet_keeps_the_published_form_for_linear_heads_behind_blocks() -> None:
    published = gfnet()
    assert isinstance(with_exits(published, [1, "blocks.2"], pictures(1)), GFNetDynn)
    for positions, head in (([0, 1], "hidden:4"), (["patch_embed", 1], "linear")):
        network = with_exits(published, positions, pictures(1), head=head)
        assert isinstance(network, EarlyExitNetwork)
        assert type(network.backbone) is GFNet  # without the exits that it had
        assert network.positions == tuple(positions)
        with torch.no_grad():
            final = network.every_exit(pictures(2))[0][-1]
            torch.testing.assert_close(final, published(pictures(2)))


@pytest.mark.parametrize("kind", [gfnet, lambda: given_exits(NETWORKS["U-Net"], "linear")[1]])
def test_positions_that_a_network_has(kind) -> None:
    network: WithExits = kind()
    one, two, *_ = network.positions
    assert network.with_positions([two]).positions == (two,)
    for wrong in ([], [two, one], [one, one], ["nowhere"]):
        with pytest.raises(UserInputError, match="each once, in the order of the network"):
            network.with_positions(wrong)


@pytest.mark.parametrize(
    ("at", "head", "message"),
    [
        (["nowhere"], "linear", "Spoilt has no module 'nowhere' to put an exit behind"),
        ([7], "linear", "has no module 'blocks.7'"),
        (["x" * 10**6], "linear", "has no module 'x{99} to put an exit"),
        ([], "linear", "no exit position is given"),
        (["stem", "stem"], "linear", "exit positions stem, stem repeat themselves"),
        (["twice"], "linear", "module 'twice' runs more than once for an image"),
        (["never"], "linear", "module 'never' does not run in the forward"),
        (["numbers"], "linear", "module 'numbers' gives a torch.int64; expected a float tensor"),
        (["first"], "linear", r"gives a tensor of shape \(256, 2, 8\) for 2 images"),
        (["whole"], "linear", r"gives a tensor of shape \(\) for 2 images"),
        (["named"], "linear", "module 'named' gives a dict; expected a float tensor"),
        (["video"], "linear", r"shape \(2, 8, 1, 16, 16\); expected a map \(B, C, H, W\)"),
        (["stem"], "rubbish", "the kind of head is 'rubbish'; expected linear, hidden:N, conv"),
        (["stem"], "hidden:0", "the kind of head is 'hidden:0'"),
        (["stem"], "conv:999999", "the kind of head is 'conv:999999'.* N from 1 to 8192"),
        (["stem"], "hidden:8193", "the kind of head is 'hidden:8193'"),
    ],
)
def test_exits_that_cannot_stand(at: list[str], head: str, message: str) -> None:
    backbone = trained(Spoilt)
    with pytest.raises(CompressError, match=message) as found:
        with_exits(backbone, at, pictures(1), head=head)
    assert isinstance(found.value, UserInputError | UnsupportedModelError)
    assert len(str(found.value)) < 500
    assert hooks_of(backbone) == 0


def test_a_head_that_reads_maps_is_refused_on_tokens() -> None:
    tapped = NETWORKS["ViT"]
    with pytest.raises(UserInputError, match=r"'conv:16' reads a map .* expected linear or hidden"):
        with_exits(trained(tapped.build), tapped.at, pictures(1), head="conv")


def test_exits_out_of_order() -> None:
    """Asked for in any order they stand in that of the network; a file has no choice."""
    backbone = trained(unet)
    network = with_exits(backbone, ["middle", "down1"], pictures(1))
    assert network.exit_paths == ("down1", "middle")
    config = network.config
    wrong = EarlyExitNetwork(
        backbone, exits=list(reversed(config["exits"])), num_classes=config["num_classes"]
    )
    with pytest.raises(UnsupportedModelError, match="'down1' runs before 'middle'"):
        wrong.every_exit(pictures(1))
    with pytest.raises(UnsupportedModelError, match="'down1' runs before 'middle'"):
        wrong.forward_early(pictures(1), 1.0)


def test_a_network_of_one_class() -> None:
    backbone = trained(unet)
    backbone.fc = nn.Linear(8, 1)
    with pytest.raises(UserInputError, match=re.escape("the number of classes is 1; a gate")):
        with_exits(backbone, ["middle"], pictures(1))
