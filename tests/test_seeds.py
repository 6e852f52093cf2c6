import statistics

import pandas as pd
import pytest
import torch

import evaluation
import seeds
from config import get_recipe
from experiment import load_or_train, open_data
from utils import read_json

TINY = dict(precision="float32", num_frames=4, epochs=3, test_clips=2, batch_size=6)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    data = open_data(str(tiny_dataset), results=tmp_path_factory.mktemp("results"))
    return load_or_train("3d", data, get_recipe("recommended", "3d", **TINY), "packaged", seed=0,
                         cache=tmp_path_factory.mktemp("cache"))


def test_the_own_seed_gives_the_very_model(trained):
    own = evaluation.evaluate(trained)
    again = seeds._as_before(trained, trained.seed)
    for name, value in again.model.trunk.state_dict().items():
        assert torch.equal(value, trained.model.trunk.state_dict()[name])
    pd.testing.assert_frame_equal(seeds._predictions(trained, trained.seed), own)


def test_other_seeds_are_trained_once_and_leave_the_model_alone(trained, monkeypatch):
    files = trained.files
    checkpoint = files.checkpoint.read_bytes()
    rows = seeds.repeat_training(trained, [1, 0, 2, 1])
    assert rows["seed"].tolist() == [0, 1, 2] and rows["log_loss"].nunique() == 3
    assert files.checkpoint.read_bytes() == checkpoint and not list(files.root.rglob("last_*"))
    assert read_json(files.stats)["seeds"] == rows.to_dict("records")
    own = evaluation.evaluate(trained)
    for seed in (1, 2):
        table = evaluation.read_predictions(files.repeated(seed))
        assert table["clip_path"].tolist() == own["clip_path"].tolist() and not table.equals(own)

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(seeds, "fit", no_training)
    before = files.stats.stat().st_mtime_ns
    pd.testing.assert_frame_equal(seeds.repeat_training(trained, [0, 1, 2]), rows)
    assert files.stats.stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="trained again"):
        seeds.repeat_training(trained, [3])


def test_an_interrupted_repetition_goes_on(trained, monkeypatch, capsys):
    whole = seeds._predictions(trained, 5)
    trained.files.repeated(5).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(seeds, "predict", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            seeds._predictions(trained, 5)
    assert list(trained.files.root.rglob("last_*"))
    with monkeypatch.context() as patch:  # every epoch is done: none is trained
        patch.setattr("experiment.train_one_epoch", lambda *_: (_ for _ in ()).throw(AssertionError))
        pd.testing.assert_frame_equal(seeds._predictions(trained, 5), whole)


def test_summary_of_seeds():
    values = [0.9, 1.0, 0.8]
    rows = pd.DataFrame({"seed": [0, 1, 2], "accuracy": values, "f1": values, "log_loss": [0.3, 0.1, 0.2]})
    results = {"a": {"seeds": rows.to_dict("records")}, "b": {"seeds": rows.to_dict("records")[:1]}, "c": {}}
    table = seeds.seeds_table(results)
    assert table.index.tolist() == ["a"] and table.loc["a", "trainings"] == 3
    assert table.loc["a", "accuracy mean"] == round(statistics.mean(values), 3)
    assert table.loc["a", "accuracy sd"] == round(statistics.stdev(values), 3)
    assert "0.900 with a standard deviation of 0.100, from 0.800 to 1.000" in seeds.reading(rows)
    assert seeds.reading(rows.head(1)).startswith("One training only")
