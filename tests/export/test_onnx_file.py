import onnx
import pytest
import torch
from torch import nn

from compress.errors import AccuracyError, ToolchainError, UnsupportedModelError
from compress.export.graph import graph_from_module
from compress.export.onnx_file import onnx_from_module, onnx_session
from compress.models.vgg import VGG


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = VGG(widths=[[8], [8, 16]], num_classes=10, hidden=[12], pooled=2).eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, onnx_from_module(model, torch.randn(3, 3, 16, 16), path)


def test_onnx_runtime_computes_what_torch_computes_at_any_batch(exported):
    model, export = exported
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16)
        found = onnx_session(export.path).run(["logits"], {"image": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(images).detach())
    assert export.parity.worst_relative_error < 1e-5
    assert export.parity.top1_agreement == 1.0


def test_the_file_tells_nothing_about_the_machine(exported):
    content = exported[1].path.read_bytes()
    assert b"/compress/" not in content
    assert b"site-packages" not in content
    assert onnx.load(exported[1].path).opset_import[0].version == 18


class Drifting(nn.Module):
    """Computes something else each time, so that no exported file can agree."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting():
            self.calls += 1
        return image.flatten(1)[:, :4] * (1 + self.calls)


def test_a_file_that_disagrees_is_not_kept(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(AccuracyError, match=r"differs from torch by .* was not kept"):
        onnx_from_module(Drifting(), torch.ones(2, 3, 4, 4), path)
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1) if image.sum() > 0 else -image.flatten(1)


def test_a_network_that_cannot_be_exported(tmp_path):
    with pytest.raises(UnsupportedModelError, match="torch cannot export"):
        onnx_from_module(Branching(), torch.ones(2, 3, 4, 4), tmp_path / "model.onnx")


def test_a_damaged_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ToolchainError, match="cannot read"):
        onnx_session(tmp_path / "model.onnx")


def test_a_network_that_counts_its_images_by_len_is_told():
    """torch.export takes len(x) for a constant, and writes a file for two images, silently."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 4))

        def forward(self, x):
            return x.mean((2, 3))[:, :1] * self.token.expand(len(x), -1)

    images = torch.randn(2, 3, 8, 8)
    arguments = {"input_name": "image", "output_names": ["logits"]}
    with pytest.raises(UnsupportedModelError, match=r"for 2 images alone.*x.shape\[0\].*--batch 1"):
        graph_from_module(Counting().eval(), images, **arguments)
    one = graph_from_module(Counting().eval(), images, free_batch=False, **arguments)
    assert one.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
