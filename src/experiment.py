"""From data and a recipe to a trained model with its history, checkpoint and statistics, once; later, reloaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from config import (
    CACHE, DEMO_ROOT, IMAGENET_MEAN, RESULTS, ROOT, UCF101_ROOT, Recipe, ResultFiles, get_recipe, shown,
)
from data_loader import (
    ClipViews, DrawnView, VideoDataset2D, VideoDataset3D, make_loader, read_clip_table, recipe_transform,
)
from demo_dataset import render_dataset
from features import Activations, Deployed, frozen_trunk, trunk_activations
from models import DEFAULT_BACKBONE, TITLES, VideoModel, build_model, choose_source, weights_file
from splits import check_leakage, ensure_splits, has_groups, leakage_warning, read_split, split_hash
from store import ArrayStore, file_hash
from utils import (
    EarlyStopping, environment, eval_one_epoch, memory_mb, read_json, save_array, save_torch, seed_everything,
    train_one_epoch, write_json,
)

HISTORY = ("train_losses", "val_losses", "train_accs", "val_accs")
DATASETS = {"demo": DEMO_ROOT, "ucf101": UCF101_ROOT}


# ---------------------------------------------------------------- data

@dataclass(frozen=True)
class VideoData:
    """A data set, split, with the place of its results.

    Attributes:
        name: of the data set, as in the results folder.
        root: folder that `clip_path` is relative to.
        class_map: class name to integer label.
        splits: part (`train`, `val`, `test`) to CSV.
        split: what is told of the split: kind, sha256, clips a part, groups shared between parts, and whether
            the clips name groups at all.
        results: root of what is written.
    """

    name: str
    root: Path
    class_map: dict[str, int]
    splits: dict[str, Path]
    split: dict
    results: Path

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels."""
        return sorted(self.class_map, key=self.class_map.get)

    @property
    def note(self) -> str:
        """What a reader must know of the data, in Markdown."""
        if self.root == DEMO_ROOT:
            return ("**Data: the embedded demo set.** Its clips are rendered, synthetic scenes of PullUps, Punch and "
                    "PushUps in UCF-101's form. Scores on them show that the study works; they say nothing about "
                    "real video. For real clips set `DATASET` (see the README).")
        return f"**Data: {self.name}**, {sum(self.split['clips'].values())} clips of {len(self.class_map)} classes."

    def table(self, part: str) -> pd.DataFrame:
        """A part's CSV as a DataFrame."""
        return read_split(self.splits[part].parent)[part]


def locate(dataset: str = "demo", results: Path = RESULTS) -> tuple[str, Path, Path]:
    """Name, root folder and results root of a data set, without opening it.

    Raises:
        FileNotFoundError: it is neither `demo`, `ucf101` nor a folder.
    """
    root = DATASETS.get(dataset) or find_folder(dataset)
    name = dataset if dataset in DATASETS else _folder_name(root)
    return name, root, results if dataset == "ucf101" else results / name


def open_data(dataset: str = "demo", split: str | None = None, classes: list[str] | None = None, seed: int = 42,
              results: Path = RESULTS) -> VideoData:
    """Finds a data set (rendering the demo where it is absent), splits it where it is not, and checks for leakage.

    Args:
        dataset: `demo`, `ucf101` (dataset_info/dataset), or a folder with one sub-folder of clips a class.
        split: a kind of split (see `splits.make_split`); None takes official1 for UCF-101 and group elsewhere.
        classes: a selection; None takes all that there are.
        seed: of the split.
        results: the folder that holds all data sets' results.

    Raises:
        FileNotFoundError, ValueError: no such data, or it can't be split so; the message says what to do.
    """
    name, root, own_results = locate(dataset, results)
    if dataset == "demo":
        render_dataset(root)
    elif dataset == "ucf101" and not root.is_dir():
        raise FileNotFoundError(f"{root}: UCF-101 is not there; put its class folders there, or name another DATASET")
    default = "official1" if dataset == "ucf101" else "group"
    folder = (root if dataset in DATASETS else own_results) / "splits" / _variant(split, default, classes)
    paths = ensure_splits(root, folder, split or default, classes, seed)
    parts = read_split(folder)
    shared = check_leakage(parts)
    if warning := leakage_warning(shared):
        print(f"warning: {warning}")
    clips = pd.concat(parts.values())
    labels = sorted(clips["label"].unique())
    about = {"kind": split or default, "sha256": split_hash(parts), "clips": {k: len(v) for k, v in parts.items()},
             "groups_named": has_groups(clips), "shared_groups": len(shared)}
    return VideoData(name, root, {label: i for i, label in enumerate(labels)}, paths, about, own_results)


