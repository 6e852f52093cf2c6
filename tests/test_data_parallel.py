"""Stages that are trained in micro-batches: the same in one process and in several, to within rounding."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, default_collate

import data_loader
from config import NETWORKS, Network, get_recipe, register
from data_loader import DrawnClips, SharedBatches, own_stacked, shared_loader
from data_parallel import MicroBatched, trained_part
from experiment import load_or_train, prepare
from models import build_model
from utils import Training, fit, make_optimizer, make_scheduler, seed_everything
from videos.library import open_data

CLIPS, BATCH, EPOCHS = 13, 6, 3  # so that the last batch has a single clip


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.GELU())


def random_and_normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3),
                         nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())


class Noisy(Dataset):
    """Clips of noise about their label, which is drawn anew each time."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.labels = shape, [number % 3 for number in range(CLIPS)]

    def __len__(self):
        return CLIPS

    def __getitem__(self, index):
        still = torch.randn(self.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        return still + 0.3 * torch.randn(self.shape, dtype=torch.float64) + self.labels[index], self.labels[index]


def model_of(build, trained="all", **changes):
    if build is not None:
        register(Network("tiny", "2d", "Tiny", build))
    recipe = get_recipe("recommended", "2d", trained=trained, modality="rgb+diff", stills=2, num_frames=3, size=32,
                        epochs=EPOCHS, batch_size=BATCH, micro_batch=2, lr=1e-3, cache="none", **changes)
    seed_everything(5)
    names = ("none", "tiny") if build else ("packaged", "efficientnet_lite0")
    model = build_model(recipe, 3, *names).double()
    NETWORKS.pop("tiny", None)
    return model, recipe


def training_of(model, recipe, last=None, epochs=EPOCHS):
    part = trained_part(model, recipe)
    optimizer = make_optimizer(recipe, part)
    return Training(part, optimizer, make_scheduler(recipe, optimizer, CLIPS), None, epochs, seed=1, last=last,
                    report=None)


def trained(training, recipe, count=1):
    shape = (5, 3, 32, 32)
    loaders = [shared_loader(Noisy(shape), Noisy(shape).labels, BATCH, recipe.micro_batch, shuffle, num_workers=0)
               for shuffle in (True, False)]
    model = training.model
    if count > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    return fit(training, *loaders, nn.CrossEntropyLoss(), "cpu", model)


def one_of_several(rank, count, folder, build, kind, epochs):
    """What each process does: its state and losses go to a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{count}-{epochs}", rank=rank, world_size=count)
    model, recipe = model_of(build, kind)
    training = trained(training_of(model, recipe, folder / "last.pth", epochs), recipe, count)
    torch.save({"state": training.model.state_dict(), "history": training.history}, folder / f"{rank}.pth")
    dist.destroy_process_group()


def several(count, folder, build, kind="all", epochs=EPOCHS):
    mp.spawn(one_of_several, (count, folder, build, kind, epochs), nprocs=count)
    return [torch.load(folder / f"{rank}.pth") for rank in range(count)]


def same(training, other, tolerance=1e-7):
    for name, values in training.history.items():
        np.testing.assert_allclose(values, other["history"][name], rtol=tolerance, atol=tolerance)
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, other["state"][name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("build, kind", [(plain, "all"), (random_and_normalised, "all"), (None, "stage")])
def test_several_processes_train_as_one(tmp_path, build, kind):
    alone = trained(training_of(*model_of(build, kind)), model_of(build, kind)[1])
    assert alone.history["train_losses"][-1] < alone.history["train_losses"][0]
    for other in several(2, tmp_path, build, kind):
        same(alone, other)


@pytest.mark.slow
def test_a_training_goes_on_in_other_numbers_of_processes(tmp_path):
    build = random_and_normalised
    alone = trained(training_of(*model_of(build)), model_of(build)[1])
    several(3, tmp_path, build, epochs=1)
    several(2, tmp_path, build, epochs=2)
    (kept,) = tmp_path.glob("last-*.pth")
    assert kept.is_file()
    resumed = trained(training_of(*model_of(build), tmp_path / "last.pth"), model_of(build)[1])
    same(alone, {"history": resumed.history, "state": resumed.model.state_dict()})


def gradients(model, size, x, labels):
    part = MicroBatched(model, 0, size).train()
    part.zero_grad()
    torch.manual_seed(9)
    nn.CrossEntropyLoss()(part(x), labels).backward()
    return {name: its.grad.clone() for name, its in part.named_parameters()}


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch():
    model, _ = model_of(plain)
    for layer in (model.classifier[1], model.still_classifier[1]):
        nn.init.normal_(layer.weight)  # they start at zero, and let nothing through
    x, labels = default_collate([Noisy((8, 3, 32, 32))[number] for number in range(7)])
    whole = gradients(model, 7, x, labels)
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    torch.manual_seed(9)
    torch.randint(2, ())  # a number for what is drawn within the stages
    plainly = nn.CrossEntropyLoss()(model.train()(x), labels)
    model.zero_grad()
    plainly.backward()
    for size in (1, 2, 3):
        parts = gradients(model, size, x, labels)
        for name, its in parts.items():
            torch.testing.assert_close(its, whole[name])
    for name, its in model.named_parameters():
        torch.testing.assert_close(its.grad if its.grad is not None else torch.zeros_like(its), whole[f"part.{name}"])


def test_running_statistics_are_the_mean_over_micro_batches():
    model, _ = model_of(random_and_normalised)
    x = torch.stack([Noisy((8, 3, 32, 32))[number][0] for number in range(6)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part = MicroBatched(model, 0, 2).train()
    part(x).sum().backward()
    after, seen = {name: value.clone() for name, value in model.state_dict().items()}, []
    for micro in x.split(2):
        model.load_state_dict(before)
        MicroBatched(model, 0, 2).train()(micro)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    name = next(name for name in before if name.startswith("stages") and name.endswith("running_mean"))
    torch.testing.assert_close(after[name], torch.stack([its[name] for its in seen]).mean(dim=0))
    assert not torch.equal(after[name], before[name])
    counted = name.replace("running_mean", "num_batches_tracked")
    assert after[counted] == seen[0][counted] == 2  # each stream passes once


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_processes_share_every_batch_and_draw_alike(clips, batch, micro, count, shuffle):
    def seen(rank, count):
        torch.manual_seed(7)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data_loader, "team", lambda: (rank, count))
            return list(SharedBatches(clips, batch, micro, shuffle))

    (alone,), together = [seen(0, 1)], [seen(rank, count) for rank in range(count)]
    assert sorted(index for its in alone for index, *_ in its) == list(range(clips))
    assert len(alone) == len(SharedBatches(clips, batch, micro, shuffle)) == math.ceil(clips / batch)
    for batches in zip(alone, *together, strict=True):
        for (index, key, wanted), *theirs in zip(*batches, strict=True):
            assert wanted and [its[:2] for its in theirs] == [(index, key)] * count
            assert sum(its[2] for its in theirs) == 1
    if clips > 3 and shuffle:
        assert seen(0, 1) == alone


def test_what_a_clip_draws_belongs_to_it():
    clips = DrawnClips(Noisy((2, 3, 4, 4)), Noisy((1,)).labels)
    torch.manual_seed(1)
    first = clips[4, 99, True]
    state = torch.get_rng_state()
    again = clips[4, 99, True]
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first[0], again[0]) and first[1] == 1
    assert not torch.equal(first[0], clips[4, 98, True][0]) and clips[4, 99, False] == (None, 1)
    x, labels = own_stacked([clips[0, 1, False], clips[1, 2, True], clips[2, 3, True]])
    assert x.shape == (2, 2, 3, 4, 4) and labels.tolist() == [0, 1, 2]
    assert own_stacked([clips[0, 1, False]])[0].shape == (0,)


# ---------------------------------------------------------------- in a cluster

SMALL = {"trained": "stage", "cache": "none", "modality": "rgb", "num_frames": 4, "stills": 4, "size": 32, "epochs": 3,
         "batch_size": 8, "micro_batch": 2, "lr": 1e-4}


def run(data, folder, **changes):
    recipe = get_recipe("recommended", "2d", **{**SMALL, **changes})
    return load_or_train("2d", data, recipe, "packaged", 0, cache=folder / "cache")


@pytest.mark.slow
def test_a_cluster_trains_as_one_process(two_nodes, tiny_dataset, tmp_path, monkeypatch, capsys):
    shared = run(open_data(str(tiny_dataset), results=tmp_path / "cluster"), tmp_path)
    told = capsys.readouterr().out
    assert "epoch  1/3" in told and "going on after epoch 3" in told
    assert not list((tmp_path / "cluster").rglob("last_*"))
    monkeypatch.delenv("RAY")
    alone = run(open_data(str(tiny_dataset), results=tmp_path / "alone"), tmp_path)
    for name, values in alone.history.items():
        np.testing.assert_allclose(values, shared.history[name], atol=2e-3)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(value, shared.model.state_dict()[name], atol=2e-3, rtol=2e-2, msg=name)


@pytest.mark.slow
def test_a_node_that_dies_costs_an_epoch_at_most(two_nodes, tiny_dataset, tmp_path):
    told = []

    def report(line):
        told.append(line)
        if line.startswith("epoch  2"):
            two_nodes.lose()

    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    experiment = prepare("2d", data, get_recipe("recommended", "2d", **{**SMALL, "epochs": 6}), "packaged", 0,
                         cache=tmp_path / "cache").build()
    train_ds, val_ds = experiment.dataset("train", train=True), experiment.dataset("val")
    training = experiment.training(len(train_ds), report=report)
    experiment.fit(training, experiment.loader(train_ds), experiment.loader(val_ds))
    assert len(training.history["val_accs"]) == 6
    epochs = [line[:8] for line in told if line.startswith("epoch")]
    assert epochs == sorted({*epochs}) and {"epoch  1", "epoch  2", "epoch  6"} <= {*epochs}  # none of them twice


@pytest.mark.slow
def test_an_error_in_the_cluster_is_told(two_nodes, tiny_dataset, tmp_path):
    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    with pytest.raises(FloatingPointError, match="the loss became"):
        run(data, tmp_path, lr=1e30, batch_size=4)
