"""The video models: a 2D-CNN with temporal pooling, a 3D-CNN.

Every model is a frozen trunk and a trained head: `model.head(model.trunk(x))` is `model(x)`. Where the cut lies
changes no parameter's name, so a checkpoint loads whatever was trained.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from config import NETWORKS, PACKAGED, RGB_WEIGHT, Preprocessing, Recipe, title_of
from networks import Pieces, choose_backbone, preprocessing_of, pretrained
from networks import WeightsError as WeightsError  # these three: others import them from here, beside the models
from networks import choose_source as choose_source
from networks import weights_file as weights_file

ARCHITECTURE = 2  # of what layers of the same names and shapes compute: weights of another one are not taken over
POOLINGS = ("avg", "max", "attention", "conv", "stats")


def state_hash(module: nn.Module) -> str:
    """SHA-256 (hex) over the names and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------- building blocks

class PerFrame(nn.Sequential):
    """Applies its layers to each frame: (B, T, ...) -> (B, T, ...)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t = x.shape[:2]
        frames = x.flatten(0, 1)  # (B*T, C, H, W)
        if frames.dim() == 4:
            frames = frames.contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs
        return super().forward(frames).unflatten(0, (b, t))


class Frames(nn.Module):
    """A volume (B, C, T, H, W) as a sequence of frames (B, T, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class TemporalConv(nn.Module):
    """Depthwise convolution over three frames that starts as the identity: (B, T, F) -> the same.

    Inflation as in I3D (Carreira and Zisserman 2017), which keeps the pretrained 2D network's function at the start.
    """

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, features))
        nn.init.ones_(self.weight[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, 0, 1, 1))  # (B, T + 2, F)
        taps = [padded[:, k:k + x.shape[1]] * self.weight[k] for k in range(3)]
        return taps[0] + taps[1] + taps[2]


class TemporalPool(nn.Module):
    """Pools frame features over time: (B, T, F) -> (B, F).

    `stats` gives (B, 5 F): mean, the means of three thirds, so that it knows beginning from end, standard deviation.
    `attention` weighs the frames by gated attention (Ilse, Tomczak and Welling 2018); its scores start equal.
    `conv` adds to each frame's features a bottleneck with a depthwise convolution over three frames (as in ST-Adapter,
    Pan et al. 2022), then averages; its last layer starts at zero, so that nothing is added. Both start as `avg`; only
    they have parameters. `out_features` is the size of what is given, for F `features`.
    """

    def __init__(self, pooling: str = "avg", features: int | None = None):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}: {', '.join(POOLINGS)}")
        self.pooling, self.out_features = pooling, features and features * (5 if pooling == "stats" else 1)
        narrow = 32  # width of the bottleneck
        if pooling == "attention":
            self.value, self.gate = nn.Linear(features, narrow), nn.Linear(features, narrow)
            self.score = nn.Linear(narrow, 1, bias=False)  # a bias would not change the weights
            nn.init.zeros_(self.score.weight)
        elif pooling == "conv":
            self.down = nn.Linear(features, narrow)
            self.mix = nn.Conv1d(narrow, narrow, kernel_size=3, padding=1, groups=narrow)
            self.up = nn.Linear(narrow, features)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def extra_repr(self) -> str:
        return self.pooling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooling == "max":
            return x.amax(dim=1)
        if self.pooling == "attention":
            scores = self.score(self.value(x).tanh() * self.gate(x).sigmoid())  # (B, T, 1)
            return (scores.softmax(dim=1) * x).sum(dim=1)
        if self.pooling == "conv":
            mixed = self.mix(self.down(x).transpose(1, 2)).relu()  # (B, narrow, T)
            return x.mean(dim=1) + self.up(mixed.mean(dim=2))  # `up` is linear: once per clip, not once per frame
        if self.pooling == "stats":
            means = _shares(x.shape[1]).to(x) @ x  # (B, 4, F); several times as fast as pooling and its gradient
            variance = (x - means[:, :1]).square().mean(dim=1)  # likewise, beside x.std()
            return torch.cat([means.flatten(1), (variance + 1e-12).sqrt()], dim=1)  # a gradient where nothing changes
        return x.mean(dim=1)


