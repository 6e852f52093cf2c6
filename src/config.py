"""Paths from one root, and the named recipes. Importing this module changes nothing."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASET_INFO = ROOT / "dataset_info"
DEMO_ROOT = DATASET_INFO / "demo"
UCF101_ROOT = DATASET_INFO / "dataset"
RESULTS = ROOT / "results"
CACHE = ROOT / ".cache"
CACHE_GB = float(os.environ.get("CACHE_GB") or 20)  # budget of what is kept there, in GB

CLASSES = ("PullUps", "Punch", "PushUps")
VIDEO_SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def shown(path: Path) -> str:
    """A path as it is printed: relative to the repository where it lies in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


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


# Learning rates and epochs that go with what is trained: new layers alone bear, and need, a higher rate.
RATES = {"all": 1e-4, "stage": 5e-4, "head": 1e-2}
EPOCHS = {"all": 8, "stage": 5, "head": 8}
# Networks with new layers below the head, which have to be trained.
NEW_STAGES = ("efficientnet_lite0_3d",)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how one CNN is trained and tested, apart from data, weights and seed.

    sampling: `window` (contiguous frames), `segments` (one frame from each of `num_frames` equal segments) or
        `time` (`num_frames` frames at `frame_rate` frames a second).
    trained: `all` (every layer), `stage` (the last stage and the head), `head`, or `auto`: the head, and the last stages
        of a network that has new layers in them (see `resolved`). What is not trained is a frozen trunk.
    cache: what is computed once and kept: `activations` (of the frozen trunk, for each of `train_views` augmented
        views of a training clip), `frames` (decoded, of `train_views` random positions; augmented anew each epoch) or
        `none` (every clip is decoded in every epoch).
    precision: of the frozen trunk where its activations are kept: `float32`, `bfloat16`, or `auto`, which measures.
    preprocessing: `weights` (what the weights were trained with) or `seed` (224, ImageNet statistics).
    augmentation: drawn once a `clip`, or once a `frame` (the seed's mistake, kept for comparison).
    pooling: of the 2D model's frame features over time: `avg`, `max`, `attention` or `conv` (see
        `models.TemporalPool`). 3D models do not read it.
    frozen_batchnorm: `eval` (statistics never move) or `update` (the seed's mistake).
    schedule: `cosine` (with one warm-up epoch) or `step` (StepLR(5, 0.5)).
    lr, epochs: None takes what goes with what is trained (RATES, EPOCHS).
    test_clips: clips a video whose probabilities are averaged in the test.
    """

    name: str
    kind: str
    num_frames: int
    sampling: str
    frame_rate: float | None = None
    preprocessing: str = "weights"
    augmentation: str = "clip"
    trained: str = "auto"
    cache: str = "activations"
    precision: str = "auto"
    train_views: int = 2
    frozen_batchnorm: str = "eval"
    pooling: str = "avg"
    dropout: float = 0.5
    label_smoothing: float = 0.1
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    epochs: int | None = None
    patience: int = 3
    batch_size: int = 8
    test_clips: int = 3

    def resolved(self, backbone: str) -> Recipe:
        """The recipe with what it leaves to the network filled in."""
        trained = self.trained if self.trained != "auto" else "stage" if backbone in NEW_STAGES else "head"
        return dataclasses.replace(self, trained=trained, lr=self.lr or RATES[trained],
                                   epochs=self.epochs or EPOCHS[trained])

    def to_dict(self) -> dict:
        """The recipe as plain types, for JSON."""
        return dataclasses.asdict(self)


_SEED = dict(
    name="seed", sampling="window", preprocessing="seed", augmentation="frame", cache="none", train_views=1,
    frozen_batchnorm="update", label_smoothing=0.9, optimizer="adam", lr=1e-4, weight_decay=1e-4, schedule="step",
    epochs=8, test_clips=1,
)

RECIPES = {
    ("recommended", "2d"): Recipe("recommended", "2d", num_frames=20, sampling="segments", pooling="attention",
                                  patience=5),
    ("recommended", "3d"): Recipe("recommended", "3d", num_frames=16, sampling="time", frame_rate=15.0,
                                  batch_size=4),
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


class ModelFiles:
    """What the files of all models have in common, whatever their `root`, `model_name` and `checkpoint`."""

    @property
    def sidecar(self) -> Path:
        return self.checkpoint.with_suffix(".json")

    @property
    def predictions(self) -> Path:
        return self.root / "predictions" / f"{self.model_name}.csv"


@dataclass(frozen=True)
class ResultFiles(ModelFiles):
    """Where one CNN's results lie below a data set's results root: the seed's own names.

    `kind` is `2d` or `3d`; `backbone` names the network in picture names (the seed's are resnet18, resnet3d).
    """

    root: Path
    kind: str
    backbone: str

    @property
    def model_name(self) -> str:
        return f"{self.kind}-cnn"

    @property
    def checkpoint(self) -> Path:
        return self.root / "saved_models/deep_learning" / f"best_{self.model_name}.pth"

    @property
    def last(self) -> Path:
        """The state of an unfinished training."""
        return self.checkpoint.with_name(f"last_{self.model_name}.pth")

    @property
    def stats(self) -> Path:
        return self.root / "stats_deep_learning" / f"stats_{self.kind}.json"

    def array(self, what: str) -> Path:
        """`train_time`, `inf_time`, `model_size`, `preds` or `labels`."""
        return self.stats.with_name(f"{what}_{self.kind}.npy")

    @property
    def validation(self) -> Path:
        """The validation part's predictions, by which calibration is fitted."""
        return self.predictions.with_name(f"{self.model_name}_validation.csv")

    def repeated(self, seed: int) -> Path:
        """The test part's predictions of the same training with another seed."""
        return self.predictions.with_name(f"{self.model_name}_seed_{seed}.csv")

    @property
    def confusion_matrix(self) -> Path:
        return self.root / "confusion_matrices/deep_learning" / f"{self.kind}_{self.backbone}_confusion_matrix.png"

    def curve(self, what: str) -> Path:
        """`loss` or `accuracy`."""
        return self.root / "performance_plots/deep_learning" / f"{self.kind}_cnn_{what}_curve.png"

    @property
    def error_strip(self) -> Path:
        return self.root / "feature_visualizations" / f"{self.kind}_cnn_errors.png"


@dataclass(frozen=True)
class ClassicalFiles(ModelFiles):
    """Where one classical model's results lie below a data set's results root; beside the CNNs', in `classical_ml`."""

    root: Path
    model_name: str

    @property
    def checkpoint(self) -> Path:
        return self.root / "saved_models/classical_ml" / f"best_{self.model_name}.skops"

    @property
    def stats(self) -> Path:
        return self.root / "stats_classical_ml" / f"stats_{self.model_name}.json"

    @property
    def confusion_matrix(self) -> Path:
        return self.root / "confusion_matrices/classical_ml" / f"{self.model_name}_confusion_matrix.png"
