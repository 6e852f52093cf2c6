"""Paths from one root, the networks by name, and the named recipes. Importing this module changes nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASET_INFO = ROOT / "dataset_info"
DEMO_ROOT = DATASET_INFO / "demo"
UCF101_ROOT = DATASET_INFO / "dataset"
RESULTS = ROOT / "results"
# a folder that is ours alone: what is not needed any more is removed from it
CACHE = (Path(os.environ["CACHE_DIR"], "video-actions") if os.environ.get("CACHE_DIR") else ROOT / ".cache").absolute()

# What the environment may set: its default, the least and the most. CACHE_GB is the budget of what is kept in CACHE.
NUMBERS = {"SEED": (42, 0, 2**32 - 1), "FOLDS": (5, 0, 1000), "SEEDS": (3, 1, 1000), "TRIALS": (20, 1, 10**6),
           "CACHE_GB": (20.0, 0.0, math.inf)}

CLASSES = ("PullUps", "Punch", "PushUps")
VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".asf", ".3gp", ".3g2",
                  ".ts", ".mts", ".m2ts", ".flv", ".f4v", ".ogv", ".vob", ".divx", ".mxf", ".qt", ".gif")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def asked_number(name: str) -> float:
    """One of NUMBERS, from the environment or its default; whole where its default is.

    Raises:
        ValueError: what is set is no such number; the message names the variable.
    """
    default, least, most = NUMBERS[name]
    text = os.environ.get(name) or str(default)
    try:
        value = type(default)(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"{name}={text}: not {kind} from {least:g} to {most}")
    return value


def name_list(text: str) -> list[str] | None:
    """The names in a list such as CLASSES: apart by blanks, in quotes where a name has blanks; None for no name.

    Raises:
        ValueError: a quote that is not closed.
    """
    try:
        return shlex.split(text) or None
    except ValueError as error:
        raise ValueError(f"{text}: a quote is not closed; put a name that has quotes into the other ones") from error


def quoted_list(names: Iterable[str]) -> str:
    """Names as a shell takes them in one word, for `name_list`: what a message offers to paste."""
    return shlex.quote(shlex.join(names))


@dataclass(frozen=True)
class Preprocessing:
    """What a set of weights wants to see: it follows the weights, never the notebook.

    `resize` is the shorter side in pixels, or (height, width); `crop` the side of the square crop in pixels;
    `mean` and `std` are per RGB channel, for values in [0, 1].
    """

    resize: int | tuple[int, int] = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    antialias: bool = True


# ---------------------------------------------------------------- networks

@dataclass(frozen=True)
class Network:
    """All that the project knows of a network. Code is a callable, or its name as "module:function", so that the table
    of networks imports nothing.

    Attributes:
        name: as BACKBONE has it: letters, digits and underscores.
        kind: of the model that it is the backbone of, `2d` or `3d`.
        title: its name as it is written.
        build: gives the network, with random weights. Where it has no `pieces`, it maps frames (N, 3, H, W) to maps
            (N, F, h, w), or volumes (B, 3, T, H, W) to (B, F, t, h, w).
        pieces: gives of such a network its `networks.Pieces`; None takes it as one stage.
        source: of its pretrained weights, as WEIGHTS names it: `torchvision`, `timm`, `packaged`, `own` or `none`.
        weights: their name there; of `own` ones, the file of a state dict.
        preprocessing: what the weights were trained to see; None asks torchvision or timm.
        depth: the last stage that is used, where that is not its last one: what follows is tuned to ImageNet's classes.
        sides: of the square pictures that it takes, in pixels.
        frames: in the volumes that it takes.
        converts: the precisions in which OpenVINO was measured to run it faster than torch, by a fifth at least (see
            `engines`).
    """

    name: str
    kind: str
    title: str
    build: Callable | str
    pieces: Callable | str | None = None
    source: str = "none"
    weights: str | Path = ""
    preprocessing: Preprocessing | None = None
    depth: str = "full"
    sides: range = range(1, 10_000)
    frames: range = range(1, 10_000)
    converts: tuple[str, ...] = ()


_BOTH = ("float32", "bfloat16")
_LITE0 = {"build": "networks:lite0", "pieces": "networks:lite0_pieces", "source": "packaged", "depth": "block13",
          "converts": _BOTH}

NETWORKS = {network.name: network for network in (
    Network("resnet18", "2d", "ResNet-18", "torchvision.models:resnet18", "networks:resnet_pieces", "torchvision",
            "ResNet18_Weights.IMAGENET1K_V1", converts=_BOTH),
    Network("resnet50", "2d", "ResNet-50", "torchvision.models:resnet50", "networks:resnet_pieces", "torchvision",
            "ResNet50_Weights.IMAGENET1K_V2", converts=_BOTH),
    Network("efficientnet_b0", "2d", "EfficientNet-B0", "torchvision.models:efficientnet_b0",
            "networks:efficientnet_b0_pieces", "torchvision", "EfficientNet_B0_Weights.IMAGENET1K_V1", converts=_BOTH),
    Network("efficientnet_lite0", "2d", "EfficientNet-Lite0", **_LITE0,
            preprocessing=Preprocessing(interpolation="bicubic")),
    Network("convnext_tiny", "2d", "ConvNeXt-T", "timm.models:convnext_tiny", "networks:convnext_pieces", "timm",
            "convnext_tiny.in12k_ft_in1k", sides=range(32, 10_000), converts=_BOTH),
    Network("vit_small", "2d", "ViT-S/16", "networks:vit_small", "networks:vit_pieces", "timm",
            "vit_small_patch16_224.augreg_in21k_ft_in1k", sides=range(16, 10_000, 16), converts=_BOTH),
    Network("mobilenetv3_large", "2d", "MobileNetV3-L", "timm.models:mobilenetv3_large_100",
            "networks:mobilenetv3_pieces", "timm", "mobilenetv3_large_100.ra_in1k", converts=_BOTH),
    Network("resnet3d", "3d", "R3D-18", "torchvision.models.video:r3d_18", "networks:resnet_pieces", "torchvision",
            "R3D_18_Weights.KINETICS400_V1", converts=("float32",)),
    Network("mc3_18", "3d", "MC3-18", "torchvision.models.video:mc3_18", "networks:resnet_pieces", "torchvision",
            "MC3_18_Weights.KINETICS400_V1"),
    Network("r2plus1d_18", "3d", "R(2+1)D-18", "torchvision.models.video:r2plus1d_18", "networks:resnet_pieces",
            "torchvision", "R2Plus1D_18_Weights.KINETICS400_V1", converts=_BOTH),
    Network("s3d", "3d", "S3D", "torchvision.models.video:s3d", "networks:s3d_pieces", "torchvision",
            "S3D_Weights.KINETICS400_V1", sides=range(17, 10_000), frames=range(5, 10_000),
            converts=_BOTH),
    Network("mvit_v2_s", "3d", "MViTv2-S", "torchvision.models.video:mvit_v2_s", "networks:mvit_pieces", "torchvision",
            "MViT_V2_S_Weights.KINETICS400_V1", sides=range(224, 225), frames=range(16, 17)),
    Network("swin3d_t", "3d", "Video Swin-T", "torchvision.models.video:swin3d_t", "networks:swin3d_pieces",
            "torchvision", "Swin3D_T_Weights.KINETICS400_V1", converts=_BOTH),
    Network("efficientnet_lite0_3d", "3d", "inflated EfficientNet-Lite0", **_LITE0,
            preprocessing=Preprocessing(resize=182, crop=160, interpolation="bicubic")),
)}
BUILT_IN = frozenset(NETWORKS)
DEFAULT_BACKBONE = {"2d": "resnet18", "3d": "resnet3d"}
PACKAGED = {"2d": "efficientnet_lite0", "3d": "efficientnet_lite0_3d"}


def register(network: Network) -> Network:
    """Adds a network of one's own to NETWORKS, or takes it in place of an earlier one of one's own.

    Raises:
        ValueError: its name is no plain word or that of a network that is there from the start, or it is of no kind.
    """
    if not network.name.isidentifier() or network.name in BUILT_IN or network.kind not in DEFAULT_BACKBONE:
        raise ValueError(f"network {network.name!r} of kind {network.kind!r}: its name is of letters, digits and "
                         f"underscores, and none of {', '.join(sorted(BUILT_IN))}; kinds are 2d, 3d")
    NETWORKS[network.name] = network
    return network


def title_of(backbone: str) -> str:
    """A network's name as it is written; of one that this process doesn't know, its plain name."""
    return NETWORKS[backbone].title if backbone in NETWORKS else backbone


def networks_of(kind: str) -> list[str]:
    """The names of a kind's networks."""
    return [name for name, network in NETWORKS.items() if network.kind == kind]


