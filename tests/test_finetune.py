import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress import finetune
from compress.data.augment import AugmentConfig
from compress.data.image_data import Preprocessing
from compress.errors import UserInputError
from compress.files import sha256_of
from compress.models.gfnet import GFNet
from compress.models.vgg import VGG
from compress.training.augmentations import augmentation
from compress.training.presets import AUGMENTATIONS

QUICK = ["--data", "digits", "--image-size", "8", "--epochs", "3", "--lr", "0.1", "-q"]

PIXELS = Preprocessing(12, "pillow-bicubic", 12, mean=(0.5,) * 3, std=(0.5,) * 3)


def write_network(folder: Path, *, num_classes: int = 10, **meta: object) -> Path:
    torch.manual_seed(0)
    model = VGG(widths=[[8, 8]], num_classes=num_classes, hidden=[], pooled=2)
    return compress.save(model, folder / "net.pth", meta=meta)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_network(tmp_path, slimming={"true_pruned_ratio": 0.4})


def test_a_whole_run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untouched = checkpoint.read_bytes()
    options = ["--sparsity-lambda", "1e-3", "--augment", "crop,color-jitter", "--json"]
    assert finetune.main([str(checkpoint), *QUICK, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    folder = checkpoint.with_name("net.finetuned")
    assert report["schema"] == "compress.finetune/1"
    assert "torch" in report["versions"]
    assert report["source"]["sha256"]
    assert set(report["before"]) == set(report["after"]) == {"validation", "test"}
    assert report["after"]["test"]["acc1"] > report["before"]["test"]["acc1"] + 10
    assert report["after"]["validation"]["acc1"] == report["best"]["acc1"]
    assert report["gamma_sparsity"]["channels"] == 16
    assert report == json.loads((folder / "report.json").read_text())
    assert (folder / "gammas.png").stat().st_size > 1000
    assert checkpoint.read_bytes() == untouched

    best = torch.load(folder / "best.pth", weights_only=True)
    assert best["meta"]["slimming"] == {"true_pruned_ratio": 0.4}  # what was known is kept
    assert best["meta"]["source_sha256"] == report["source"]["sha256"]
    assert best["meta"]["preprocessing"]["image_size"] == 8
    assert best["meta"]["training"]["augment"]["color_jitter"] == 0.4
    logits = compress.load(folder / "best.pth")(torch.zeros(1, 3, 8, 8))
    assert logits.shape == (1, 10)


def test_the_text_and_a_second_call(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [str(checkpoint), *QUICK, "-o", str(checkpoint.parent / "run")]
    assert finetune.main(call) == 0
    text = capsys.readouterr().out
    assert finetune.main([*call, "--resume"]) == 0
    assert capsys.readouterr().out == text
    lines = text.splitlines()
    assert lines[0].split() == ["accuracy", "before", "after"]
    assert [line.split()[0] for line in lines[1:3]] == ["validation", "test"]
    assert lines[3].startswith("best epoch: ")
    assert lines[4] == f"written: {checkpoint.parent / 'run' / 'best.pth'}"


def test_another_run_in_the_folder(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [str(checkpoint), *QUICK]
    assert finetune.main(call) == 0
    assert finetune.main([*call, "--seed", "4"]) == 3
    assert "seed is 4, was 0" in capsys.readouterr().err
    assert finetune.main([*call, "--seed", "4", "--fresh"]) == 0


def test_the_recorded_image_size_is_taken(tmp_path: Path) -> None:
    checkpoint = write_network(tmp_path, preprocessing=PIXELS.to_dict())
    call = [str(checkpoint), "--data", "digits", "--epochs", "1", "-q"]
    assert finetune.main(call) == 0
    best = torch.load(tmp_path / "net.finetuned" / "best.pth", weights_only=True)
    assert best["meta"]["preprocessing"]["image_size"] == 12


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--epochs", "0"], 3, "epochs is 0; expected an integer of at least 1"),
        (["--augment", "flip,blur"], 3, "augmentation 'blur' is not known; expected some of flip"),
        (["--data", "digit"], 3, "data is 'digit'"),
        (["--resume"], 3, "--resume was given, but .* holds no run"),
        (["--image-size", "1"], 3, "does not take images of"),
        (["--mixed-precision", "fp16", "--device", "cpu"], 3, "mixed_precision is 'fp16'"),
        (["--temperature", "2"], 3, "temperature of a distillation was given without a teacher"),
        (["--from-scratch", "gfnet_xs"], 3, "expected one of the two to start from"),
        (["--teacher", "none.pth"], 3, "none.pth does not exist"),
        (["--teacher", "none.pth", "--distillation-alpha", "2"], 3, "alpha is 2.0; expected 0 <="),
        (["--device", "cuda:77"], 4, "device 'cuda:77' cannot be used here"),
    ],
)
def test_bad_options(
    checkpoint: Path,
    options: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert finetune.main([str(checkpoint), *QUICK, *options]) == code
    told = capsys.readouterr()
    with pytest.raises(UserInputError, match=message):
        raise UserInputError(told.err)
    assert told.out == ""
    assert not checkpoint.with_name("net.finetuned").exists()


def test_another_number_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_network(tmp_path, num_classes=7)
    assert finetune.main([str(checkpoint), *QUICK]) == 3
    told = capsys.readouterr().err
    assert "has 7 classes, but the data digits have 10; expected the data that" in told
    assert "or --new-head for a new head" in told


def test_a_new_head_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_network(tmp_path, num_classes=7)
    call = [str(checkpoint), *QUICK, "--new-head", "--json"]
    assert finetune.main(call) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["new_head"]
    assert report["after"]["test"]["acc1"] > 15  # of 10 classes
    best = tmp_path / "net.finetuned" / "best.pth"
    assert compress.load(best).config["num_classes"] == 10
    torch.manual_seed(5)
    assert finetune.main(call) == 0  # the same new head: a run that goes on is the same run
    assert json.loads(capsys.readouterr().out)["before"] == report["before"]


def write_gfnet(folder: Path, name: str = "gfnet.pth", **more: Any) -> Path:
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 2, "num_classes": 10}
    return compress.save(GFNet(**{**size, **more}), folder / name)


def test_a_gfnet_is_resampled_to_the_size_that_is_given(tmp_path: Path) -> None:
    checkpoint = write_gfnet(tmp_path)
    short = ["--data", "digits", "--epochs", "1", "-q", "--fresh"]
    assert finetune.main([str(checkpoint), *short]) == 0  # its own size, which it tells itself
    best = tmp_path / "gfnet.finetuned" / "best.pth"
    assert compress.load(best).config["image_size"] == [8, 8]
    assert finetune.main([str(checkpoint), *short, "--image-size", "12"]) == 0
    assert compress.load(best).config["image_size"] == [12, 12]


ADAMW = ["--optimizer", "adamw", "--lr", "0.005"]


@pytest.mark.parametrize("student", ["gfnet", "gfnet_distil_12_192"])
def test_a_new_network_learns_from_a_teacher(
    tmp_path: Path, student: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_gfnet(tmp_path, image_size=16)
    spec = student + ':{"width": 8, "hidden": [16, 16], "patch_size": 4}'
    call = ["--data", "digits", "--from-scratch", spec, "--epochs", "1", *ADAMW, "-q"]
    call += ["-o", str(tmp_path / "run"), "--teacher", str(teacher), "--distillation", "hard"]
    assert finetune.main([*call, "--distillation-alpha", "0.25", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"] == {"from_scratch": spec}
    told = report["distillation"]
    assert (told["kind"], told["alpha"], told["temperature"]) == ("hard", 0.25, 3.0)
    assert told["teacher"]["sha256"] == sha256_of(teacher)
    assert told["teacher"]["arch"] == "gfnet"
    assert 0 <= told["teacher"]["accuracy"]["test"]["acc1"] <= 100
    best = torch.load(tmp_path / "run" / "best.pth", weights_only=True)
    assert best["config"]["image_size"] == [16, 16]  # the teacher's
    assert best["meta"]["distillation"]["teacher_sha256"] == sha256_of(teacher)
    # Another weight, or another teacher, is another run.
    assert finetune.main([*call, "--distillation-alpha", "0.5"]) == 3
    assert "meta.distillation.alpha is 0.5, was 0.25" in capsys.readouterr().err


def test_the_text_tells_the_teacher(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_gfnet(checkpoint.parent)
    options = ["--teacher", str(teacher), "--epochs", "1", "-o", str(checkpoint.parent / "run")]
    assert finetune.main([str(checkpoint), *QUICK, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith(f"teacher: {teacher} (validation ")
    assert lines[3].endswith("soft, α 0.5, T 3")


def test_a_teacher_for_other_classes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_gfnet(checkpoint.parent, num_classes=7)
    assert finetune.main([str(checkpoint), *QUICK, "--teacher", str(teacher)]) == 3
    told = capsys.readouterr().err
    assert "gfnet.pth has 7 classes, but the student learns the 10 of the data digits" in told


def test_a_preset_and_what_wins_over_it(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(checkpoint), "--data", "digits", "--image-size", "8", "--preset", "slimming"]
    call += ["--epochs", "2", "--json", "-q", "--fresh"]
    assert finetune.main([*call, "--lr", "0.05"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["preset"], settings["lr"], settings["momentum"]) == ("slimming", 0.05, 0.9)
    assert settings["milestones"] == [1, 2]
    assert settings["augment"]["random_crop_padding"] == 1
    assert settings["augment"]["horizontal_flip"]
    assert finetune.main([*call, "--augment", "crop", "--schedule", "cosine"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["lr"], settings["schedule"]) == (0.1, "cosine")
    assert not settings["augment"]["horizontal_flip"]


def test_a_checkpoint_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([str(tmp_path / "none.pth"), *QUICK]) == 3
    assert "none.pth does not exist" in capsys.readouterr().err


def test_wrong_usage_is_told_by_argparse() -> None:
    with pytest.raises(SystemExit) as caught:
        finetune.main(["net.pth", "--data", "digits", "--resume", "--fresh"])
    assert caught.value.code == 2


def test_every_augmentation_switches_something_on() -> None:
    assert augmentation((), 32) == AugmentConfig()
    assert augmentation(("crop", "flip"), 32).random_crop_padding == 4
    for name in AUGMENTATIONS:
        assert augmentation((name,), 32) != AugmentConfig()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from compress import finetune\n"
        "try: finetune.main(['-h'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'accelerate', 'kornia', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "26"], "not divisible by the patch size 4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_a_gfnet(tmp_path, capsys, options, message):
    network = GFNet(image_size=16, patch_size=4, width=16, depth=3, num_classes=10)
    path = compress.save(network, tmp_path / "gfnet.pth")
    assert finetune.main([str(path), "--data", "digits", "-q", *options]) == 3
    assert message in capsys.readouterr().err
