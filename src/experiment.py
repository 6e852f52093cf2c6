"""From data and a recipe to a trained model with its history, checkpoint and statistics, once; later, reloaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from cluster import asked_cluster
from config import CACHE, DEFAULT_BACKBONE, IMAGENET_MEAN, NETWORKS, PACKAGED, Recipe, get_recipe, register, title_of
from data_loader import ClipViews, VideoDataset2D, VideoDataset3D, make_loader, shared_loader
from data_parallel import fit_in_cluster, trained_part
from deployed import Deployed, FrozenTrunk
from engines import choose_engine, choose_precision
from features import Activations, trunk_activations
from files import (
    ArrayStore,
    ResultFiles,
    differences,
    file_hash,
    read_json,
    replaced_model,
    save_array,
    write_json,
)
from machine import accelerator, environment, memory_mb
from modality import modality_scores
from models import ARCHITECTURE, VideoModel, WeightsError, build_model, choose_backbone, choose_source
from networks import weights_name
from transforms import recipe_transform
from utils import (
    HISTORY,
    EarlyStopping,
    Training,
    fit,
    make_optimizer,
    make_scheduler,
    seed_everything,
    torch_bytes,
)
from videos.library import VideoData

# ---------------------------------------------------------------- a model and its pieces

@dataclass
class Experiment:
    """A model, trained or to be trained, and everything that is asked for of its training.

    Attributes:
        recipe: resolved: nothing in it is left open.
        model: what `build` or `adopt` gave it.
        files: where its results lie; they name its backbone.
        source: of the pretrained weights, as `choose_source` gives it.
        reloaded: whether the model's weights are those of a checkpoint.
        request: what identifies the training; the sidecar of the checkpoint holds it.
        feature_seconds: spent on the frozen trunk's activations for training.
    """

    data: VideoData
    recipe: Recipe
    model: VideoModel | None
    files: ResultFiles
    device: torch.device
    seed: int
    cache: Path
    source: str = "none"
    reloaded: bool = False
    request: dict = field(default_factory=dict)
    feature_seconds: float = 0.0

    @property
    def title(self) -> str:
        """The network's name as it is written."""
        return title_of(self.model.backbone)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "network": NETWORKS[self.files.backbone]}

    def __setstate__(self, state: dict) -> None:
        network = state.pop("network")  # one of one's own is not known yet in a process that folds are computed in
        if network.name not in NETWORKS:
            register(network)
        self.__dict__.update(state)

    @property
    def stats(self) -> dict:
        """The statistics document as it is on disk now."""
        return read_json(self.files.stats)

    @property
    def history(self) -> dict[str, list[float]]:
        """Losses and accuracies, one value per epoch."""
        return {name: self.stats[name] for name in HISTORY}

    def describe(self) -> dict[str, str]:
        """The model's facts: the notebooks show them, and its card."""
        prep, recipe, head = self.model.preprocessing, self.recipe, self.model.classifier
        statistics = "ImageNet" if prep.mean == IMAGENET_MEAN else "the weights' own"
        pooling = f"{recipe.pooling} pooling"
        temporal = ("within the network" if not self.model.frame_wise else
                    f"{pooling} of frame features" if recipe.kind == "2d" else f"temporal convolution, {pooling}")
        seen = {"rgb": f"{recipe.stills_shown()} RGB frames",
                "diff": f"{recipe.num_frames} RGB differences of frames {1000 * recipe.gap:.0f} ms apart"}
        total, trained = self.model.count_parameters()
        source = self.model.source
        return {
            "backbone": self.title,
            "pretrained weights": "none (random initial values)" if source == "none" else
            f"{source} ({weights_name(self.model.backbone)})",
            "input": " and ".join(seen[name] for name in recipe.modality.split("+")),
            "framing": {"whole": "the whole frame", "preset": "as the weights' preset"}[recipe.framing]
            + f", {prep.crop}x{prep.crop} pixels, {statistics} statistics",
            "frames": recipe.sampling + (f", {recipe.frame_rate:g} per second" if recipe.frame_rate else ""),
            "temporal aggregation": temporal,
            "classifier head": f"dropout {head[0].p:g}, fully connected ({head[1].out_features} classes)",
            "trained": {"all": "all layers", "stage": "last stage and head", "head": "head"}[recipe.trained],
            "trained parameters": f"{trained:,}", "parameters": f"{total:,}"}

    # data

    def dataset(self, part: str, train: bool = False) -> VideoDataset2D:
        """A part's clips, sampled and transformed as the recipe and the weights ask."""
        return self._dataset(self.data.splits[part], train, self.recipe)

    def _dataset(self, csv: Path, train: bool, recipe: Recipe) -> VideoDataset2D:
        kind = VideoDataset2D if recipe.kind == "2d" else VideoDataset3D
        transform = recipe_transform(recipe, self.model.preprocessing, train)
        return kind(csv, self.data.root, self.data.class_map, transform=transform, train=train, **recipe.frames())

    def loader(self, *datasets: VideoDataset2D, summarized: bool = True) -> DataLoader:
        """Batches of one view per clip, for `trained_part`: drawn and shuffled for training, else the centre.

        Several data sets are joined. Where the recipe keeps the frozen trunk's activations, what is missing of them is
        computed first, once; not `summarized`, batches are of these, for the model's head.
        """
        started = time.perf_counter()
        train, clips = datasets[0].train, ConcatDataset(datasets)
        if self.keeps_activations:
            clips = self.activations(*datasets, view="random" if train else self.recipe.test_clips // 2)
            clips = clips.through(self.model.summary) if summarized else clips
            self.feature_seconds += time.perf_counter() - started
        if self.recipe.trained == "head":
            return self._batches(clips, shuffle=train)
        labels = [its.label(i) for its in datasets for i in range(len(its))]
        return shared_loader(clips, labels, self.recipe.batch_size, self.recipe.micro_batch, train, device=self.device,
                             num_workers=0 if self.keeps_activations else None)

    def test_loader(self, dataset: VideoDataset2D) -> DataLoader:
        """Batches of (B, V, ...): all `test_clips` views of each video, for `trained_part`."""
        views = self.recipe.test_clips
        if not self.keeps_activations:
            return self._batches(ClipViews(dataset, views))
        return self._batches(self.activations(dataset).through(self.model.summary))

    def activations(self, *datasets: VideoDataset2D, view: int | str | None = None) -> Activations:
        """The frozen trunk's activations of the data sets' clips; those that are missing are computed first.

        Training clips have `train_views` random views, others `test_clips` evenly spread ones; `view` as `Activations`.
        """
        files = [paths for streams in self.keep(datasets, self.recipe.modality) for paths in zip(*streams, strict=True)]
        return Activations(files, [its.label(i) for its in datasets for i in range(len(its))], view)

    def keep(self, datasets: Sequence[VideoDataset2D], modality: str) -> list[list[list[Path]]]:
        """Computes what is missing of the clips' activations, as a recipe of that modality sees them, each clip decoded
        once; gives for each data set and each stream the files that keep them."""
        names, asked = modality.split("+"), []
        for dataset in datasets:
            views = self.recipe.train_views if dataset.train else self.recipe.test_clips
            asked += [(dataset if name == self.recipe.modality else
                       self._dataset(dataset.csv, dataset.train, replace(self.recipe, modality=name)), views)
                      for name in names]
        parts = "+".join(dict.fromkeys(dataset.csv.stem for dataset in datasets))
        files = trunk_activations(self.model, asked, self.device, self.seed, self.cache,
                                  f"{self.files.model_name} {parts} {modality}", self.recipe.precision, self.engine)
        return [files[first:first + len(names)] for first in range(0, len(files), len(names))]

    @property
    def engine(self) -> str:
        """What computes the activations of the data set's clips: the same for all of its parts and modalities."""
        recipe, clips = self.recipe, sum(self.data.split["clips"].values())
        pixels = clips * (recipe.train_views + recipe.test_clips) * recipe.num_frames * self.model.preprocessing.crop**2
        return choose_engine(recipe.engine, NETWORKS[self.model.backbone].converts, self.device,
                             choose_precision(recipe.precision, self.device), pixels)

    def _batches(self, dataset, shuffle: bool = False) -> DataLoader:
        kept = {"num_workers": 0, "collate": tuple} if self.keeps_activations else {}  # comes in batches, without help
        return make_loader(dataset, self.recipe.batch_size, shuffle, device=self.device, **kept)

    # model

    @property
    def initial_weights(self) -> str:
        """The weights that the model is built with: the pretrained ones, or `none` where a checkpoint follows."""
        return "none" if self.reloaded else self.source

    def build(self) -> Experiment:
        """Builds the model."""
        seed_everything(self.seed)
        return self.adopt(build_model(self.recipe, len(self.data.classes), self.initial_weights, self.files.backbone))

    def adopt(self, model: VideoModel) -> Experiment:
        """Takes a model that was built with `initial_weights`; where it is reloaded, with the checkpoint's weights."""
        self.model = model.to(self.device)
        if self.reloaded:
            model.load_state_dict(torch.load(self.files.checkpoint, map_location=self.device, weights_only=True))
            model.source = self.source
            model.eval()
        return self

    @property
    def keeps_activations(self) -> bool:
        """Whether the frozen trunk's activations are computed once and kept."""
        return self.recipe.cache == "activations"

    def trained_part(self) -> nn.Module:
        """What training sees, as `data_parallel.trained_part`."""
        return trained_part(self.model, self.recipe)

    def deployed(self) -> Deployed:
        """The model as it is tested, and as one would run it."""
        precision = self.recipe.precision if self.keeps_activations else "float32"
        return Deployed(FrozenTrunk(self.model, self.device, precision), self.model.head)

    # training

    def criterion(self) -> nn.Module:
        """Cross-entropy with the recipe's label smoothing."""
        return nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing)

    def training(self, samples: int, until: int | None = None, **settings) -> Training:
        """The training that the recipe asks for, of `samples` clips per epoch; `settings` as `resumable`.

        `until` is the epoch that it ends with, whose weights are kept; None leaves that to early stopping.
        """
        trained = self.trained_part()
        optimizer = make_optimizer(self.recipe, trained)
        scheduler = make_scheduler(self.recipe, optimizer, samples)
        stopping = None if until else EarlyStopping(self.recipe.patience, self.recipe.tolerance)
        return self.resumable(trained, optimizer, scheduler, stopping, epochs=until or self.recipe.epochs, **settings)

    def resumable(self, trained: nn.Module, optimizer: torch.optim.Optimizer, scheduler,
                  stopping: EarlyStopping | None, **settings) -> Training:
        """A `Training` of these pieces, resumed from this experiment's last state; without epochs after a reload.

        Args:
            trained, optimizer, scheduler, stopping: as `Training`.
            settings: other arguments of `Training`, instead of this experiment's own.
        """
        settings = {"epochs": self.recipe.epochs, "seed": self.seed, "last": self.files.last, **settings}
        training = Training(trained, optimizer, scheduler, stopping, request=json.dumps(self.request, sort_keys=True),
                            history=self.history if self.reloaded else None, monitor=self.recipe.monitor, **settings)
        training.feature_seconds = self.feature_seconds
        return training

    def fit(self, training: Training, train_loader: DataLoader, val_loader: DataLoader | None) -> Training:
        """Trains to the last epoch or early stopping; in a cluster first, where RAY asks for it."""
        self.fit_in_cluster(training, train_loader, val_loader)
        return fit(training, train_loader, val_loader, self.criterion(), self.device)

    def fit_in_cluster(self, training: Training, train_loader: DataLoader, val_loader: DataLoader | None) -> None:
        """Where RAY names a cluster and stages of the network are trained, its processes share every batch (see
        `data_parallel`); `training` then goes on from what they saved, with no epoch left. Else nothing happens."""
        cluster = asked_cluster()
        if cluster and self.recipe.trained != "head":
            fit_in_cluster(training, train_loader, val_loader, self.criterion(), cluster, self.device)

    def save(self, training: Training) -> None:
        """Writes checkpoint, statistics and sidecar; the sidecar last, since it is what makes a checkpoint count.

        A model that was reloaded is saved already: nothing is written.

        Raises:
            WeightsError: as `save_weights`.
        """
        self.model.eval()
        if self.reloaded:
            return
        files, model = self.files, self.model
        weights = model.state_dict()
        weights.update({name: value.cpu() for name, value in weights.items()})  # to be loaded without a GPU, too
        save_weights(files, weights)
        versions = environment(self.device)
        total, trained = model.count_parameters()
        size_mb = files.checkpoint.stat().st_size / 2**20
        train_time = training.seconds + training.feature_seconds
        write_json(files.stats, {
            **training.history, "best_val_acc": max(training.history["val_accs"]), "best_epoch": training.best_epoch,
            "train_time": train_time, "feature_time": training.feature_seconds, "train_memory_mb": memory_mb(),
            "params": total, "trained_params": trained, "model_size_mb": size_mb, "facts": self.describe(),
            "dataset": self.data.name, "classes": self.data.classes, "split": self.data.split,
            "recipe": self.recipe.to_dict(), "backbone": model.backbone, "weights": model.source, "seed": self.seed,
            "engine": self.engine if self.keeps_activations else "torch", "device": str(self.device),
            "environment": versions})
        _save_numbers(files)
        pretrained = weights_name(model.backbone) if model.source != "none" else None
        write_json(files.sidecar, {**self.request, "weights_file": pretrained, "environment": versions,
                                   "sha256": file_hash(files.checkpoint)})
        training.last.unlink(missing_ok=True)