def find_folder(dataset: str) -> Path:
    """A folder given absolutely, or relative to the working folder or the repository.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    places = dict.fromkeys([Path(dataset).expanduser().absolute(), ROOT / dataset])
    for place in places:
        if place.is_dir():
            return place.resolve()
    raise FileNotFoundError(f"DATASET={dataset}: neither demo, ucf101 nor a folder (looked at "
                            f"{' and '.join(map(str, places))})")


def _folder_name(root: Path) -> str:
    """A results folder's name for a folder of clips, apart from the names that are taken."""
    name = re.sub(r"[^\w.-]+", "-", root.name)
    return f"{name}-sample" if name in DATASETS else name


def _variant(split: str | None, default: str, classes: list[str] | None) -> str:
    """Sub-folder of the splits folder: none for a data set's default split of all its classes."""
    kind = "" if split in (None, default) else split
    chosen = hashlib.sha256("\n".join(sorted(classes)).encode()).hexdigest()[:8] if classes else ""
    return "-".join(part for part in (kind, chosen) if part)


# ---------------------------------------------------------------- a trained model

@dataclass
class Experiment:
    """A trained model and everything that was asked for when it was trained.

    Attributes:
        reloaded: whether it came from a checkpoint rather than from training now.
    """

    data: VideoData
    recipe: Recipe
    model: VideoModel
    files: ResultFiles
    device: torch.device
    seed: int
    cache: Path
    reloaded: bool = False

    @property
    def title(self) -> str:
        """The network's name as it is written."""
        return TITLES[self.model.backbone]

    @property
    def stats(self) -> dict:
        """The statistics document as it is on disk now."""
        return read_json(self.files.stats)

    @property
    def sha256(self) -> str:
        """Of the checkpoint, as its sidecar has it: what is kept of a model is kept for this very file."""
        return read_json(self.files.sidecar)["sha256"]

    @property
    def history(self) -> dict[str, list[float]]:
        """Losses and accuracies, one value an epoch."""
        return {name: self.stats[name] for name in HISTORY}

    def describe(self) -> pd.Series:
        """The model's facts, as the notebooks show them."""
        prep, recipe, head = self.model.preprocessing, self.recipe, self.model.classifier
        statistics = "ImageNet" if prep.mean == IMAGENET_MEAN else "Kinetics-400"
        temporal = {"resnet3d": "3D convolutions", "efficientnet_lite0_3d": "temporal convolutions, then average"}
        total, trained = self.model.count_parameters()
        return pd.Series({
            "backbone": self.title,
            "pretrained weights": self.model.source if self.model.source == "none" else
            f"{self.model.source} ({weights_file(self.model.backbone).name})",
            "input": f"{recipe.num_frames} RGB frames of {prep.crop}x{prep.crop}, {statistics} statistics",
            "frames": f"{recipe.sampling}" + (f", {recipe.frame_rate:g} a second" if recipe.frame_rate else ""),
            "temporal aggregation": temporal.get(self.model.backbone, f"{recipe.pooling} pooling of frame features"),
            "classifier head": f"dropout {head[0].p:g}, fully connected ({head[1].out_features} classes)",
            "trained": {"all": "all layers", "stage": "last stage and head", "head": "head"}[recipe.trained],
            "trainable parameters": f"{trained:,}", "total parameters": f"{total:,}",
        }, name="model")

    def dataset(self, part: str, train: bool = False) -> VideoDataset2D:
        """A part's clips, sampled and transformed as the recipe and the weights ask."""
        kind = VideoDataset2D if self.recipe.kind == "2d" else VideoDataset3D
        transform = recipe_transform(self.recipe, self.model.preprocessing, train)
        return kind(self.data.splits[part], self.data.root, self.data.class_map, num_frames=self.recipe.num_frames,
                    transform=transform, train=train, sampling=self.recipe.sampling, frame_rate=self.recipe.frame_rate)

    def trained_part(self) -> nn.Module:
        """What training sees: the head alone where the trunk's activations are kept, else the whole model."""
        return self.model.head if self.recipe.cache == "activations" else self.model

    def deployed(self) -> Deployed:
        """The model as it is tested, and as one would run it."""
        precision = self.recipe.precision if self.recipe.cache == "activations" else "float32"
        trunk = frozen_trunk(self.model, self.dataset("test"), self.device, precision, self.cache)
        return Deployed(trunk, self.model.head)

    def loader(self, part: str, train: bool = False) -> DataLoader:
        """Batches of one view a clip, for `trained_part`: drawn and shuffled for training, the centre otherwise."""
        views = self.recipe.train_views if train else 1
        if self.recipe.cache == "activations":
            dataset = self.activations(part, views, train, draw=True)
        else:
            dataset = self.dataset(part, train)
        if self.recipe.cache == "frames":
            dataset = DrawnView(dataset, views, self.seed, store=ArrayStore(self.cache))
        return self._batches(dataset, shuffle=train)

    def test_loader(self, part: str = "test") -> DataLoader:
        """Batches of (B, V, ...): all `test_clips` views of each video, for `trained_part`."""
        views = self.recipe.test_clips
        if self.recipe.cache == "activations":
            return self._batches(self.activations(part, views))
        store = ArrayStore(self.cache) if self.recipe.cache == "frames" else None
        return self._batches(ClipViews(self.dataset(part), views, store=store))

    def activations(self, part: str, views: int, train: bool = False, draw: bool = False) -> Activations:
        """The trunk's activations of a part's clips, as `trunk_activations`; with `train`, of random augmented views."""
        return trunk_activations(self.model, self.dataset(part, train), views, self.device, draw=draw, seed=self.seed,
                                 cache=self.cache, title=f"{self.files.model_name} {part} features",
                                 precision=self.recipe.precision)

    def _batches(self, dataset, shuffle=False) -> DataLoader:
        workers = 0 if self.recipe.cache == "activations" else None  # reading what is kept needs no helper
        return make_loader(dataset, self.recipe.batch_size, shuffle, num_workers=workers)