class LaggedMoments(nn.Module):
    """What `stats` of a convolution over three frames depend on: (B, T, F) to (B, 18, F).

    Of each frame's predecessor, itself and its successor: the means over all frames and over three thirds (4 x 3), then
    their variances and covariances (6: 00, 11, 22, 01, 02, 12).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t, padded = x.shape[1], F.pad(x, (0, 0, 1, 1))
        lags = torch.stack([padded[:, k:k + t] for k in range(3)], dim=1)  # (B, 3, T, F)
        means = _shares(t).to(x) @ lags  # (B, 3, 4, F)
        away = lags - means[:, :, :1]
        products = [(away[:, i] * away[:, j]).mean(dim=1) for i, j in self.pairs]
        return torch.cat([means.transpose(1, 2).flatten(1, 2), torch.stack(products, dim=1)], dim=1)

    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class ConvolvedStats(nn.Module):
    """`stats` of what a `TemporalConv` gives, from `LaggedMoments`: (B, 18, F) to (B, 5 F). The same function as one
    after the other within rounding, for a fraction of the numbers moved."""

    def __init__(self, conv: TemporalConv):
        super().__init__()
        self.conv = conv

    def forward(self, moments: torch.Tensor) -> torch.Tensor:
        w = self.conv.weight  # (3, F)
        means = (moments[:, :12].unflatten(1, (4, 3)) * w).sum(dim=2)  # (B, 4, F)
        pairs = torch.stack([w[i] * w[j] * (1 if i == j else 2) for i, j in LaggedMoments.pairs])
        variance = (moments[:, 12:] * pairs).sum(dim=1).clamp(min=0)
        return torch.cat([means.flatten(1), (variance + 1e-12).sqrt()], dim=1)


def _shares(t: int) -> torch.Tensor:
    """(4, T): by which frames enter the mean over all, and over each of three thirds."""
    return torch.cat([torch.full((1, t), 1 / t), F.adaptive_avg_pool1d(torch.eye(t), 3).T])


class GridPool(nn.Module):
    """Averages feature maps over a grid of cells, each of which keeps its place: (B, C, H, W) -> (B, C * cells)."""

    def __init__(self, grid: str = "1x1"):
        super().__init__()
        self.cells = tuple(map(int, grid.split("x")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        on = "cpu" if x.device.type == "mps" else x.device  # Apple's has no grids that don't divide the map
        return F.adaptive_avg_pool2d(x.to(on), self.cells).flatten(1).to(x.device)

    def extra_repr(self) -> str:
        return "{} x {} cells".format(*self.cells)


class Standardize(nn.BatchNorm1d):
    """(B, F) to zero mean and unit variance over the training clips: BatchNorm without scale and shift.

    It takes what a linear layer sees to one scale, as in the linear probes of He et al. (2022). A batch of one clip
    has no variance, and is judged by the running statistics.
    """

    def __init__(self, features: int):
        super().__init__(features, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(x)


class TwoStream(nn.Module):
    """Judges RGB frames by one head and differences by another (Simonyan and Zisserman 2014): (B, ...) to
    (B, num_classes), the mean of their log-probabilities, weighted by RGB_WEIGHT; `split` parts a batch into the two.

    In training each clip is judged by one of them, drawn at random (as in ModDrop, Neverova et al. 2016), so that each
    learns by its own errors: trained as one layer, the stream that fits the training clips best would rule.
    """

    def __init__(self, split: Callable, rgb: nn.Module, diff: nn.Module):
        super().__init__()
        self.split, self.rgb, self.diff = split, rgb, diff

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stills, differences = self.split(x)
        both = torch.stack([self.rgb(stills), self.diff(differences)]).log_softmax(dim=2)
        if not self.training:
            return (RGB_WEIGHT * both[0] + both[1]) / (RGB_WEIGHT + 1)
        drawn = torch.randint(2, (len(x),), device=x.device)
        return both[drawn, torch.arange(len(x), device=x.device)]


class Summary(nn.Module):
    """A module that has no parameters, on activations (B, T, F) or on each of two streams in them, the first `stills`
    long: what it gives of them, joined along its first dimension."""

    def __init__(self, module: nn.Module, stills: int | None):
        super().__init__()
        self.module, self.stills = module, stills

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        streams = activations.tensor_split([self.stills], dim=1) if self.stills else [activations]
        return torch.cat([self.module(stream) for stream in streams], dim=1)

    def extra_repr(self) -> str:
        return f"stills={self.stills}"


class VideoModel(nn.Module):
    """A stack of stages, cut into a frozen trunk and a trained head.

    Args:
        stages: name to module, in order; the last one gives (B, T, features), which are pooled over time.
        features: of a frame.
        trained: `all`, `stage` (the last convolutional stage and the classifier) or `head` (the classifier).
        dropout: probability, before the linear layer.
        pooling: over time, as `TemporalPool`.
        standardize: whether pooled features are standardised (`Standardize`).
        stills: frames of the first of two streams (`TwoStream`), which come first in a clip; None is one stream.
        last: stages that `stage` trains, counted from the end, the spatial pooling among them.
        new: stages at the end that `head` trains too, since they are not pretrained.

    Attributes:
        backbone, source, preprocessing: the network's name, where its weights are from (one of `networks.SOURCES`),
            and what its input must look like.
        update_frozen_batchnorm: let `train()` wake frozen BatchNorm layers (the seed's mistake); off.
    """

    time = 1  # dimension of a clip batch
    frame_wise = True  # whether the trunk sees each frame by itself

    def __init__(self, stages: OrderedDict[str, nn.Module], features: int, num_classes: int, trained: str,
                 dropout: float, pooling: str = "avg", standardize: bool = False, stills: int | None = None,
                 last: int = 2, new: int = 0):
        super().__init__()
        cuts = {"all": 0, "stage": len(stages) - last, "head": len(stages) - new}
        if trained not in cuts:
            raise ValueError(f"unknown value of trained: {trained!r}; it is one of {', '.join(cuts)}")
        self.stages, self.stills, self.cut = nn.Sequential(stages), stills, cuts[trained]
        self._features, self._classes, self._standardize = features, num_classes, standardize
        self.renew(pooling, dropout)
        self.update_frozen_batchnorm = False
        self.trunk.requires_grad_(False)

    @property
    def trunk(self) -> nn.Sequential:
        """The frozen part: a clip batch to activations."""
        return self.stages[:self.cut]

    @property
    def head(self) -> nn.Module:
        """The trained part: activations to (B, num_classes) logits. It shares the model's layers."""
        return self._joined_from(self.cut)

    def branches(self, start: int) -> list[nn.Sequential]:
        """What follows the first `start` stages in each stream: (B, num_classes) logits."""
        above = self.stages[start:] if start else self.stages
        rgb = [nn.Sequential(above, self.still_pool, self.still_classifier)] if self.stills else []
        return [*rgb, nn.Sequential(above, self.pool, self.classifier)]

    def split(self, x: torch.Tensor, start: int = 0) -> list[torch.Tensor]:
        """The streams in a clip batch, or in what the first `start` stages give of one."""
        return list(x.tensor_split([self._stills_behind(start)], dim=1 if start else self.time)) if self.stills else [x]

    def _stills_behind(self, start: int) -> int:
        return self.stills

    def _short_cut(self) -> tuple[nn.Module | None, list[nn.Module]]:
        """What nothing that is trained decides between trunk and classifier, and what then replaces all up to the
        pooling's end; None and nothing where a trained layer comes first."""
        above, pool = self.stages[self.cut:], _first(self.pool)
        if any(True for _ in pool.parameters()):
            return None, []
        if not len(above):
            return pool, []
        if len(above) == 1 and isinstance(above[0], TemporalConv) and pool.pooling == "stats":
            return LaggedMoments(), [ConvolvedStats(above[0])]
        return None, []

    @property
    def summary(self) -> Summary | None:
        """Activations to what the trained part needs to know of them, which nothing trained decides: computed once.
        None where there is no such thing."""
        first, _ = self._short_cut()
        return first and Summary(first, self._stills_behind(self.cut) if self.stills else None)

    @property
    def tail(self) -> nn.Module:
        """The trained part behind `summary`, or behind the trunk where there is none: the same function as `head`,
        whose layers it shares."""
        first, behind = self._short_cut()
        if first is None:
            return self.head
        return self._behind_pooling(behind)

    def parted(self) -> tuple[Callable, nn.Module]:
        """What follows the frozen stages, in two: from what they give to (B, D) features pooled over time, each
        clip by itself but for BatchNorm; and from these, of a whole batch, to logits."""
        def features(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([_first(pool)(above(stream)) for (above, pool, _), stream in
                              zip(self.branches(self.cut), self.split(x, self.cut), strict=True)], dim=1)

        return features, self._behind_pooling()

    def _behind_pooling(self, first: Sequence[nn.Module] = ()) -> nn.Module:
        """From features pooled over time, or from what `first` makes into them, to logits; two streams' lie side by
        side."""
        pairs = [(self.still_pool, self.still_classifier)] if self.stills else []
        tails = [nn.Sequential(*first, *(pool[1:] if isinstance(pool, nn.Sequential) else ()), *classifier)
                 for pool, classifier in (*pairs, (self.pool, self.classifier))]
        if not self.stills:
            return tails[0]
        both = TwoStream(lambda x: x.chunk(2, dim=1), *tails)
        both.training = self.training
        return both

    def _joined_from(self, start: int) -> nn.Module:
        branches = self.branches(start)
        if not self.stills:
            return branches[0]
        both = TwoStream(lambda x: self.split(x, start), *branches)
        both.training = self.training  # its own mode alone: `train()` would wake what is frozen within
        return both

    def joined(self, trunk: Callable, x: torch.Tensor) -> torch.Tensor:
        """What the head sees of a clip batch: `trunk` of each of its streams, joined along time."""
        return torch.cat([trunk(stream) for stream in self.split(x)], dim=1 if self.cut else self.time)

    def embed(self, activations: torch.Tensor) -> torch.Tensor:
        """(B, D) features that the classifiers see of activations, those of two streams side by side."""
        streams = zip(self.branches(self.cut), self.split(activations, self.cut), strict=True)
        return torch.cat([branch[:-1](stream) for branch, stream in streams], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) for 2D models, (B, C, T, H, W) for 3D models, to (B, num_classes) logits."""
        return self._joined_from(0)(x)

    def renew(self, pooling: str, dropout: float) -> None:
        """New layers behind the stages, with initial values drawn from torch's generator."""
        settings = self._features, self._classes, dropout, pooling, self._standardize
        device = next(self.parameters(), torch.empty(0)).device
        self.pool, self.classifier = (part.to(device) for part in _classifier(*settings))
        if self.stills:
            self.still_pool, self.still_classifier = (part.to(device) for part in _classifier(*settings))

    def without_trunk(self) -> VideoModel:
        """A copy that knows activations only: what its head needs, and quick to hand on."""
        trunk = {id(stage): nn.Identity() for stage in self.trunk}
        return copy.deepcopy(self, trunk)

    def count_parameters(self) -> tuple[int, int]:
        """All parameters, and those that are trained."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return sum(p.numel() for p in self.parameters()), trained

    def train(self, mode: bool = True) -> VideoModel:
        """Training mode for what is trained: frozen BatchNorm layers keep their statistics."""
        super().train(mode)
        if not self.update_frozen_batchnorm:
            self.trunk.eval()
        return self


def _first(pool: nn.Module) -> TemporalPool:
    """The pooling, without what standardises its features."""
    return pool[0] if isinstance(pool, nn.Sequential) else pool


class Dropout(nn.Dropout):
    """The same as torch's, whose draws take four times as long on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not 0 < self.p < 1:
            return super().forward(x)
        return x * (torch.rand(x.shape, device=x.device) >= self.p) / (1 - self.p)


def _classifier(features: int, num_classes: int, dropout: float, pooling: str, standardize: bool) -> tuple:
    """The pooling over time of (B, T, features), and the classifier of what it gives."""
    pool = TemporalPool(pooling, features)
    linear = nn.Linear(pool.out_features, num_classes)
    if standardize:
        nn.init.zeros_(linear.weight)  # undecided at first, however many features there are
        pool = nn.Sequential(pool, Standardize(linear.in_features))
    return pool, nn.Sequential(Dropout(dropout), linear)


def summary(model: VideoModel, clip: torch.Tensor) -> str:
    """Each stage with the shape of what it gives and its parameters; all, trained and frozen parameters at the end.

    Only the shape of `clip`, a batch as the model takes it, is read: it takes neither time nor memory.
    """
    import torchinfo

    text = str(torchinfo.summary(
        copy.deepcopy(model).to("meta"), input_data=clip.to("meta"), device="meta", mode="eval", depth=2, verbose=0,
        col_names=("output_size", "num_params", "trainable"), col_width=17, row_settings=("var_names",)))
    return text[:text.index("Total mult-adds")].rstrip()  # what follows are estimates that overlook frozen layers


def _up_to(pieces: Pieces, depth: str, wrap: type[nn.Sequential]) -> OrderedDict[str, nn.Module]:
    """The stages up to and with the one called `depth`, all of them for `full`; the last one gives feature maps."""
    names = list(pieces.stages)
    if depth not in ("full", *names):
        raise ValueError(f"no stage {depth!r} in this network: full, {', '.join(names)}")
    last = names[-1] if depth == "full" else depth
    return OrderedDict((name, wrap(*pieces.stages[name], *(pieces.maps if name == last else ())))
                       for name in names[:names.index(last) + 1])


def _of_frames(pieces: Pieces, depth: str, grid: str) -> OrderedDict[str, nn.Module]:
    """The stages that a 2D network has up to `depth`, and its pooling over space: (B, T, C, H, W) -> (B, T, F)."""
    stages, pool = _up_to(pieces, depth, PerFrame), GridPool(grid)
    neck = pieces.neck if len(stages) == len(pieces.stages) else ()
    behind = (nn.Unflatten(1, (-1, *pool.cells)), *neck, nn.Flatten()) if neck else ()
    return OrderedDict(**stages, pool=PerFrame(pool, *behind))


@torch.no_grad()
def _features(stages: OrderedDict[str, nn.Module], backbone: str, time: int) -> int:
    """Size of what stages that end with a pooling give of a frame, or of a volume; told by a run."""
    side, frames = (min(possible, key=lambda n: abs(n - small)) for possible, small in
                    ((NETWORKS[backbone].sides, 64), (NETWORKS[backbone].frames, 4)))
    device = "cpu" if frames * side * side < 500_000 else "meta"  # shapes alone, for which torch imports for seconds
    clip, usual = torch.zeros(1, frames, 3, side, side, device=device).movedim(1, time), torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # it would first prepare itself for these sizes, longer than a clip takes
    try:
        return nn.Sequential(copy.deepcopy(stages)).to(device).eval()(clip).shape[-1]
    finally:
        torch.backends.mkldnn.enabled = usual


def recipe_preprocessing(recipe: Recipe, backbone: str) -> Preprocessing:
    """What the model of a recipe sees: what its weights were trained with, framed as the recipe says; or the seed's."""
    prep = Preprocessing() if recipe.preprocessing == "seed" else preprocessing_of(backbone)
    if recipe.framing == "preset":
        return prep
    if recipe.framing != "whole":
        raise ValueError(f"unknown framing {recipe.framing!r}: preset, whole")
    side = recipe.size or prep.crop
    return dataclasses.replace(prep, resize=(side, side), crop=side)


# ---------------------------------------------------------------- the models

class FrameModel(VideoModel):
    """A 2D-CNN on every frame, features pooled over time: (B, T, C, H, W) -> (B, num_classes).

    Args:
        backbone: a 2D one of `config.NETWORKS`.
        pooling, standardize, stills: as `VideoModel`.
        weights: `torchvision`, `timm`, `packaged` or `own`, as the backbone has them, or None for random weights.
        depth, grid: as `config.Recipe`.

    Raises:
        WeightsError: the pretrained weights can't be had.
        ValueError: an unknown backbone, pooling or depth.
    """

    def __init__(self, num_classes: int, backbone: str = "resnet18", pooling: str = "avg", dropout: float = 0.5,
                 weights: str | None = "torchvision", trained: str = "all", depth: str = "full", grid: str = "1x1",
                 **settings):
        stages = _of_frames(pretrained("2d", backbone, weights), depth, grid)
        features = _features(stages, backbone, self.time)
        super().__init__(stages, features, num_classes, trained, dropout, pooling, **settings)
        self.backbone, self.source = backbone, weights or "none"
        self.preprocessing = preprocessing_of(backbone)


class ResNet18Temporal(FrameModel):
    """ResNet-18 (ImageNet) on every frame, temporal pooling, dropout, linear: 11,178,051 parameters for 3 classes."""

    def __init__(self, num_classes: int, pooling: str = "avg", dropout: float = 0.5,
                 weights: str | None = "torchvision", trained: str = "all"):
        super().__init__(num_classes, "resnet18", pooling, dropout, weights, trained)


class VolumeModel(VideoModel):
    """A 3D network on clips as volumes: (B, C, T, H, W) -> (B, num_classes).

    A stream is one volume, whose features have no time left. Arguments and errors as `FrameModel`; two streams need a
    frozen network.
    """

    time, frame_wise = 2, False

    def __init__(self, num_classes: int, backbone: str = "resnet3d", dropout: float = 0.5,
                 weights: str | None = "torchvision", trained: str = "head", depth: str = "full", grid: str = "1x1",
                 stills: int | None = None, **settings):
        if stills and trained != "head":
            raise ValueError(f"{title_of(backbone)} takes two streams with trained=head only: choose that, or one "
                             "modality")
        stages = _up_to(pretrained("3d", backbone, weights), depth, nn.Sequential)
        cells = GridPool(grid).cells
        pool = nn.Sequential(nn.AdaptiveAvgPool3d((1, *cells)), nn.Flatten(), nn.Unflatten(1, (1, -1)))
        stages = OrderedDict(**stages, pool=pool)  # which ends with (B, 1, F)
        features = _features(stages, backbone, self.time)
        super().__init__(stages, features, num_classes, trained, dropout, stills=stills, **settings)
        self.backbone, self.source = backbone, weights or "none"
        self.preprocessing = preprocessing_of(backbone)

    def _stills_behind(self, start: int) -> int:
        return 1 if start else self.stills


class ResNet3D(VolumeModel):
    """R3D-18 (Kinetics-400; Tran et al. 2018): 33,167,811 parameters for 3 classes.

    `freeze_backbone` trains the classifier only (1,539 of them), otherwise everything is trained.
    """

    def __init__(self, num_classes: int, dropout: float = 0.5, freeze_backbone: bool = True,
                 weights: str | None = "torchvision", trained: str | None = None, **settings):
        trained = trained or ("head" if freeze_backbone else "all")
        super().__init__(num_classes, "resnet3d", dropout, weights, trained, **settings)


class InflatedEfficientNet(VideoModel):
    """EfficientNet-Lite0 (ImageNet) inflated to video: (B, C, T, H, W) -> (B, num_classes).

    Behind its blocks, convolutions over space, stands a depthwise convolution over time of each cell's features, as in
    a factorised 3D convolution; it starts as the identity, is new, and `head` trains it too. `stage` trains the last
    two blocks as well. Arguments and errors as `FrameModel`.
    """

    time = 2

    def __init__(self, num_classes: int, dropout: float = 0.5, weights: str | None = "packaged",
                 trained: str = "head", depth: str = "full", grid: str = "1x1", **settings):
        stages = _of_frames(pretrained("3d", "efficientnet_lite0_3d", weights), depth, grid)
        features = _features(stages, "efficientnet_lite0_3d", time=1)
        stages = OrderedDict(frames=Frames(), **stages, temporal=TemporalConv(features))
        super().__init__(stages, features, num_classes, trained, dropout, **settings, last=4, new=1)
        self.backbone, self.source = "efficientnet_lite0_3d", weights or "none"
        self.preprocessing = preprocessing_of("efficientnet_lite0_3d")


def build_model(recipe: Recipe, num_classes: int, source: str, backbone: str | None = None) -> VideoModel:
    """The model of a recipe, for a source of weights as `choose_source` gives it.

    Raises:
        WeightsError: the pretrained weights can't be had.
        ValueError: backbone and source don't go together, or the network doesn't take what the recipe asks for.
    """
    backbone = choose_backbone(recipe.kind, source, backbone)
    recipe = recipe.resolved(backbone)
    common = {"dropout": recipe.dropout, "weights": None if source == "none" else source, "trained": recipe.trained,
              "depth": recipe.depth, "grid": recipe.grid, "standardize": recipe.standardize,
              "stills": recipe.stills_shown() if recipe.modality == "rgb+diff" else None}
    if recipe.kind == "2d":
        model = FrameModel(num_classes, backbone, recipe.pooling, **common)
    elif backbone == PACKAGED["3d"]:
        model = InflatedEfficientNet(num_classes, pooling=recipe.pooling, **common)
    else:
        model = VolumeModel(num_classes, backbone, **common)
    model.preprocessing = recipe_preprocessing(recipe, backbone)
    model.update_frozen_batchnorm = recipe.frozen_batchnorm == "update"
    for parameter in model.parameters():  # of convolutions
        if parameter.dim() in (4, 5):
            layout = torch.channels_last if parameter.dim() == 4 else torch.channels_last_3d
            parameter.data = parameter.data.to(memory_format=layout)
    return model
