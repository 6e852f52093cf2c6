"""The whole work of the project in its smallest configuration, in stages, as the victim of benchmarks/faults.py.

A place is a folder with `source` clips, what is fetched and imported of them, `results`, `cache` and `out`. Each stage
goes on from what is there, as a user's second try would.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import threading
import zipfile
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import joblib
import nbformat
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn

import plots
import report
from classical import classifiers
from config import Network, get_recipe, register
from deployment.annotate import annotate
from deployment.answer import answer
from deployment.package import export_model
from deployment.prepared import load_model
from evaluation import cross_validate, evaluate, predict_validation
from experiment import Experiment, load_or_train
from files import read_sealed
from predict import write
from studies.tuning import run_study
from videos.decoding import walk
from videos.encoding import write_video
from videos.library import VideoData, open_data
from videos.ucf101 import fetch, import_tree

CLASSES = ("Down", "Right", "Still")
GROUPS = 6
TRIALS = 3
RECIPE = {"modality": "diff", "num_frames": 4, "size": 32, "train_views": 2, "test_clips": 2, "epochs": 6,
          "patience": 100, "grid": "1x1"}
VOLATILE = re.compile(r"time|second|memory|date|latency|environment|stamp|_ms$|^root$|load|sha256|^of$|^tables$")


def tiny_network() -> nn.Module:
    """(N, 3, H, W) to (N, 8, h, w)."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())


register(Network("tiny", "2d", "tiny network", tiny_network))


# ---------------------------------------------------------------- a place

def make_place(place: Path) -> Path:
    """A new place: its source clips, the zip that the first stage fetches them from, and an executed notebook."""
    for label, name in enumerate(CLASSES):
        for group in range(1, GROUPS + 1):
            write_video(place / "source" / name / f"v_{name}_g{group:02d}_c01.mp4", moving(label, group), 25.0)
    cells = [nbformat.v4.new_markdown_cell("# A page\n\nText."), nbformat.v4.new_code_cell(
        "1", execution_count=1, outputs=[nbformat.v4.new_output("execute_result", {"text/plain": "1"})])]
    (place / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), place / "notebooks" / "01_page.ipynb")
    with zipfile.ZipFile(place / "clips.zip", "w") as archive:
        for path in sorted((place / "source").rglob("*.mp4")):
            archive.write(path, path.with_suffix(".avi").name)  # the archive's names; the container is told by content
    return place


def copied(place: Path, target: Path) -> Path:
    """A copy of a place, whose results know that they are those of its own clips."""
    shutil.copytree(place, target)
    shutil.rmtree(target / "cache" / "clips", ignore_errors=True)  # of another folder's files
    for path in target.glob("results/*/source.json"):
        path.write_text(json.dumps({"root": str(target / "clips")}), encoding="utf-8")
    return target


def moving(label: int, seed: int, count: int = 16) -> np.ndarray:
    """(T, 48, 64, 3) uint8: a square on a scene of its own that moves down (0), to the right (1) or stays (2)."""
    rng = np.random.default_rng([label, seed])
    scene = cv2.resize(rng.integers(0, 120, (6, 8, 3), dtype=np.uint8), (64, 48))
    frames, (x, y) = np.repeat(scene[None], count, axis=0), rng.integers(2, 12, 2)
    for i, frame in enumerate(frames):
        top, left = y + (label == 0) * i, x + (label == 1) * 2 * i
        frame[top:top + 12, left:left + 12] = 250 - 40 * label
    return frames


class Ranges(BaseHTTPRequestHandler):
    """Serves one file in ranges, as archives are read."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = self.server.content
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        body = content[start:int(last) + 1 if first and last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """An archive on a loopback address."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Ranges)
        self.content = content

    def handle_error(self, request, client_address) -> None:
        """Clients are killed here."""


# ---------------------------------------------------------------- what is there afterwards