def load_or_train(kind: str, data: VideoData, recipe: Recipe | str = "recommended", weights: str = "auto",
                  seed: int = 42, backbone: str | None = None, device: str | None = None,
                  cache: Path = CACHE, deterministic: bool = True) -> Experiment:
    """Reloads the model when the saved one is what is asked for; otherwise says what differs, and trains.

    A reload opens no clip and changes no file. A training that was interrupted goes on after its last whole epoch,
    and ends with the weights and history of an uninterrupted one. A saved model that differs is moved to the
    folder `previous` beside it, never overwritten.

    Args:
        kind: `2d` or `3d`.
        data: from `open_data`.
        recipe: a name, or a `Recipe`.
        weights: `auto`, `torchvision`, `packaged` or `none`; `auto` also accepts what a saved model was trained with.
        seed: of initial values, augmentation and order.
        backbone: another network than the weights' own.
        device: None takes CUDA where there is one.
        cache: where activations are kept.
        deterministic: the same seed gives the same training to the last bit. Where it is off, cuDNN tries its kernels
            and takes the fastest, which may differ from run to run; on a CPU it changes nothing.

    Raises:
        WeightsError: the pretrained weights can't be had.
        VideoError, FileNotFoundError, ValueError: from the data.
    """
    recipe = get_recipe(recipe, kind) if isinstance(recipe, str) else recipe
    files = ResultFiles(data.results, kind, DEFAULT_BACKBONE[kind])
    saved = read_json(files.sidecar) if files.checkpoint.is_file() else {}
    as_saved = recipe.resolved(saved["backbone"]) if saved else recipe
    asked = {"dataset": data.name, "classes": data.classes, "split": data.split["sha256"], "recipe": as_saved.to_dict(),
             "weights": weights, "backbone": backbone, "seed": seed}
    reasons = ["there is no saved model"] if not saved else differences(asked, saved)
    if saved and not reasons and file_hash(files.checkpoint) != saved["sha256"]:
        reasons = [f"{files.checkpoint.name} is not the file that its sidecar describes"]
    if not reasons:
        return _reload(data, as_saved, saved, files, _device(device), cache)
    print(f"training the {kind.upper()}-CNN: {'; '.join(reasons)}")
    return _train(data, recipe, {**asked, "weights": choose_source(kind, weights)}, device, cache, deterministic)


