"""How well an answer tells videos of another kind: AUROC by folds, of the score that is used and of others.

    python benchmarks/unfamiliar.py FOLDER FOLDER

Each folder is a data set, and once the other one's stranger. In each of five folds of whole groups a CNN is trained on
the training part; the score is that of the fold's test videos, which it never saw, against all videos of the other data
set. Writes results/benchmarks/unfamiliar.md. WEIGHTS and SEED are taken from the environment.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from config import CACHE, RESULTS, asked_number, get_recipe
from deployment.reference import COMPONENTS, distance, make_reference, unit
from evaluation import train_on
from experiment import Experiment, untrained
from files import atomic_path, shown
from folds import fold_sets
from machine import environment, hardware_line
from models import choose_source
from videos.library import VideoData, open_data

FOLDS, NEIGHBOURS = 5, 3
USED = f"residual of {COMPONENTS} components (used)"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How well an answer tells videos of another kind.")
    parser.add_argument("folders", nargs=2)
    sets = [open_data(folder) for folder in parser.parse_args(arguments).folders]
    weights, seed, rows = os.environ.get("WEIGHTS") or "auto", asked_number("SEED"), []
    for own, other in (sets, sets[::-1]):
        for kind in ("2d", "3d"):
            source = choose_source(kind, weights)
            for number, data in enumerate(fold_sets(own, FOLDS, seed, CACHE)[0], 1):
                experiment = untrained(data, get_recipe("recommended", kind), source, seed)
                last = CACHE / "folds" / f"unfamiliar_{own.name}_{kind}.pth"
                train_on(experiment, ["train"], last)
                last.unlink(missing_ok=True)
                about = {"data": own.name, "strangers": other.name, "model": f"{kind.upper()}-CNN", "fold": number}
                rows += [about | its for its in scores(experiment, other)]
                print(*about.values(), flush=True)
    target = RESULTS / "benchmarks" / "unfamiliar.md"
    with atomic_path(target) as temporary:
        temporary.write_text(page(pd.DataFrame(rows)), encoding="utf-8")
    print(shown(target))


def scores(experiment: Experiment, other: VideoData) -> list[dict]:
    """AUROC of each score in one fold; of the one that is used also the shares above its limit."""
    train, _ = seen(experiment, ["train"])
    own, sure = seen(experiment, ["test"])
    strange, unsure = seen(dataclasses.replace(experiment, data=other), list(other.splits))
    table = experiment.data.table("train")
    known = make_reference("", train, table["clip_path"].tolist(), table["label"].tolist(), table["group"].tolist(),
                           np.ones(len(table)))
    rows = [row(USED, known.unfamiliarity(own), known.unfamiliarity(strange))]
    rows[0] |= {"own above 1": (known.unfamiliarity(own) > 1).mean(),
                "strangers above 1": (known.unfamiliarity(strange) > 1).mean()}
    for count in (16, 64):
        its = PCA(min(count, len(train) // 2), random_state=0).fit(train)
        plane = its.mean_.astype(np.float32), its.components_.astype(np.float32)
        rows.append(row(f"residual of {count} components", distance(own, *plane), distance(strange, *plane)))
    rows.append(row(f"distance to the {NEIGHBOURS} nearest", *(nearest(x, train) for x in (own, strange))))
    rows.append(row(f"cosine distance to the {NEIGHBOURS} nearest",
                    *(nearest(unit(x), unit(train)) for x in (own, strange))))
    return [*rows, row("one less the highest probability", 1 - sure, 1 - unsure)]


@torch.inference_mode()
def seen(experiment: Experiment, parts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features and (N,) highest probabilities of the centre views of some parts' videos."""
    model, features, sure = experiment.model.eval(), [], []
    for part in parts:
        for x, _ in experiment.loader(experiment.dataset(part), summarized=False):
            features.append(model.embed(x).float().numpy())
            sure.append(model.head(x).softmax(dim=1).amax(dim=1).numpy())
    return np.concatenate(features), np.concatenate(sure)


def nearest(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) mean Euclidean distance to the nearest known ones."""
    squares = (features**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * features @ known.T
    return np.sqrt(np.sort(squares.clip(0), axis=1)[:, :NEIGHBOURS]).mean(axis=1)


def row(score: str, own: np.ndarray, strange: np.ndarray) -> dict:
    """The AUROC of a score, higher for strangers."""
    truth = np.repeat([0, 1], [len(own), len(strange)])
    return {"score": score, "AUROC": roc_auc_score(truth, np.concatenate([own, strange]))}


def page(rows: pd.DataFrame) -> str:
    """The Markdown page: means over folds, the lowest and highest fold in brackets."""
    columns = ["AUROC", "own above 1", "strangers above 1"]
    by = rows.groupby(["data", "strangers", "model", "score"], sort=False)[columns]
    low, mean, high = by.min(), by.mean(), by.max()
    lines = ["| data | strangers | model | score | " + " | ".join(columns) + " |", "|---|---|---|---|---|---|---|"]
    for key in mean.index:
        cells = ["–" if np.isnan(mean.loc[key, its]) else
                 f"{mean.loc[key, its]:.3f} ({low.loc[key, its]:.2f} to {high.loc[key, its]:.2f})" for its in columns]
        lines.append(f"| {' | '.join([*key, *cells])} |")
    return (f"# Telling videos of another kind\n\nMeasured on {hardware_line(environment())}. Five folds of whole "
            "groups: held-out videos of the data against all videos of another data set; mean, lowest and highest "
            "fold. The limit of the score that is used is set by the training part alone.\n\n"
            + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
