"""Training: one epoch, early stopping, and a loop over epochs that can be interrupted anywhere."""

import dataclasses
import io
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from config import get_recipe
from utils import (
    EarlyStopping,
    Training,
    eval_one_epoch,
    fit,
    make_optimizer,
    make_scheduler,
    seed_everything,
    torch_bytes,
    train_one_epoch,
)

CRITERION = nn.CrossEntropyLoss()


def loader(n=10, batch=4, shuffle=False):
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(n, 6), torch.randint(0, 3, (n,))), batch_size=batch, shuffle=shuffle)


def test_results_are_weighted_by_samples():
    model, data = nn.Linear(6, 3), loader()  # batches of 4, 4 and 2
    x, y = data.dataset.tensors
    loss, accuracy = eval_one_epoch(model, data, CRITERION, "cpu")
    assert loss == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-5)
    assert accuracy == pytest.approx((model(x).argmax(1) == y).float().mean().item())


def test_training_changes_the_model_and_evaluation_does_not():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    before = model[1].weight.clone()
    eval_one_epoch(model, loader(), CRITERION, "cpu")
    assert torch.equal(before, model[1].weight) and not model.training
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train_one_epoch(model, loader(), optimizer, CRITERION, "cpu", scheduler)
    assert not torch.equal(before, model[1].weight) and model.training
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)  # after each of three batches


def test_loss_that_is_not_finite_stops():
    model = nn.Linear(6, 3)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="learning rate"):
        eval_one_epoch(model, loader(), CRITERION, "cpu")


def test_early_stopping():
    stopping = EarlyStopping(patience=2)
    assert [stopping(loss) for loss in (1.0, 0.8, 0.9, 0.7, 0.7, 0.71)] == [False] * 5 + [True]
    assert stopping.stop and stopping.best == 0.7
    patient = EarlyStopping(patience=2, tolerance=0.1)
    assert [patient(loss) for loss in (1.0, 1.09, 1.2, 1.05, 0.5, 0.56, 0.54, 0.6)] == [False] * 8
    assert patient.waited == 1 and patient.best == 0.5 and patient(0.7)
    again = EarlyStopping(patience=2)
    again.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert again.stop and again.best == 0.7


def test_seeds():
    seed_everything(3)
    first = torch.rand(2), np.random.rand(), random.random()
    seed_everything(3)
    assert torch.equal(torch.rand(2), first[0]) and (np.random.rand(), random.random()) == first[1:]


def test_the_seeds_schedule_halves_every_five_epochs():
    recipe = get_recipe("seed", "2d")
    optimizer = make_optimizer(recipe, nn.Linear(6, 3))
    scheduler, rates = make_scheduler(recipe, optimizer, samples=10), []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        for _ in range(3):  # batches of 4, 4 and 2
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx([1e-4] * 5 + [5e-5] * 5 + [2.5e-5])


@pytest.mark.parametrize("name", ["optimizer", "schedule"])
def test_unknown_names_are_told(name):
    recipe = dataclasses.replace(get_recipe("seed", "2d"), **{name: "other"})
    with pytest.raises(ValueError, match=f"unknown {name} 'other'"):
        make_scheduler(recipe, make_optimizer(recipe, nn.Linear(6, 3)), 10)


# ---------------------------------------------------------------- the loop

def training(last=None, epochs=6, patience=3, tolerance=0.0, **settings):
    seed_everything(0)
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 3))
    recipe = get_recipe("recommended", "2d", trained="head", lr=0.05, epochs=epochs, batch_size=4)
    optimizer = make_optimizer(recipe, model)
    scheduler = make_scheduler(recipe, optimizer, samples=10)
    stopping = EarlyStopping(patience, tolerance) if patience else None
    return Training(model, optimizer, scheduler, stopping, epochs, seed=1, last=last, **settings)