def _save_numbers(files: ResultFiles) -> None:
    """The seed's arrays of single numbers, as the statistics have them."""
    stats = read_json(files.stats)
    for what, name in (("train_time", "train_time"), ("model_size", "model_size_mb"), ("inf_time", "inference_time")):
        if name in stats:
            save_array(files.array(what), stats[name])


def save_weights(files: ResultFiles, weights: dict[str, torch.Tensor]) -> None:
    """Writes a checkpoint, once it is loaded back as it was; an earlier model moves to the folder `previous`.

    Raises:
        WeightsError: it isn't: nothing is written, and an earlier model stays.
    """
    with replaced_model(files) as temporary:
        temporary.write_bytes(torch_bytes(weights))
        read = {}
        with suppress(Exception):  # whatever is wrong with it shows now, not when it is needed
            read = torch.load(temporary, map_location="cpu", weights_only=True)
        if read.keys() != weights.keys() or not all(_equal(read[name], weights[name].cpu()) for name in read):
            raise WeightsError(f"{files.checkpoint}: not saved: torch {torch.__version__} doesn't load it back as it "
                               "was (constraints.txt has the versions that were tested together)")


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(), second.nan_to_num())


# ---------------------------------------------------------------- reload or train

def prepare(kind: str, data: VideoData, recipe: Recipe | str = "recommended", weights: str = "auto", seed: int = 42,
            backbone: str | None = None, device: str | None = None, cache: Path = CACHE) -> Experiment:
    """What is to be done: a reload when the saved model is what is asked for; otherwise one line says what differs.

    Arguments and errors as `load_or_train`. The model itself is left to `Experiment.build`, or to the caller.
    """
    recipe = get_recipe(recipe, kind) if isinstance(recipe, str) else recipe
    files = ResultFiles(data.results, kind, DEFAULT_BACKBONE[kind])
    saved = read_json(files.sidecar) if files.checkpoint.is_file() else {}
    default = DEFAULT_BACKBONE[kind] if saved.get("backbone") != PACKAGED[kind] else PACKAGED[kind]
    as_saved = recipe.resolved(backbone or default)
    asked = {"dataset": data.name, "classes": data.classes, "split": data.split["sha256"], "recipe": as_saved.to_dict(),
             "weights": weights, "backbone": backbone or default, "seed": seed, "architecture": ARCHITECTURE}
    reasons = ["there is no saved model"] if not saved else differences(asked, saved)
    if saved and not reasons and file_hash(files.checkpoint) != saved["sha256"]:
        reasons = [f"{files.checkpoint.name} is not the file that its sidecar describes"]
    stats = read_json(files.stats)
    if not reasons and not {*HISTORY, "train_time", "best_epoch"} <= stats.keys():
        reasons = [f"{files.stats.name} does not tell of its training"]
    if not reasons:
        _save_numbers(files)
        print(f"reloading {files.checkpoint.name}: trained {len(stats['train_losses'])} epochs in "
              f"{stats['train_time']:.0f} s, kept: epoch {stats['best_epoch']}")
        files = ResultFiles(files.root, files.kind, saved["backbone"])
        as_saved = replace(as_saved, modality=saved["modality"])
        return Experiment(data, as_saved, None, files, accelerator(device), saved["seed"], cache, saved["weights"],
                          reloaded=True)
    print(f"training the {kind.upper()}-CNN: {'; '.join(reasons)}")
    planned = plan(data, recipe, choose_source(kind, weights, backbone), seed, backbone, device, cache)
    backbone = planned.files.backbone
    planned.request = {**asked, "weights": planned.source, "recipe": recipe.resolved(backbone).to_dict(),
                       "modality": planned.recipe.modality, "backbone": backbone}
    return planned


