import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compress
from compress import finetune
from compress.data.augment import AugmentConfig
from compress.errors import UserInputError
from compress.models.vgg import VGG
from compress.training.job import augmentation
from compress.training.presets import AUGMENTATIONS

QUICK = ["--data", "digits", "--image-size", "8", "--epochs", "3", "--lr", "0.1", "-q"]


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
    checkpoint = write_network(tmp_path, preprocessing={"image_size": 12})
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
    assert "has 7 classes, but the data digits have 10" in capsys.readouterr().err


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
