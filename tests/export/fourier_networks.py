"""Networks that hold Fourier transforms, written from the formulas of their papers.

None of them is taken from anybody's code, and none knows of `compress`: they are what a stranger
brings. All are small, have fixed random weights, and take one tensor of shape (B, …).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourierUnit(nn.Module):
    """The Fourier unit of LaMa (Suvorov et al., arXiv 2109.07161): a 1x1 convolution of spectra."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        spectrum = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")  # (B, C, H, W//2+1)
        pairs = torch.stack((spectrum.real, spectrum.imag), dim=-1)
        pairs = pairs.permute(0, 1, 4, 2, 3).reshape(batch, -1, height, width // 2 + 1)
        pairs = torch.relu(self.bn(self.conv(pairs)))
        pairs = pairs.reshape(batch, -1, 2, height, width // 2 + 1).permute(0, 1, 3, 4, 2)
        spectrum = torch.complex(pairs[..., 0], pairs[..., 1])
        return torch.fft.irfftn(spectrum, s=(height, width), dim=(-2, -1), norm="ortho")


class LamaNet(nn.Module):
    """Convolution, Fourier unit, convolution."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.unit = FourierUnit(channels)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.unit(x))


class AfnoMixer(nn.Module):
    """AFNO (Guibas et al., arXiv 2111.13587): a block-diagonal complex MLP, soft-thresholded."""

    def __init__(self, width: int, blocks: int, shrink: float = 0.01) -> None:
        super().__init__()
        size = width // blocks
        self.blocks, self.shrink = blocks, shrink
        self.w1 = nn.Parameter(torch.randn(2, blocks, size, size) * 0.3)
        self.b1 = nn.Parameter(torch.randn(2, blocks, size) * 0.1)
        self.w2 = nn.Parameter(torch.randn(2, blocks, size, size) * 0.3)
        self.b2 = nn.Parameter(torch.randn(2, blocks, size) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        y = y.reshape(batch, height, width // 2 + 1, self.blocks, channels // self.blocks)
        real, imaginary = self._linear(y.real, y.imag, self.w1, self.b1)
        real, imaginary = torch.relu(real), torch.relu(imaginary)
        real, imaginary = self._linear(real, imaginary, self.w2, self.b2)
        y = F.softshrink(torch.stack((real, imaginary), dim=-1), self.shrink)
        y = torch.view_as_complex(y).reshape(batch, height, width // 2 + 1, channels)
        return torch.fft.irfft2(y, s=(height, width), dim=(1, 2), norm="ortho") + x

    def _linear(
        self, real: Tensor, imaginary: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        def by(x: Tensor, w: Tensor) -> Tensor:
            return torch.einsum("...bi,bio->...bo", x, w)

        return (
            by(real, weight[0]) - by(imaginary, weight[1]) + bias[0],
            by(imaginary, weight[0]) + by(real, weight[1]) + bias[1],
        )


class AfnoNet(nn.Module):
    """Patches, one AFNO block, and back to a field."""

    def __init__(self, width: int = 8, grid: tuple[int, int] = (6, 9)) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)
        self.mixer = AfnoMixer(width, 2)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        return self.head(x + self.mixer(self.norm(x)))


class SpectralConv2d(nn.Module):
    """The Fourier layer of FNO (Li et al., arXiv 2010.08895): low modes by complex matrices."""

    def __init__(self, channels: int, modes: tuple[int, int]) -> None:
        super().__init__()
        self.modes = modes
        shape = (channels, channels, *modes)
        self.upper = nn.Parameter(torch.randn(*shape, dtype=torch.cfloat) * 0.1)
        self.lower = nn.Parameter(torch.randn(*shape, dtype=torch.cfloat) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        m1, m2 = self.modes
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros(batch, channels, height, width // 2 + 1, dtype=torch.cfloat)
        out[:, :, :m1, :m2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :m1, :m2], self.upper)
        out[:, :, -m1:, :m2] = torch.einsum(
            "bixy,ioxy->boxy", spectrum[:, :, -m1:, :m2], self.lower
        )
        return torch.fft.irfft2(out, s=(height, width))


class FnoNet(nn.Module):
    """Lift, Fourier layers with a pointwise bypass, project."""

    def __init__(self, channels: int = 6, modes: tuple[int, int] = (3, 4), depth: int = 1) -> None:
        super().__init__()
        self.lift = nn.Conv2d(1, channels, 1)
        self.spectral = nn.ModuleList(SpectralConv2d(channels, modes) for _ in range(depth))
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(depth))
        self.project = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            x = F.gelu(spectral(x) + pointwise(x))
        return self.project(x)


class Fno1d(nn.Module):
    """The same in one dimension, modes kept by padding in place of a copy into zeros."""

    def __init__(self, channels: int = 5, modes: int = 6) -> None:
        super().__init__()
        self.modes = modes
        self.lift = nn.Conv1d(1, channels, 1)
        self.weight = nn.Parameter(torch.randn(channels, channels, modes, dtype=torch.cfloat) * 0.2)
        self.project = nn.Conv1d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        length = x.shape[-1]
        low = torch.fft.rfft(x)[..., : self.modes]
        mixed = torch.einsum("bim,iom->bom", low, self.weight)
        mixed = F.pad(mixed, (0, length // 2 + 1 - self.modes))
        return self.project(x + torch.fft.irfft(mixed, n=length))


class FNet(nn.Module):
    """FNet (Lee-Thorp et al., arXiv 2105.03824): the real part of a transform of tokens and width.

    Takes embedded tokens (B, N, D).
    """

    def __init__(self, width: int = 12, depth: int = 1) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, feed in enumerate(self.feeds):
            mixed = torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real
            x = self.norms[2 * i](x + mixed)
            x = self.norms[2 * i + 1](x + feed(x))
        return x


class PlainFilter(nn.Module):
    """The global filter of GFNet (Rao et al., arXiv 2107.00645), by FFT."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.complex_weight = nn.Parameter(torch.randn(grid[0], grid[1] // 2 + 1, width, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        image = x.view(batch, *self.grid, width)
        spectrum = torch.fft.rfft2(image, dim=(1, 2), norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.complex_weight)
        image = torch.fft.irfft2(spectrum, s=self.grid, dim=(1, 2), norm="ortho")
        return image.reshape(batch, tokens, width)


class PlainGFNet(nn.Module):
    """GFNet by FFT; with `gamma`, the blocks of its hierarchical form (layer scale).

    Args:
        widths: of the stages; one stage is GFNet, more are GFNet-H.
        depths: blocks of each stage.
        image_size: side in pixels.
        patch_size: side of the first patches; later stages halve the grid.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16,),
        depths: tuple[int, ...] = (1,),
        image_size: int = 20,
        patch_size: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.patch_embed = nn.ModuleList()
        self.blocks = nn.ModuleList()
        self.grids = []
        previous = 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            patch = 2 if stage else patch_size
            side = side if stage == 0 else side // 2
            self.patch_embed.append(nn.Conv2d(previous, width, patch, stride=patch))
            made = [PlainBlock(width, (side, side), scaled=len(widths) > 1) for _ in range(depth)]
            self.blocks.append(nn.Sequential(*made))
            self.grids.append((side, side))
            previous = width
        tokens = self.grids[0][0] * self.grids[0][1]
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, widths[0]) * 0.1)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for stage, (embed, blocks) in enumerate(zip(self.patch_embed, self.blocks, strict=True)):
            x = embed(x).flatten(2).transpose(1, 2)
            if stage == 0:
                x = x + self.pos_embed
            x = blocks(x)
            if stage + 1 < len(self.blocks):
                x = x.transpose(1, 2).unflatten(2, self.grids[stage])
        return self.head(self.norm(x).mean(1))


class PlainBlock(nn.Module):
    """x + gamma * mlp(norm2(filter(norm1(x))))."""

    def __init__(self, width: int, grid: tuple[int, int], *, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.filter = PlainFilter(width, grid)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.gamma = nn.Parameter(torch.rand(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mlp(self.norm2(self.filter(self.norm1(x))))
        return x + (branch if self.gamma is None else self.gamma * branch)


class MagnitudeFrontEnd(nn.Module):
    """Log magnitudes of a short-time transform, and a small convolution over them."""

    def __init__(self, n_fft: int = 64, hop: int = 16) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))
        self.conv = nn.Conv1d(n_fft // 2 + 1, 4, 3, padding=1)

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave, self.n_fft, self.hop, window=self.window, center=True, return_complex=True
        )
        return self.conv(torch.log(spectrum.abs() + 1e-3))


class VocosHead(nn.Module):
    """The head of Vocos (Siuzdak, arXiv 2306.00814): magnitude and phase, then the inverse STFT.

    Takes features (B, C, frames). `same` pads and overlap-adds by fold as the paper's head does;
    else torch.istft does.
    """

    def __init__(self, channels: int = 8, n_fft: int = 32, hop: int = 8, *, same: bool) -> None:
        super().__init__()
        self.n_fft, self.hop, self.same = n_fft, hop, same
        self.out = nn.Linear(channels, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, x: Tensor) -> Tensor:
        magnitude, phase = self.out(x.transpose(1, 2)).transpose(1, 2).chunk(2, dim=1)
        magnitude = torch.exp(magnitude).clip(max=1e2)
        spectrum = magnitude * (torch.cos(phase) + 1j * torch.sin(phase))
        if not self.same:
            return torch.istft(spectrum, self.n_fft, self.hop, self.n_fft, self.window)
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=1, norm="backward")
        frames = frames * self.window[None, :, None]
        pad = (self.n_fft - self.hop) // 2
        length = (x.shape[-1] - 1) * self.hop + self.n_fft
        size = {"output_size": (1, length), "kernel_size": (1, self.n_fft), "stride": (1, self.hop)}
        wave = F.fold(frames, **size)[:, 0, 0, pad:-pad]
        square = self.window.square().expand(1, x.shape[-1], -1).transpose(1, 2)
        envelope = F.fold(square, **size).squeeze()[pad:-pad]
        return wave / envelope


NETWORKS = {
    "lama": (LamaNet, (3, 10, 14)),
    "afno": (AfnoNet, (2, 12, 18)),
    "fno2d": (FnoNet, (1, 12, 15)),
    "fno1d": (Fno1d, (1, 40)),
    "fnet": (FNet, (10, 12)),
    "gfnet": (PlainGFNet, (3, 20, 20)),
    "gfnet-h": (lambda: PlainGFNet((8, 16), (1, 1), 32, 4), (3, 32, 32)),
    "stft": (lambda: MagnitudeFrontEnd(), (400,)),
    "vocos-same": (lambda: VocosHead(same=True), (8, 12)),
    "vocos-center": (lambda: VocosHead(same=False), (8, 12)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode with random weights, and three inputs."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    made = make().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return made, torch.randn(3, *shape)