def contents(place: Path) -> dict[str, str]:
    """What must be the same whatever happened on the way: path to hash of content, times left out.

    What is known of the clips' files (`cache/clips`) is told by their times. Reports, cards and saved pipelines hold
    times: they are told by being there. Studies may have a trial more.
    """
    found = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(place)), b""
        if name.startswith(("source", "clips.zip", "notebooks", "cache/clips")) or "previous" in path.parts or (
                path.suffix == ".db"):
            continue
        if path.suffix == ".json":
            content = json.dumps(lasting(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True).encode()
        elif path.suffix not in (".html", ".md", ".skops") and not VOLATILE.search(path.stem):
            content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()[:12]
    return found


def lasting(value):
    """A JSON value without what changes from run to run."""
    if isinstance(value, dict):
        return {key: lasting(its) for key, its in value.items() if not VOLATILE.search(key)}
    return [lasting(its) for its in value] if isinstance(value, list) else value


def broken(place: Path) -> list[str]:
    """The files under a place that don't open, but for those with a temporary name."""
    found = []
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        if any(part.startswith(".") for part in path.relative_to(place).parts):
            continue
        try:
            open_file(path)
        except Exception as error:
            found.append(f"{path.relative_to(place)}: {type(error).__name__}: {str(error)[:100]}")
    return found


def open_file(path: Path) -> None:
    """Reads a file as what its suffix says; an error where it is not whole."""
    sealed = {"cache"} & {*path.parts} or path.name.startswith(("last_", "reference_"))
    if sealed and path.suffix in (".npy", ".csv", ".pth", ".npz") and "splits" not in path.parts:
        if read_sealed(path) is None and not path.name.endswith(("train.csv", "val.csv", "test.csv")):
            raise ValueError("the seal is broken")
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".csv":
        pd.read_csv(path)
    elif path.suffix == ".npy":
        np.load(path)
    elif path.suffix == ".pth":
        torch.load(path, weights_only=True)
    elif path.suffix in (".zip", ".skops"):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise ValueError("a member is damaged")
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix in (".avi", ".mp4"):
        sum(1 for _ in walk(path))
    elif path.suffix == ".db":
        with closing(sqlite3.connect(path)) as database:
            if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise ValueError("the database is damaged")
    elif not path.stat().st_size:
        raise ValueError("empty")


# ---------------------------------------------------------------- stages

def fetched(place: Path) -> None:
    """Fetches the clips from a server of its own."""
    server = Server((place / "clips.zip").read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fetch(CLASSES, place / "fetched", f"http://127.0.0.1:{server.server_port}/clips.zip", workers=2)


def imported(place: Path) -> None:
    """Copies the fetched clips into the folder that is studied."""
    import_tree(place / "fetched", place / "clips", CLASSES, "copy")


def opened(place: Path) -> VideoData:
    """Every clip decoded and split."""
    return open_data(str(place / "clips"), "group", results=place / "results", cache=place / "cache")


def trained(place: Path) -> Experiment:
    """Features, training, test and validation predictions."""
    experiment = load_or_train("2d", opened(place), get_recipe("recommended", "2d", **RECIPE), "none", seed=1,
                               backbone="tiny", device="cpu", cache=place / "cache")
    evaluate(experiment)
    predict_validation(experiment)
    return experiment


def folded(place: Path) -> None:
    """Folds of the CNN and of a classical model."""
    experiment = trained(place)
    cross_validate(experiment, get_recipe("recommended", "2d", **RECIPE), 3)
    classifiers.cross_validate([fitted(place)], 3)


def searched(place: Path) -> None:
    """A search of a few trials."""
    run_study("2d", opened(place), "none", TRIALS, 1, cache=place / "cache", backbone="tiny",
              recipe=get_recipe("recommended", "2d", **RECIPE))


def fitted(place: Path) -> classifiers.ClassicalModel:
    """A classical model, tuned, fitted and tested."""
    model = classifiers.load_or_fit("knn", opened(place), 1, place / "cache")
    classifiers.evaluate(model)
    return model


def pictured(place: Path) -> None:
    """Two figures."""
    experiment = trained(place)
    predictions, classes = evaluate(experiment), experiment.data.classes
    with plots.plt.rc_context():
        figure, ax = plots.plt.subplots()
        plots.confusion_heatmap(confusion_matrix(predictions["label"], predictions["predicted"]), classes, "test", ax)
        plots.save_figure(figure, experiment.files.confusion_matrix)
        figure, ax = plots.plt.subplots()
        plots.curve(experiment.history, "loss", "loss", ax)
        plots.save_figure(figure, experiment.files.curve("loss"))


def reported(place: Path) -> None:
    """The report of one notebook."""
    report.build(trained(place).data.results, place / "notebooks")


def exported(place: Path) -> None:
    """The network as a folder to take elsewhere."""
    export_model("2d", "safetensors", trained(place).data.results, place / "out" / "exported")


def predicted(place: Path) -> None:
    """Answers about two videos, as JSON and CSV, and one of them drawn into its video."""
    results = trained(place).data.results
    model = load_model("2d", str(place / "clips"), results, "cpu")
    answers = [answer(path, model) for path in sorted(Path("source").rglob("*_g01_c01.mp4"))[:2]]
    write(answers, place / "out" / "answers.json", place / "out" / "answers.csv")
    annotate(answers[0], place / "out" / "annotated.mp4")


def planted(place: Path) -> None:
    """What the project must never do: a file that is written in two steps, under its own name."""
    for number in range(40):
        with open(place / "out" / f"torn{number}.json", "w") as file:
            file.write('{"a": ')
            file.flush()
            open(place / "out" / "other", "wb").close()
            file.write("1}")


STAGES: dict[str, Callable[[Path], object]] = {
    "fetch": fetched, "import": imported, "open": opened, "train": trained, "fit": fitted, "folds": folded,
    "search": searched, "figures": pictured, "report": reported, "export": exported, "predict": predicted}


def work(place: Path, stage: str) -> None:
    """One stage, in this process alone but for loaders' workers."""
    torch.set_num_threads(1)
    os.chdir(place)
    (place / "out").mkdir(exist_ok=True)
    with joblib.parallel_config(backend="sequential"):
        (STAGES | {"planted": planted})[stage](place)