def run(its, stop_after=None):
    """The loop as it stands on the notebooks' pages; interrupted in the epoch after `stop_after`."""
    train_loader, val_loader = loader(shuffle=True), loader(8)
    for epoch in its:
        train_loss, train_acc = train_one_epoch(its.model, train_loader, its.optimizer, CRITERION, "cpu", its.scheduler)
        val_loss, val_acc = eval_one_epoch(its.model, val_loader, CRITERION, "cpu")
        if epoch == (stop_after or 0) + 1 and stop_after is not None:
            raise KeyboardInterrupt
        its.record(train_loss, train_acc, val_loss, val_acc)
    return its


def test_the_page_and_the_function_train_the_same():
    page, function = run(training()), fit(training(), loader(shuffle=True), loader(8), CRITERION, "cpu")
    assert page.history == function.history and page.best_epoch == function.best_epoch
    assert all(torch.equal(a, b) for a, b in zip(page.model.parameters(), function.model.parameters(), strict=True))


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_an_interrupted_training_ends_the_same(tmp_path, stop_after, capsys):
    whole = run(training(patience=9))
    with pytest.raises(KeyboardInterrupt):
        run(training(tmp_path / "last.pth", patience=9, request="a"), stop_after)
    torch.rand(5)  # whatever was drawn meanwhile
    resumed = run(training(tmp_path / "last.pth", patience=9, request="a"))
    assert resumed.history == whole.history and len(whole.history["val_accs"]) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert (f"going on after epoch {stop_after}" in capsys.readouterr().out) == (stop_after > 0)


def test_another_or_a_broken_state_is_not_resumed(tmp_path, capsys):
    last, whole = tmp_path / "last.pth", run(training())
    with pytest.raises(KeyboardInterrupt):
        run(training(last, request="a"), 2)
    other = training(last, request="b")
    assert run(other).history == whole.history and "going on" not in capsys.readouterr().out
    own = training(last, request="a")
    assert own.last != other.last and own.last.is_file()  # nothing of it was lost meanwhile
    content = own.last.read_bytes()
    for broken in (b"half", content[:-1000], other.last.read_bytes(), content[:5000] + b"?" + content[5001:]):
        own.last.write_bytes(broken)
        assert run(training(last, request="a")).history == whole.history
        assert "is broken: training from the start" in capsys.readouterr().out


@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_the_best_epoch_is_kept_and_without_early_stopping_the_last(monitor):
    best, last = run(training(patience=2, monitor=monitor)), run(training(patience=None))
    accuracies, losses = best.history["val_accs"], best.history["val_losses"]
    ranks = [-loss if monitor == "loss" else (accuracy, -loss)
             for accuracy, loss in zip(accuracies, losses, strict=True)]
    assert best.best_epoch == 1 + ranks.index(max(ranks))
    tolerant = run(training(patience=2, tolerance=0.5))
    fine = [epoch for epoch, loss in enumerate(tolerant.history["val_losses"], 1)
            if loss < 1.5 * min(tolerant.history["val_losses"])]
    assert tolerant.best_epoch == fine[-1]
    kept = losses[best.best_epoch - 1], accuracies[best.best_epoch - 1]
    assert eval_one_epoch(best.model, loader(8), CRITERION, "cpu") == kept
    assert len(last.history["val_losses"]) == 6
    assert eval_one_epoch(last.model, loader(8), CRITERION, "cpu")[0] == last.history["val_losses"][-1]


def test_a_training_that_is_over_tells_its_lines_and_trains_nothing(capsys):
    first = run(training(epochs=20, patience=2))
    told = capsys.readouterr().out
    assert "early stopping" in told and len(first.history["val_accs"]) < 20
    over = training(epochs=20, patience=2, history=first.history)
    assert list(over) == [] and capsys.readouterr().out == told
    assert list(first) == []  # nor does one that has just ended


def test_equal_states_give_equal_files():
    state = {"weight": torch.arange(6.0), "epoch": 3}
    assert bytes(torch_bytes(state)) == bytes(torch_bytes(state))
    assert torch.equal(torch.load(io.BytesIO(torch_bytes(state)), weights_only=True)["weight"], state["weight"])
