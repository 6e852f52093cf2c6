"""A trained network as one graph, from decoded frames to logits: what is run elsewhere.

All that lies between a video's frames and the network is part of it: the frames are fitted into the network's square,
paired, normalised and laid out in the graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram

from config import Preprocessing, Recipe
from deployed import fold_batchnorm
from models import Standardize, VideoModel
from transforms import ClipTransform, squeeze

PILLOW_BITS = 22  # of its weights' fractions; torch takes as many as fit 16 bits with the sign
OPEN_SIZES = {0: "views", 2: "height", 3: "width"}  # dimensions of a graph's input that may have any size
SMALL = (48, 64)  # height and width of frames that a graph is traced with


class FrameGraph(nn.Module):
    """A network that takes frames as they are decoded: (V, F, H, W, 3) uint8 RGB to (V, K) float32 logits.

    A view's F frames come in the order in which `sampling.FrameSampler` gives them: stills, first frames of pairs, then
    the second ones.

    Args:
        model: in evaluation mode, of a recipe; a copy with its BatchNorm folded is taken.

    Raises:
        ValueError: as `Fit`.
    """

    def __init__(self, model: VideoModel, recipe: Recipe):
        super().__init__()
        paired = "diff" in recipe.modality and recipe.augmentation == "clip"
        prep = model.preprocessing
        self.fit = Fit(prep, by_pillow=recipe.augmentation == "frame")
        self.clip = ClipTransform((), prep.mean, prep.std, recipe.stills_shown() if paired else None)
        self.network = _open_to_export(fold_batchnorm(model))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.network(self.prepared(frames))

    def prepared(self, frames: torch.Tensor) -> torch.Tensor:
        """(V, F, H, W, 3) uint8 to clips as the network takes them, (V, T, C, H, W) or (V, C, T, H, W) float32."""
        views, count = frames.shape[:2]
        pixels = self.fit(frames.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, (views, count))
        return self.clip.normalize(pixels.movedim(1, 0)).movedim(0, self.network.time)


def _open_to_export(network: VideoModel) -> VideoModel:
    """A network, changed in place: the same function in operators that ONNX has, for any number of clips."""
    for module in list(network.modules()):
        if isinstance(module, Standardize):
            module.__class__ = nn.BatchNorm1d  # whose code does not ask for the number of clips
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool3d):
                setattr(module, name, GridOfVolumes(child.output_size))
    return network.to(memory_format=torch.contiguous_format)


class GridOfVolumes(nn.Module):
    """Volumes averaged over time and over the cells of a grid, as AdaptiveAvgPool3d does for `size` (1, rows, columns):
    (B, F, T, H, W) -> (B, F, 1, rows, columns)."""

    def __init__(self, size: tuple[int, int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x.mean(dim=2), self.size[1:])[:, :, None]


class Fit(nn.Module):
    """Fits frames into a network's square as its transform does: (N, 3, H, W) uint8 to (N, 3, side, side) float32, in
    whole numbers from 0 to 255.

    Each axis is resized by a product with a matrix that the graph makes of the frames' size. It does what torch, Pillow
    and torchvision's presets do, roundings included, where the operators of other runtimes stray by a grey level.

    Args:
        prep: what the network sees.
        by_pillow: whether its transform works on Pillow's pictures (the seed's).

    Raises:
        ValueError: bicubic interpolation without antialiasing, which no transform here has.
    """

    def __init__(self, prep: Preprocessing, by_pillow: bool = False):
        super().__init__()
        self.cubic, self.antialias = prep.interpolation == "bicubic", prep.antialias or by_pillow
        if (self.cubic and not self.antialias) or prep.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"{prep.interpolation} interpolation, antialias={prep.antialias}: not known to the export")
        self.resize, self.side, self.by_pillow = prep.resize, prep.crop, by_pillow
        squeezed = squeeze(prep)
        self.whole = by_pillow or (squeezed is not None and squeezed.in_whole_numbers)
        self.weighed = torch.float64 if self.whole else torch.float32  # in what the weights are computed
        self.summed = torch.float64 if by_pillow else torch.float32  # Pillow's weights times 255 don't fit 24 bits

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        height, width = frames.shape[2:]
        sizes = torch.stack([torch.scalar_tensor(its, dtype=self.weighed) for its in (height, width)])
        full = ((self.resize * sizes / sizes.min()).floor() if isinstance(self.resize, int)
                else torch.tensor(self.resize, dtype=self.weighed))
        start = ((full - self.side) / 2).round()  # of the centre crop
        down, across = (self._shares(length, sizes[axis], full[axis], start[axis])
                        for axis, length in enumerate((height, width)))
        pixels = frames.to(self.summed)
        if self.whole:
            return _rounded(down.T @ _rounded(pixels @ across)).float()
        return (down.T @ (pixels @ across)).round().clamp(0, 255)

    def _shares(self, length: int, size: torch.Tensor, full: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """(length, side): what each of an axis' pixels counts in each of the square's, when `size` (the length
        as a tensor) is resized to `full` pixels, of which the square takes those from `start` on."""
        scale = size / full
        centres = scale * (torch.arange(self.side, dtype=self.weighed) + start + 0.5)
        far = (torch.arange(length, dtype=self.weighed)[:, None] + 0.5 - centres).abs()
        shares = self._kernel(far / scale.clamp(min=1) if self.antialias else far)
        shares = shares / shares.sum(dim=0)
        if self.whole:
            unit = 2.0 ** (PILLOW_BITS if self.by_pillow else _bits(shares.max()))
            shares = (shares.abs() * unit + 0.5).floor() * shares.sign() / unit
        return shares.to(self.summed)

    def _kernel(self, far: torch.Tensor) -> torch.Tensor:
        """The interpolation's weight of pixels so far from the centre: a triangle, or the cubic of Keys (1981) with
        a = -1/2."""
        if not self.cubic:
            return (1 - far).clamp(min=0)
        near, farther = (1.5 * far - 2.5) * far * far + 1, ((2.5 - 0.5 * far) * far - 4) * far + 2
        return torch.where(far < 1, near, torch.where(far < 2, farther, 0.0))


def _bits(largest: torch.Tensor) -> torch.Tensor:
    """Bits of the fractions of torch's 16-bit weights, of which one is the largest (its UpSampleKernel.cpp)."""
    return (largest * 2.0 ** torch.arange(1, PILLOW_BITS + 1, dtype=torch.float64) < 2**15 - 0.5).sum().double()


def _rounded(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels + 0.5).floor().clamp(0, 255)


def traced(graph: FrameGraph, frames: int) -> ExportedProgram:
    """The program of a graph that sees so many frames of a view, with OPEN_SIZES.

    It tells nothing of where it was traced, and holds no example, which would be pickled with it.
    """
    example = torch.zeros(2, frames, *SMALL, 3, dtype=torch.uint8)
    dims = {dimension: Dim(name) for dimension, name in OPEN_SIZES.items()}
    program = torch.export.export(graph.eval(), (example,), dynamic_shapes=(dims,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program
