import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from store import atomic_path
from utils import (
    EarlyStopping, eval_one_epoch, memory_mb, read_json, save_array, seed_everything, train_one_epoch,
    update_json, write_csv, write_json,
)


def loader(n=10, batch=4):
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(n, 6), torch.randint(0, 3, (n,))), batch_size=batch)


def test_results_are_weighted_by_samples():
    model, data = nn.Linear(6, 3), loader()  # batches of 4, 4 and 2
    x, y = data.dataset.tensors
    loss, accuracy = eval_one_epoch(model, data, nn.CrossEntropyLoss(), "cpu")
    assert loss == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-5)
    assert accuracy == pytest.approx((model(x).argmax(1) == y).float().mean().item())


def test_training_changes_the_model_and_evaluation_does_not():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    before = model[1].weight.clone()
    eval_one_epoch(model, loader(), nn.CrossEntropyLoss(), "cpu")
    assert torch.equal(before, model[1].weight) and not model.training
    steps = []
    train_one_epoch(model, loader(), torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), "cpu",
                    lambda: steps.append(1))
    assert not torch.equal(before, model[1].weight) and model.training and len(steps) == 3


def test_loss_that_is_not_finite_stops():
    model = nn.Linear(6, 3)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="learning rate"):
        eval_one_epoch(model, loader(), nn.CrossEntropyLoss(), "cpu")


def test_early_stopping():
    stopping = EarlyStopping(patience=2)
    assert [stopping(loss) for loss in (1.0, 0.8, 0.9, 0.7, 0.7, 0.71)] == [False] * 5 + [True]
    assert stopping.stop and stopping.best == 0.7
    again = EarlyStopping(patience=2)
    again.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert again.stop and again.best == 0.7


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"kept": 1})
    with pytest.raises(RuntimeError):
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert read_json(path) == {"kept": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_json_keeps_keys_and_takes_numpy(tmp_path):
    path = tmp_path / "stats.json"
    update_json(path, train_losses=[1.0], accuracy=np.float64(0.5))
    assert list(update_json(path, counts=np.arange(2))) == ["train_losses", "accuracy", "counts"]
    assert read_json(path) == {"train_losses": [1.0], "accuracy": 0.5, "counts": [0, 1]}
    path.write_text("{")
    with pytest.raises(ValueError, match="stats.json"):
        read_json(path)
    assert read_json(tmp_path / "absent.json") == {}


def test_arrays_and_tables(tmp_path):
    save_array(tmp_path / "a.npy", np.arange(3))
    write_csv(tmp_path / "t.csv", pd.DataFrame({"x": [1]}))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2] and (tmp_path / "t.csv").read_text() == "x\n1\n"


def test_seeds_and_memory():
    seed_everything(3)
    first = torch.rand(2), np.random.rand()
    seed_everything(3)
    assert torch.equal(first[0], torch.rand(2)) and first[1] == np.random.rand()
    assert 0 < memory_mb()["current"] <= memory_mb()["peak"] * 1.5