def differences(asked: dict, saved: dict) -> list[str]:
    """What of a saved model is not as asked, each in a few words; `auto` and None accept anything."""
    found = []
    for name, value in asked.items():
        old = saved.get(name)
        if name == "recipe":
            old = old or {}
            found += [f"recipe.{field} is {value.get(field)}, was {old.get(field)}"
                      for field in sorted(value.keys() | old.keys()) if value.get(field) != old.get(field)]
        elif name == "split" and old != value:
            found.append("other clips or another split")
        elif old != value and not (value is None or (name, value) == ("weights", "auto")):
            found.append(f"{name} is {value}, was {old}")
    return found


def _reload(data, recipe, saved, files, device, cache) -> Experiment:
    files = ResultFiles(files.root, files.kind, saved["backbone"])
    model = build_model(recipe, len(data.classes), "none", saved["backbone"])
    model.source = saved["weights"]
    model.load_state_dict(torch.load(files.checkpoint, map_location="cpu", weights_only=True))
    experiment = Experiment(data, recipe, model.to(device).eval(), files, device, saved["seed"], cache, reloaded=True)
    stats = experiment.stats
    print(f"reloaded {files.checkpoint.name}: trained {len(stats['train_losses'])} epochs in "
          f"{stats['train_time']:.0f} s, best validation accuracy {stats['best_val_acc']:.3f}")
    return experiment


def _device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def untrained(data: VideoData, recipe: Recipe, source: str, seed: int, backbone: str | None = None,
              device: str | None = None, cache: Path = CACHE, deterministic: bool = True) -> Experiment:
    """A model before its training; arguments as `load_or_train`, but for `source`, which `choose_source` gives.

    Raises:
        WeightsError, ValueError: as `build_model`.
    """
    device = _device(device)
    seed_everything(seed, deterministic)
    model = build_model(recipe, len(data.classes), source, backbone).to(device)
    files = ResultFiles(data.results, recipe.kind, model.backbone)
    return Experiment(data, recipe.resolved(model.backbone), model, files, device, seed, cache)


def _train(data, recipe, asked, device, cache, deterministic) -> Experiment:
    experiment = untrained(data, recipe, asked["weights"], asked["seed"], asked["backbone"], device, cache, deterministic)
    files = experiment.files
    asked = {**asked, "recipe": experiment.recipe.to_dict(), "backbone": experiment.model.backbone}
    for part in ("train", "val", "test"):  # all missing clips are told now, not in the middle of training
        read_clip_table(data.splits[part], data.root, data.class_map)
    training = fit(experiment, asked, files.last, asked["seed"], deterministic)
    _save(experiment, training, asked)
    return experiment


def fit(experiment: Experiment, asked: dict, last: Path, seed: int, deterministic: bool = True) -> Training:
    """Trains the model of an experiment, which is then as it was in its best epoch.

    Args:
        experiment: as `untrained` gives it.
        asked: what identifies the training.
        last: the file of its state, left behind.
        seed: of order, drawn views and dropout, which may differ from the experiment's own, that of kept views.
        deterministic: as `load_or_train`.
    """
    started = time.perf_counter()
    loaders = experiment.loader("train", train=True), experiment.loader("val")
    feature_time = time.perf_counter() - started
    training = Training(experiment.trained_part(), experiment.recipe, len(loaders[0]), asked, last)
    seed_everything(seed, deterministic)  # the same training whether activations were computed or found
    training.run(*loaders, experiment.device, feature_time)
    experiment.model.eval()
    return training