def load_or_train(kind: str, data: VideoData, recipe: Recipe | str = "recommended", weights: str = "auto",
                  seed: int = 42, backbone: str | None = None, device: str | None = None,
                  cache: Path = CACHE) -> Experiment:
    """Reloads the model when the saved one is what is asked for; otherwise trains it and saves it.

    A training that was interrupted goes on after its last whole epoch. A saved model that differs is moved to the
    folder `previous` beside it, never overwritten.

    Args:
        kind: `2d` or `3d`.
        data: from `open_data`.
        recipe: a name, or a `Recipe`.
        weights: one of `networks.SOURCES`; `auto` also accepts what a saved model was trained with.
        seed: of initial values, augmentation and order: the same one gives the same training to the last bit.
        backbone: one of `config.NETWORKS` of this kind; None takes the one that goes with the weights.
        device: None takes CUDA, else Apple's MPS, else the CPU.
        cache: where activations are kept.

    Raises:
        WeightsError: the pretrained weights can't be had.
        VideoError, FileNotFoundError, ValueError: from the data; or network, weights and recipe don't go together.
    """
    experiment = prepare(kind, data, recipe, weights, seed, backbone, device, cache).build()
    if not experiment.reloaded:
        train_ds, val_ds, _ = (experiment.dataset(part, train=part == "train") for part in ("train", "val", "test"))
        train_loader, val_loader = experiment.loader(train_ds), experiment.loader(val_ds)
        training = experiment.training(len(train_ds))
        experiment.save(experiment.fit(training, train_loader, val_loader))
    return experiment


