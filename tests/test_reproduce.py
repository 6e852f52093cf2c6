"""The assignment's own run, from a loopback archive of tiny clips and planted weights to the page."""

import dataclasses
import json
import re
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from torchvision import models as tv
from urllib3.util import Retry

import config
import networks
import reproduce
import utils
from conftest import moving_square, write_video
from files import read_predictions
from metrics import accuracy_interval, classification_metrics, compare
from models import weights_file
from test_ucf101 import ArchiveServer, zip_of
from videos import ucf101

pytestmark = pytest.mark.slow

CLIPS = 2  # of each group, where UCF-101 has four and more
# The recipes as they are, but for what decides their cost.
SMALL = {"num_frames": 2, "framing": "whole", "size": 32, "augmentation": "clip", "batch_size": 16, "train_views": 1,
         "test_clips": 1}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A zip of tiny clips: the three classes with their 25 groups."""
    folder, members = tmp_path_factory.mktemp("clips"), {}
    for label, name in enumerate(config.CLASSES):
        for group in range(1, 26):
            for clip in range(1, CLIPS + 1):
                file = f"v_{name}_g{group:02d}_c{clip:02d}.avi"
                frames = moving_square(label, 10 * group + clip, count=6)
                members[file] = write_video(folder / file, frames, codec="XVID").read_bytes()
    return zip_of(members)


@pytest.fixture(scope="module")
def place(tmp_path_factory, archive):
    """Server, planted weights and small recipes, and the command with its folders."""
    with pytest.MonkeyPatch.context() as patch:
        folder, server = tmp_path_factory.mktemp("reproduce"), ArchiveServer(archive)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name, value in {"NO_PROXY": "127.0.0.1", "TORCH_HOME": str(folder / "torch")}.items():
            patch.setenv(name, value)
        weights_file("resnet18").parent.mkdir(parents=True)
        torch.manual_seed(0)
        torch.save(tv.resnet18(weights=None).state_dict(), weights_file("resnet18"))
        for key, recipe in config.RECIPES.items():
            more = {"stills": 2} if key[0] == "recommended" else {}
            depth = "layer2" if key[1] == "2d" else "full"
            patch.setitem(config.RECIPES, key, dataclasses.replace(recipe, **SMALL, **more, depth=depth))
        patch.setattr(ucf101, "FEWEST_CLIPS", CLIPS)
        patch.setattr(ucf101, "CLIP_COUNTS", dict.fromkeys(config.CLASSES, 25 * CLIPS))
        patch.setattr(reproduce, "CACHE", folder / "cache")
        patch.setattr(reproduce, "LATENCY_SECONDS", 0.02)

        def run(*options):
            reproduce.main(["--url", server.url, "--root", str(folder / "clips"), "--out", str(folder / "out"),
                            "--epochs", "1", "--kinds", "2d", *options])

        yield SimpleNamespace(run=run, server=server, out=folder / "out", clips=folder / "clips")
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def page(place) -> str:
    """The page of a first run: both splits, both recipes, the 2D-CNN."""
    place.run()
    return (place.out / "reproduce.md").read_text(encoding="utf-8")


def rows_of(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the tables below a heading: a model's cells, of all tables."""
    text, rows = page.split(f"## {heading}\n")[1].split("\n## ")[0], {}
    for line in re.findall(r"^\| (\d.*) \|$", text, re.MULTILINE):
        model, *cells = line.split(" | ")
        rows.setdefault(model, []).extend(cells)
    return rows


def test_the_page_has_every_model_beside_the_notebooks(page, place):
    for split, shared in (("random", None), ("official1", 0)):
        rows = rows_of(page, f"Split {split}")
        assert list(rows) == ["2D-CNN (seed)", "2D-CNN (recommended)", "2D-CNN (printed in the seed notebook)"]
        printed = rows.pop("2D-CNN (printed in the seed notebook)")
        assert {"0.957", "0.960", "11,178,051", "3718", "0.488"} <= set(printed)
        for recipe, cells in zip(("seed", "recommended"), rows.values(), strict=True):
            assert "–" not in cells and "ResNet-18" in cells
            table = read_predictions(place.out / f"{split}-{recipe}" / "predictions" / "2d-cnn.csv")
            wilson = accuracy_interval(table)
            assert cells[1:4] == [f"{len(table)}", f"{wilson.estimate:.3f}", f"{wilson.low:.3f} to {wilson.high:.3f}"]
        said = re.search(r"groups shared between parts: (\d+) of 75", page.split(f"## Split {split}")[1])
        assert int(said[1]) == shared if shared is not None else int(said[1]) > 0
        assert "test videos, " in page.split(f"## Split {split}")[1]
    for words in ("A small try: 1 epoch at most", "resnet18-f37072fd.pth", "The seed notebook printed 0.957 of 46",
                  "No group is shared between its parts", "commit ", "cores"):
        assert words in page, words