class Training:
    """The epochs of one training, saved after each, and resumed where a saved state is of the same request."""

    def __init__(self, module: nn.Module, recipe: Recipe, steps: int, asked: dict, last: Path):
        self.module, self.recipe, self.last = module, recipe, last
        self.key = json.dumps({**asked, "steps": steps}, sort_keys=True)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(recipe, trained)
        self.scheduler, self.each_step = make_scheduler(recipe, self.optimizer, steps)
        self.stopping = EarlyStopping(recipe.patience)
        self.history = {name: [] for name in HISTORY}
        self.best, self.best_epoch, self.seconds, self.feature_seconds = {}, 0, 0.0, 0.0

    def run(self, train_loader: DataLoader, val_loader: DataLoader, device, feature_time: float = 0.0) -> None:
        """Trains to the last epoch or early stopping and leaves the best epoch's weights in the module."""
        self._resume()
        self.feature_seconds += feature_time
        while len(self.history["val_accs"]) < self.recipe.epochs and not self.stopping.stop:
            started = time.perf_counter()
            train = train_one_epoch(self.module, train_loader, self.optimizer, self.criterion, device,
                                    self.scheduler.step if self.each_step else None)
            val = eval_one_epoch(self.module, val_loader, self.criterion, device)
            if not self.each_step:
                self.scheduler.step()
            self._record(train, val, time.perf_counter() - started)
        if self.stopping.stop:
            print(f"early stopping: no better validation loss for {self.recipe.patience} epochs")
        self.module.load_state_dict(self.best)

    def _record(self, train, val, seconds) -> None:
        for name, value in zip(HISTORY, (train[0], val[0], train[1], val[1])):
            self.history[name].append(value)
        epoch = len(self.history["val_accs"])
        self.seconds += seconds
        self.stopping(val[0])
        if not self.best or self._rank(epoch) > self._rank(self.best_epoch):
            self.best, self.best_epoch = _copied(self.module.state_dict()), epoch
        save_torch(self.last, self._state())
        print(f"epoch {epoch:2d}/{self.recipe.epochs}  train loss {train[0]:.4f} acc {train[1]:.3f}  "
              f"val loss {val[0]:.4f} acc {val[1]:.3f}  {seconds:.1f} s", flush=True)

    def _rank(self, epoch: int) -> tuple[float, float]:
        """The best epoch has the highest validation accuracy and, among equals, the lowest loss."""
        return self.history["val_accs"][epoch - 1], -self.history["val_losses"][epoch - 1]

    def _state(self) -> dict:
        return {"key": self.key, "module": self.module.state_dict(), "best": self.best, "best_epoch": self.best_epoch,
                "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
                "stopping": self.stopping.state_dict(), "history": self.history, "seconds": self.seconds,
                "feature_seconds": self.feature_seconds, "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}

    def _resume(self) -> None:
        if not self.last.is_file():
            return
        try:
            state = torch.load(self.last, map_location="cpu", weights_only=True)
        except Exception as error:  # an unreadable state is one more reason to begin anew
            print(f"{self.last.name} can't be read ({type(error).__name__}): training from the start")
            return
        if state["key"] != self.key:
            print(f"{self.last.name} is of another training: training from the start")
            return
        self.module.load_state_dict(state["module"])
        for part in ("optimizer", "scheduler", "stopping"):
            getattr(self, part).load_state_dict(state[part])
        self.best, self.best_epoch, self.history = state["best"], state["best_epoch"], state["history"]
        self.seconds, self.feature_seconds = state["seconds"], state["feature_seconds"]
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        print(f"going on after epoch {len(self.history['val_accs'])} of an interrupted training")


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def make_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """`adam` or `adamw` with the recipe's learning rate and weight decay.

    Raises:
        ValueError: another name.
    """
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if recipe.optimizer not in kinds:
        raise ValueError(f"unknown optimizer {recipe.optimizer!r}: {', '.join(kinds)}")
    fused = parameters[0].is_cuda or None  # one kernel for all parameters, on CUDA
    return kinds[recipe.optimizer](parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def make_scheduler(recipe: Recipe, optimizer, steps: int) -> tuple[torch.optim.lr_scheduler.LRScheduler, bool]:
    """The recipe's schedule, and whether it moves with each step (else each epoch).

    `cosine` warms up for one epoch and falls to nearly nothing at the last; `step` halves every five epochs.

    Raises:
        ValueError: another name.
    """
    if recipe.schedule == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5), False
    if recipe.schedule != "cosine":
        raise ValueError(f"unknown schedule {recipe.schedule!r}: cosine, step")
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=max(steps * recipe.epochs + 1, 3), pct_start=1 / max(recipe.epochs, 2),
        cycle_momentum=False), True