def plan(data: VideoData, recipe: Recipe, source: str, seed: int, backbone: str | None = None,
         device: str | torch.device | None = None, cache: Path = CACHE) -> Experiment:
    """An experiment without its model; arguments as `load_or_train`, but for `source`, which `choose_source` gives.

    The modality `auto` is settled here, by the training part alone.

    Raises:
        ValueError: backbone and source don't go together.
    """
    backbone = choose_backbone(recipe.kind, source, backbone)
    planned = Experiment(data, recipe.resolved(backbone), None, ResultFiles(data.results, recipe.kind, backbone),
                         accelerator(device), seed, cache, source)
    return _with_modality(planned) if recipe.modality == "auto" else planned


@torch.inference_mode()
def _with_modality(planned: Experiment) -> Experiment:
    """The experiment with the modality that `modality_scores` puts first, for features averaged over training views."""
    streams, seconds = {}, 0.0
    built = replace(planned, recipe=replace(planned.recipe, modality="rgb")).build()  # the network is the same for both
    for name in ("rgb", "diff"):
        its = replace(built, recipe=replace(built.recipe, modality=name))
        clips, started, model = its.dataset("train", train=True), time.perf_counter(), its.model.eval()
        if not streams:
            its.keep([clips], "rgb+diff")  # both in one pass
        rows = [model.embed(views.to(its.device)).mean(dim=0) for views, _ in its.activations(clips)]
        streams[name] = torch.stack(rows).cpu().numpy()
        seconds += time.perf_counter() - started
    scores = modality_scores(streams, clips.data, planned.data.split["groups_named"], planned.seed)
    chosen = scores.index[0]
    print(f"modality {chosen}: log loss (accuracy) by inner folds of the training part is "
          + ", ".join(f"{name} {row.log_loss:.3f} ({row.accuracy:.3f})" for name, row in scores.iterrows()))
    return replace(planned, recipe=replace(planned.recipe, modality=chosen),
                               feature_seconds=seconds)