def test_the_figures_stand_beside_the_page(page, place):
    document = json.loads((place.out / "reproduce.json").read_text(encoding="utf-8"))
    assert document["classes"] == sorted(config.CLASSES) and document["environment"]["torch"]
    for split in ("random", "official1"):
        its = document["splits"][split]
        tables = [read_predictions(place.out / f"{split}-{recipe}" / "predictions" / "2d-cnn.csv")
                  for recipe in ("recommended", "seed")]
        (pair,) = its["pairs"]
        assert (pair["first"], pair["second"]) == ("2D-CNN (recommended)", "2D-CNN (seed)")
        assert [pair["difference"], pair["p_value"]] == pytest.approx([*compare(*tables)[:1], compare(*tables).p_value])
        assert [row["f1"] for row in reversed(its["models"])] == [classification_metrics(t)["f1"] for t in tables]


def test_nothing_is_written_but_clips_and_own_results(page, place):
    assert sorted(path.name for path in place.clips.iterdir()) == sorted(config.CLASSES)
    assert sorted(path.name for path in place.out.iterdir()) == [
        "official1-recommended", "official1-seed", "random-recommended", "random-seed", "reproduce.json",
        "reproduce.md", "splits"]


def figures_of(place) -> dict:
    return json.loads((place.out / "reproduce.json").read_text(encoding="utf-8"))["splits"]


def tables_of(page: str) -> list[str]:
    return re.findall(r"^\|.*", page, re.MULTILINE)


def test_a_second_run_trains_and_fetches_nothing_and_goes_on_where_something_lacks(page, place, monkeypatch, capsys):
    epochs, train = [], utils.train_one_epoch
    monkeypatch.setattr(utils, "train_one_epoch", lambda *given: epochs.append(1) or train(*given))
    before = figures_of(place)
    place.server.starts.clear()
    place.run()
    assert epochs == [] and place.server.starts == [] and capsys.readouterr().out.count("reloading") == 4
    assert figures_of(place) == before
    assert tables_of((place.out / "reproduce.md").read_text(encoding="utf-8")) == tables_of(page)
    shutil.rmtree(place.out / "official1-recommended")
    (place.clips / "Punch" / "v_Punch_g03_c01.avi").unlink()
    place.run()
    assert len(epochs) == 1 and capsys.readouterr().out.count("reloading") == 3
    assert len(place.server.starts) == 3  # the directory, again by the worker, and the clip
    assert (place.clips / "Punch" / "v_Punch_g03_c01.avi").is_file()


def test_the_official_splits_pooled(page, place):
    place.run("--splits", "official1", "--recipes", "recommended", "--folds")
    page = (place.out / "reproduce.md").read_text(encoding="utf-8")
    cells = rows_of(page, "The three official splits, pooled")["2D-CNN (recommended)"]
    assert cells[1] == str(3 * 21 * CLIPS) and "nothing to pair" in page


def test_the_3d_cnn(page, place, monkeypatch):
    torch.save(tv.video.r3d_18(weights=None).state_dict(), weights_file("resnet3d"))
    place.run("--kinds", "3d", "--splits", "official1", "--recipes", "seed", "--classes", "Punch", "pushups")
    page = (place.out / "reproduce.md").read_text(encoding="utf-8")
    rows = rows_of(page, "Split official1")
    assert {"R3D-18", "33,167,298", "1,026"} <= set(rows["3D-CNN (seed)"])
    assert "0.500" in rows["3D-CNN (printed in the seed notebook)"] and "can't be compared" in page
    weights_file("resnet3d").unlink()


def failure(place, *options) -> str:
    with pytest.raises(SystemExit) as error:
        place.run(*options)
    message = error.value.code  # a text is printed, with exit status 1
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_missing_weights_are_one_line_with_the_cure(page, place, monkeypatch):
    published = "http://127.0.0.1:9/r3d_18-b3b3357e.pth"
    monkeypatch.setattr(networks, "weights_url", lambda backbone: published)
    monkeypatch.setattr(utils, "train_one_epoch", None)  # nothing is trained before
    message = failure(place, "--kinds", "2d", "3d", "--epochs", "2")
    assert f"put that file, from {published}, into {weights_file('resnet3d').parent}" in message


def test_other_failures_are_one_line_with_the_cure(page, place, tmp_path, monkeypatch):
    monkeypatch.setattr(Retry, "get_backoff_time", lambda _: 0)
    assert "did you mean PullUps?" in failure(place, "--classes", "PullUp", "Punch")
    assert "needs one at least" in failure(place, "--epochs", "0")
    assert "name official1 in --splits" in failure(place, "--folds", "--splits", "random")
    nowhere = failure(place, "--root", str(tmp_path / "clips"), "--url", "http://127.0.0.1:9/UCF101_videos.zip")
    assert "no connection" in nowhere and "run again" in nowhere