def _save(experiment: Experiment, training: Training, asked: dict) -> None:
    """Writes checkpoint, statistics and sidecar; the sidecar last, since it is what makes a checkpoint count."""
    files, model, data = experiment.files, experiment.model, experiment.data
    keep_previous(files)
    save_torch(files.checkpoint, model.state_dict())
    versions = environment(experiment.device)
    total, trained = model.count_parameters()
    size_mb = files.checkpoint.stat().st_size / 2**20
    train_time = training.seconds + training.feature_seconds
    about = {"dataset": data.name, "classes": data.classes, "split": data.split, "recipe": experiment.recipe.to_dict(),
             "backbone": model.backbone, "weights": model.source, "seed": experiment.seed,
             "device": str(experiment.device), "environment": versions}
    write_json(files.stats, {
        **training.history, "best_val_acc": max(training.history["val_accs"]), "best_epoch": training.best_epoch,
        "train_time": train_time, "feature_time": training.feature_seconds, "params": total, "trained_params": trained,
        "model_size_mb": size_mb, "train_memory_mb": memory_mb(), **about})
    save_array(files.array("train_time"), train_time)
    save_array(files.array("model_size"), size_mb)
    pretrained = weights_file(model.backbone).name if model.source != "none" else None
    write_json(files.sidecar, {**asked, "weights_file": pretrained, "environment": versions,
                               "sha256": file_hash(files.checkpoint)})
    files.last.unlink(missing_ok=True)


def keep_previous(files: ResultFiles) -> None:
    """Moves a saved model, its sidecar, statistics and predictions to a folder `previous`, named by the checkpoint."""
    if not files.checkpoint.is_file():
        return
    tag = file_hash(files.checkpoint)[:8]
    folder = files.root / "previous" / f"{files.model_name}-{tag}"
    folder.mkdir(parents=True, exist_ok=True)
    repeated = sorted(files.predictions.parent.glob(f"{files.model_name}_seed_*.csv"))
    for path in (files.sidecar, files.checkpoint, files.stats, files.predictions, *repeated):
        if path.is_file():
            os.replace(path, folder / path.name)
    print(f"the earlier model was moved to {shown(folder)}")


# ---------------------------------------------------------------- predictions

def predict(experiment: Experiment, part: str = "test") -> pd.DataFrame:
    """Predicts a part's videos; each video's probabilities are averaged over the recipe's `test_clips` views.

    Returns:
        One row a clip: clip_path, group, label, predicted, and `p_<class>` for each class, adding up to one.
    """
    loader = experiment.test_loader(part)
    return prediction_table(experiment, part, predict_probabilities(experiment.trained_part(), loader, experiment.device))


def prediction_table(experiment: Experiment, part: str, probabilities: torch.Tensor) -> pd.DataFrame:
    """What `predict` returns, from a part's (N, num_classes) probabilities."""
    classes = experiment.data.classes
    table = experiment.data.table(part)[["clip_path", "group", "label"]]
    table["predicted"] = [classes[i] for i in probabilities.argmax(dim=1).tolist()]
    return table.join(pd.DataFrame(probabilities.numpy(), columns=[f"p_{name}" for name in classes]))


def predict_probabilities(module: Callable, loader: DataLoader, device) -> torch.Tensor:
    """(N, num_classes) float64 probabilities, averaged over the views of batches (B, V, ...)."""
    return view_probabilities(module, loader, device).mean(dim=1)


@torch.inference_mode()
def view_probabilities(module: Callable, loader: DataLoader, device) -> torch.Tensor:
    """(N, V, num_classes) float64 probabilities of each view of batches (B, V, ...)."""
    module.eval()
    rows = []
    for x, _ in loader:
        logits = module(x.flatten(0, 1).to(device))  # (B*V, num_classes)
        rows.append(logits.double().softmax(dim=1).unflatten(0, x.shape[:2]).cpu())
    return torch.cat(rows)