def untrained(data: VideoData, recipe: Recipe, source: str, seed: int, backbone: str | None = None,
              device: str | torch.device | None = None, cache: Path = CACHE) -> Experiment:
    """An experiment with its model before its training; arguments as `plan`.

    Raises:
        WeightsError, ValueError: as `build_model`.
    """
    return plan(data, recipe, source, seed, backbone, device, cache).build()


# ---------------------------------------------------------------- predictions

def predict(experiment: Experiment, part: str = "test") -> pd.DataFrame:
    """Predicts a part's videos; each video's probabilities are averaged over the recipe's `test_clips` views.

    Returns:
        One row per clip: clip_path, group, label, predicted, and `p_<class>` for each class, adding up to one.
    """
    views = view_probabilities(experiment.trained_part(), experiment.test_loader(experiment.dataset(part)),
                               experiment.device)
    return prediction_table(experiment.data, part, views.mean(dim=1))


def prediction_table(data: VideoData, part: str, probabilities: torch.Tensor) -> pd.DataFrame:
    """What `predict` returns, from a part's (N, num_classes) probabilities."""
    table = data.table(part)[["clip_path", "group", "label"]]
    table["predicted"] = [data.classes[i] for i in probabilities.argmax(dim=1).tolist()]
    return table.join(pd.DataFrame(probabilities.numpy(), columns=[f"p_{name}" for name in data.classes]))


@torch.inference_mode()
def view_probabilities(module: Callable, loader: DataLoader, device) -> torch.Tensor:
    """(N, V, num_classes) float64 probabilities of each view of batches (B, V, ...)."""
    module.eval()
    rows = []
    for x, _ in loader:
        logits = module(x.flatten(0, 1).to(device)).cpu()  # (B*V, num_classes)
        rows.append(logits.double().softmax(dim=1).unflatten(0, x.shape[:2]))
    return torch.cat(rows)


def pooled_features(experiment: Experiment, part: str) -> np.ndarray:
    """(N, F) float32: what the classifier sees of a part's clips, one centre view each; kept in the cache."""
    @torch.inference_mode()
    def compute() -> np.ndarray:
        model = experiment.model.eval()
        rows = []
        for x, _ in experiment.loader(experiment.dataset(part), summarized=False):
            x = x.to(experiment.device)
            rows.append(model.embed(x if experiment.keeps_activations else model.joined(model.trunk, x)).cpu())
        return torch.cat(rows).numpy()

    store = ArrayStore(experiment.cache)
    return store.get(store.path("pooled", (experiment.files.identity, part)), compute)