def asked_backbone(kind: str) -> str | None:
    """The network of a kind that BACKBONE names; None where it names none: the one that goes with the weights.

    Raises:
        ValueError: BACKBONE has a name of no network, or two of one kind; the message lists what there is.
    """
    text = os.environ.get("BACKBONE", "")
    names = name_list(text) or []
    chosen = {its: [name for name in names if name in networks_of(its)] for its in DEFAULT_BACKBONE}
    if sum(map(len, chosen.values())) < len(names) or any(len(its) > 1 for its in chosen.values()):
        there = "; ".join(f"{its}: {', '.join(networks_of(its))}" for its in DEFAULT_BACKBONE)
        raise ValueError(f"BACKBONE={text}: name one network, or one of each kind, apart by a blank: {there}")
    return chosen[kind][0] if chosen[kind] else None


# ---------------------------------------------------------------- recipes

# Learning rates and epochs that go with what is trained: new layers alone bear, and need, a higher rate.
RATES = {"all": 1e-4, "stage": 5e-4, "head": 6e-4}
# Weight of the RGB stream beside the differences', which tell more where motion decides.
RGB_WEIGHT = 0.5

# Fields of a recipe, by what they decide.
CONCERNS = {
    "frames": ("num_frames", "sampling", "frame_rate", "train_views", "test_clips"),
    "modality": ("modality", "gap", "stills"),
    "transforms": ("preprocessing", "framing", "size", "augmentation"),
    "network": ("trained", "depth", "grid", "pooling", "standardize", "dropout", "frozen_batchnorm"),
    "optimisation": ("optimizer", "lr", "weight_decay", "schedule", "batch_size", "label_smoothing", "epochs",
                     "micro_batch", "patience", "tolerance", "monitor"),
    "frozen part": ("cache", "precision", "engine"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how one CNN is trained and tested, apart from data, weights and seed.

    sampling: `window` (contiguous frames), `segments` (one frame from each of `num_frames` equal segments) or
        `time` (`num_frames` frames at `frame_rate` frames per second).
    modality: `rgb`, `diff` (differences of frames `gap` seconds apart, about grey; TSN, Wang et al. 2016), `rgb+diff`
        (two streams, each with its own head, whose log-probabilities are averaged with RGB_WEIGHT), or `auto`: chosen
        among them by inner folds of the training part (see `modality.modality_scores`).
    stills: RGB frames of a clip where the modality has them, `num_frames` at most, which None takes.
    num_frames, stills, size: what the named recipes say of them follows what the network demands (`Network.frames`,
        `Network.sides`); other values must be such as it takes.
    trained: `all` (every layer), `stage` (the last stage and the head) or `head`. What is not trained is a frozen
        trunk.
    depth: name of the last stage of the network that is used; None takes what goes with the network
        (`Network.depth`), `full` all of it.
    grid: rows x columns of cells that a frame's features are averaged over; each cell keeps its own.
    standardize: pooled features get zero mean and unit variance before the classifier (BatchNorm without scale and
        shift, as in the linear probes of He et al. 2022).
    cache: what is computed once and kept: `activations` (of the frozen trunk, for each of `train_views` augmented
        views of a training clip) or `none` (every clip is decoded in every epoch).
    precision: of the frozen trunk where its activations are kept, and of stages that are trained on CUDA: `float32`,
        `bfloat16`, or `auto`, which follows the hardware (see `engines.choose_precision`).
    engine: that computes those activations: `torch`, `openvino`, or `auto` (see `engines.choose_engine`).
    preprocessing: `weights` (what the weights were trained with) or `seed` (224, ImageNet statistics).
    framing: `preset` (resized and cropped as the weights' transform does) or `whole`: the whole frame is squeezed into
        a square of `size` pixels, so that no action is cut away; None takes the preset's crop.
    augmentation: drawn once per `clip`, or once per `frame` (the seed's mistake, kept for comparison).
    pooling: of frame features over time: `avg`, `max`, `attention`, `conv` or `stats` (see `models.TemporalPool`).
        Networks of volumes, such as R3D-18, which end without a time axis, do not read it.
    frozen_batchnorm: `eval` (statistics are never updated) or `update` (the seed's mistake).
    schedule: `cosine` (with one warm-up epoch) or `step` (StepLR(5, 0.5)).
    lr: None takes what goes with what is trained (RATES).
    epochs: at most; early stopping ends a training of the recommended recipe.
    patience, tolerance: as `utils.EarlyStopping`.
    monitor: whether the epoch that is kept is told by the validation `loss` or by the validation `accuracy`, the
        seed's way, which is coarse where there are few validation clips (see `utils.Training`).
    micro_batch: clips that pass through the network's own stages at once, where these are trained: what a device has
        memory for; it decides results only where BatchNorm is trained, which sees so many clips (see `data_parallel`).
    test_clips: clips per video whose probabilities are averaged in the test.
    """

    name: str
    kind: str
    num_frames: int
    sampling: str
    frame_rate: float | None = None
    modality: str = "rgb"
    gap: float = 1 / 15
    stills: int | None = None
    preprocessing: str = "weights"
    framing: str = "preset"
    size: int | None = None
    augmentation: str = "clip"
    trained: str = "head"
    depth: str | None = None
    grid: str = "1x1"
    standardize: bool = False
    cache: str = "activations"
    precision: str = "auto"
    engine: str = "auto"
    train_views: int = 2
    frozen_batchnorm: str = "eval"
    pooling: str = "avg"
    dropout: float = 0.5
    label_smoothing: float = 0.1
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 5e-2
    schedule: str = "cosine"
    epochs: int = 60
    patience: int = 15
    tolerance: float = 0.03
    monitor: str = "loss"
    batch_size: int = 32
    micro_batch: int = 4
    test_clips: int = 3

    def resolved(self, backbone: str) -> Recipe:
        """The recipe with what it leaves to the network filled in.

        Raises:
            ValueError: it asks for a size or for numbers of frames that the network doesn't take.
        """
        network = NETWORKS.get(backbone)
        depth = self.depth or (network.depth if network else "full")
        filled = dataclasses.replace(self, lr=self.lr or RATES[self.trained], depth=depth)
        return filled._fitted(network) if network else filled

    def _fitted(self, network: Network) -> Recipe:
        taken = {"num_frames": network.frames}
        if self.framing == "whole":
            taken["size"] = network.sides
        if self.modality != "diff":
            taken["stills"] = network.frames
        fitted = {}
        for name, possible in taken.items():
            value = getattr(self, name)
            if value is None or value in possible:
                continue
            if value not in {getattr(its, name) for its in RECIPES.values()}:
                more = "" if len(possible) == 1 else " or more" + f", in steps of {possible.step}" * (possible.step > 1)
                raise ValueError(f"{network.title} takes {name} = {possible[0]}{more}, not {value}")
            fitted[name] = min(possible, key=lambda there: abs(there - value))
        return dataclasses.replace(self, **fitted)

    def frames(self) -> dict:
        """What a data set needs to know of it: how its clips are sampled."""
        return {name: getattr(self, name) for name in ("num_frames", "sampling", "frame_rate", "modality", "stills",
                                                       "gap")}

    def stills_shown(self) -> int:
        """RGB frames of a clip: none where differences are all that is seen."""
        return min(self.stills or self.num_frames, self.num_frames) if "rgb" in self.modality else 0

    def streams(self) -> list[Recipe]:
        """The recipe of each stream of its modality by itself."""
        return [dataclasses.replace(self, modality=name) for name in self.modality.split("+")]

    def by_concern(self) -> dict[str, str]:
        """The recipe as the notebooks show it: a line for each of its concerns."""
        values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in self.to_dict().items()}
        return {concern: ", ".join(f"{name} = {values[name]}" for name in names if name in values)
                for concern, names in CONCERNS.items()}

    def to_dict(self) -> dict:
        """The recipe as plain types, for JSON, without what it does not read: a head needs no micro-batches."""
        values = dataclasses.asdict(self)
        if self.trained == "head":
            del values["micro_batch"]
        return values


_SEED = {
    "name": "seed", "sampling": "window", "preprocessing": "seed", "augmentation": "frame", "cache": "none",
    "precision": "float32",
    "train_views": 1, "frozen_batchnorm": "update", "label_smoothing": 0.9, "optimizer": "adam", "lr": 1e-4,
    "weight_decay": 1e-4, "schedule": "step", "epochs": 8, "tolerance": 0.0, "monitor": "accuracy",
    "test_clips": 1, "depth": "full",
}
_RECOMMENDED = {"modality": "auto", "framing": "whole", "size": 160, "grid": "2x3", "pooling": "stats",
                "standardize": True, "weight_decay": 2.0}

RECIPES = {
    ("recommended", "2d"): Recipe("recommended", "2d", num_frames=20, stills=8, sampling="segments", **_RECOMMENDED),
    ("recommended", "3d"): Recipe("recommended", "3d", num_frames=16, stills=4, sampling="time", frame_rate=15.0,
                                  **_RECOMMENDED),
    ("seed", "2d"): Recipe(kind="2d", num_frames=20, trained="all", batch_size=4, patience=3, **_SEED),
    ("seed", "3d"): Recipe(kind="3d", num_frames=16, trained="head", batch_size=2, patience=4, **_SEED),
}


def get_recipe(name: str, kind: str, **changes) -> Recipe:
    """The named recipe of a kind (`2d` or `3d`), with fields replaced by `changes`.

    Raises:
        ValueError: no such recipe, kind or field; the message lists what there is.
    """
    if (name, kind) not in RECIPES:
        known = ", ".join(sorted({n for n, _ in RECIPES}))
        raise ValueError(f"no recipe {name!r} for kind {kind!r}: recipes are {known}; kinds are 2d, 3d")
    unknown = set(changes) - {f.name for f in dataclasses.fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no field {', '.join(sorted(unknown))}")
    return dataclasses.replace(RECIPES[name, kind], **changes)
