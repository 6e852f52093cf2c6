"""Compares variants of the recommended recipes by folds of whole groups, with the cost of a video beside accuracy.

    python benchmarks/recipes.py --data DIR [DIR ...] [--partitions 42 43 44] [--kind 2d 3d] [--only NAME ...]

Each variant changes the default in one respect; with both kinds, the defaults are fused with each other and with
classical models. What is finished is kept, folds in the cache and rows in
results/benchmarks/recipes.json, so that an interrupted comparison goes on. Writes results/benchmarks/recipes.md, which
holds no clip and no frame. WEIGHTS is taken from the environment, as by the notebooks.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import pandas as pd

from classical import classifiers
from comparison import FUSIONS, fold_predictions, fusion_title
from config import CACHE, NETWORKS, RESULTS, ROOT, Recipe, get_recipe, name_list, title_of
from evaluation import count_flops, cross_validate, measure_latency
from experiment import Experiment, untrained
from files import atomic_path, file_hash, read_json, read_predictions, shown, update_json
from machine import commit, environment, hardware_line
from models import WeightsError, choose_backbone, choose_source, weights_file
from videos.decoding import VideoError
from videos.library import VideoData, open_data
from videos.splits import clip_file

SEED = 42  # of training; partitions into folds have seeds of their own
FOLDS = 5
CHOOSING, REPORTING = "g01-g10", "g11-g20"  # halves of a data set with twenty groups
PARTS = (CHOOSING, REPORTING, "all")
COMMON = {
    "default": {},
    "modality=rgb": {"modality": "rgb"},
    "modality=diff": {"modality": "diff"},
    "modality=rgb+diff": {"modality": "rgb+diff"},
    "pooling=avg": {"pooling": "avg"},
    "pooling=attention": {"pooling": "attention"},
    "grid=1x1": {"grid": "1x1"},
    "depth=block10": {"depth": "block10"},
    "depth=full": {"depth": "full"},
    "size=128": {"size": 128},
    "size=224": {"size": 224},
    "framing=preset": {"framing": "preset"},
    "train_views=1": {"train_views": 1},
    "train_views=3": {"train_views": 3},
    "gap=1/30": {"gap": 1 / 30},
    "gap=2/15": {"gap": 2 / 15},
    "standardize=off": {"standardize": False},
    # an epoch costs many times one of the head, and what is pretrained should not decay
    "trained=stage": {"trained": "stage", "epochs": 10, "patience": 4, "weight_decay": 5e-2},
}
VARIANTS = {
    "2d": {**COMMON,
           "pooling=conv": {"pooling": "conv"},
           "num_frames=10": {"num_frames": 10},
           "num_frames=30": {"num_frames": 30},
           "stills=20": {"stills": 20},
           "sampling=time": {"sampling": "time", "frame_rate": 10.0},
           "test_clips=1": {"test_clips": 1},
           "tolerance=0": {"tolerance": 0.0},
           "monitor=accuracy": {"monitor": "accuracy"},
           "weight_decay=0.05": {"weight_decay": 5e-2},
           "batch_size=16": {"batch_size": 16, "lr": 3e-4},
           "lr=2e-4": {"lr": 2e-4},
           "lr=2e-3": {"lr": 2e-3}},
    "3d": {**COMMON,
           "num_frames=24": {"num_frames": 24},
           "sampling=segments": {"sampling": "segments"},
           "tolerance=0": {"tolerance": 0.0},
           "weight_decay=0.05": {"weight_decay": 5e-2}},
}


# ---------------------------------------------------------------- measuring

def variants(kind: str, backbone: str) -> dict[str, Recipe]:
    """Name to recipe of a kind's variants, without depths that only the packaged network has."""
    return {name: get_recipe("recommended", kind, **changes).resolved(backbone)
            for name, changes in VARIANTS[kind].items()
            if NETWORKS[backbone].source == "packaged" or changes.get("depth", "full") == "full"}


def clips_hash(data: VideoData) -> str:
    """SHA-256 (hex) of all clips: path, label, group and content."""
    clips = pd.concat([data.table(part) for part in data.splits])
    rows = [[*row, file_hash(clip_file(data.root, row[0]))]
            for row in clips[["clip_path", "label", "group"]].to_numpy().tolist()]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def compare_recipes(sets: list[VideoData], sources: dict[str, str], partitions: list[int], only: list[str] | None,
                    target: Path, cache: Path) -> None:
    """Measures what is missing of the variants' rows in the JSON `target`; the page beside it is written after each.

    Args:
        sets: data sets whose results roots lie in the cache.
        sources: kind to source of the pretrained weights, as `choose_source` gives it.
        partitions: seeds of the partitions into folds; the first is finished for all variants before the next begins.
        only: names of variants; None takes all.
    """
    backbones = {kind: choose_backbone(kind, source) for kind, source in sources.items()}
    chosen = [(name, recipe) for kind, backbone in backbones.items()
              for name, recipe in variants(kind, backbone).items() if only is None or name in only]
    clips = {data.name: clips_hash(data) for data in sets}
    for number, (partition, (name, recipe), data) in enumerate(product(partitions, chosen, sets), 1):
        backbone, source = backbones[recipe.kind], sources[recipe.kind]
        title = (f"{number}/{len(partitions) * len(chosen) * len(sets)} {data.name}, {recipe.kind} {name}, "
                 f"partition {partition}")
        weights = file_hash(weights_file(backbone)) if source != "none" else ""
        asked = [recipe.to_dict(), backbone, weights, clips[data.name], partition, FOLDS, SEED]
        identity = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        rows = read_json(target).get("rows", [])
        if any(row["of"] == identity for row in rows):
            print(f"{title}: kept")
            continue
        print(f"{title}:", flush=True)
        found = _measured(dataclasses.replace(data, results=data.results / identity[:16]), recipe, source, partition,
                          [row["cost"] for row in rows if _same(row, recipe, backbone, data)], cache)
        row = {"data": data.name, "backbone": backbone, "weights": source, "partition": partition,
               "recipe": recipe.to_dict(), **found, "commit": commit(ROOT), "of": identity}
        update_json(target, rows=[old for old in rows if not _replaced(old, row)] + [row])
        write_page(target)


def compare_fusions(sets: list[VideoData], sources: dict[str, str], partitions: list[int], target: Path,
                    cache: Path) -> None:
    """Fuses the default recipes and classical models by the same folds, into the JSON `target` and its page.

    Arguments as `compare_recipes`, whose folds are read where they are there; `sources` has both kinds.
    """
    clips = {data.name: clips_hash(data) for data in sets}
    recipes = {kind: get_recipe("recommended", kind).to_dict() for kind in sources}
    for partition, data in product(partitions, sets):
        asked = [recipes, sources, clips[data.name], partition, FOLDS, SEED,
                 [fusion_title(titles) for titles in FUSIONS]]
        identity = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        rows = read_json(target).get("fusions", [])
        if any(row["of"] == identity for row in rows):
            continue
        print(f"{data.name}, fusion, partition {partition}:", flush=True)
        its = dataclasses.replace(data, results=data.results / identity[:16])
        row = {"data": data.name, "partition": partition, "of": identity, "commit": commit(ROOT), "scores": {
            title: part_scores(table) for title, table in _fused(its, sources, partition, cache).items()}}
        kept = [old for old in rows if (old["data"], old["partition"]) != (data.name, partition)]
        update_json(target, fusions=[*kept, row])
        write_page(target)


def _fused(data: VideoData, sources: dict[str, str], partition: int, cache: Path) -> dict[str, pd.DataFrame]:
    """Title to the predictions of every video, of the models and of their fusions."""
    models = {}
    for kind, source in sources.items():
        recipe = get_recipe("recommended", kind)
        experiment = untrained(data, dataclasses.replace(recipe, modality="rgb+diff"), source, SEED, cache=cache)
        cross_validate(experiment, recipe, FOLDS, partition)
        models[f"{kind.upper()}-CNN"] = experiment.files
    for name in ("fisher_svm", "rbf_svm"):
        classical = classifiers.ClassicalModel(name, data, partition, cache)
        classifiers.cross_validate([classical], FOLDS)
        models[classical.title] = classical.files
    return fold_predictions({title: {"fold_predictions": read_predictions(files.folds),
                                     "fold_validation": read_predictions(files.folds_validation)}
                             for title, files in models.items()})


def _same(row: dict, recipe: Recipe, backbone: str, data: VideoData) -> bool:
    return (row["recipe"], row["backbone"], row["data"]) == (recipe.to_dict(), backbone, data.name)


def _replaced(old: dict, new: dict) -> bool:
    """Whether a row is of the same recipe and partition, on other clips of that name or another file of weights."""
    return all(old[key] == new[key] for key in ("data", "backbone", "weights", "partition", "recipe"))


def _measured(data: VideoData, recipe: Recipe, source: str, partition: int, costs: list[dict], cache: Path) -> dict:
    """Scores of a recipe by folds, and its cost: one of `costs`, where it was measured before."""
    planned = dataclasses.replace(recipe, modality="rgb+diff") if recipe.modality == "auto" else recipe
    experiment = untrained(data, planned, source, SEED, cache=cache)
    scores = part_scores(cross_validate(experiment, recipe, FOLDS, partition))
    cost = costs[0] if costs else video_cost(experiment)
    return {"scores": scores, "cost": cost, "hardware": hardware_line(environment(experiment.device))}


def part_scores(predictions: pd.DataFrame) -> dict[str, dict]:
    """Accuracy and number of `all` videos, and, where there are twenty groups, of either half of the groups."""
    rows = {"all": predictions}
    if set(predictions["group"]) == {f"g{number:02d}" for number in range(1, 21)}:
        first = predictions["group"] <= "g10"
        rows |= {CHOOSING: predictions[first], REPORTING: predictions[~first]}
    return {part: {"accuracy": float((its["label"] == its["predicted"]).mean()), "videos": len(its)}
            for part, its in rows.items()}


def video_cost(experiment: Experiment) -> dict[str, float]:
    """GFLOP of a test video, all its views, and seconds of one view: decoded, transformed and predicted."""
    views = experiment.recipe.test_clips
    return {"gflop": views * count_flops(experiment), "view_seconds": measure_latency(experiment, 0.5)["total"]}


# ---------------------------------------------------------------- the page

def write_page(target: Path) -> Path:
    """Writes the page of a JSON `target` beside it."""
    with atomic_path(target.with_suffix(".md")) as temporary:
        temporary.write_text(page(**read_json(target)), encoding="utf-8")
    return target.with_suffix(".md")


def page(rows: Sequence[dict] = (), fusions: Sequence[dict] = ()) -> str:
    """All rows as a Markdown page: a table per network, a line per recipe, told by how it differs from the default; and
    one of the `fusions`."""
    partitions = sorted({row["partition"] for row in rows})
    names = list(dict.fromkeys(row["data"] for row in rows))
    command = (f"python benchmarks/recipes.py --data {' '.join(f'DIR/{name}' for name in names)} "
               f"--partitions {' '.join(map(str, partitions))}")
    intro = f"""# Recipes

Accuracy by {FOLDS} folds of whole groups: every video is predicted once, by a model that saw neither it nor its group.
Mean ± standard deviation over partitions into folds (their number in brackets); n is videos. Each line differs from the
default recipe in what it names; a modality `auto` is chosen inside each fold's training part.

**Rule of choice:** defaults are chosen on {CHOOSING} of UT-Interaction, which is hard, and on UCF-101's three classes,
which are easy. {REPORTING} of UT-Interaction stand apart, but are not untouched: how the head is trained (learning
rate, batch size, weight decay, patience and tolerance, which epoch is kept) was settled by folds of all groups of both
sets, and the first trials of the others showed both halves.

GFLOP are of a video, all its test views, where a multiply-add counts as two; seconds are of one view, decoded,
transformed and predicted, warm; for `auto`, of rgb+diff, the most that it may take.

Made by `{command}`; measured on {'; '.join(dict.fromkeys(row['hardware'] for row in rows))}; code at commit
{', '.join(dict.fromkeys(row['commit'] for row in [*rows, *fusions]))}.
Shared machines: compare seconds only roughly."""
    networks = dict.fromkeys((row["recipe"]["kind"], row["backbone"], row["weights"]) for row in rows)
    sections = [_section(rows, *network) for network in sorted(networks)]
    return "\n\n".join([intro, *sections, *([_fusion_section(fusions)] if fusions else [])]) + "\n"


def _fusion_section(fusions: Sequence[dict]) -> str:
    columns = _columns([(row["data"], next(iter(row["scores"].values()))) for row in fusions])
    titles = dict.fromkeys(title for row in fusions for title in row["scores"])
    lines = [[title, *(_spread([row["scores"][title][part]["accuracy"] for row in fusions
                                if row["data"] == data and title in row["scores"]]) for data, part in columns)]
             for title in titles]
    return ("## Late fusion of the defaults\n\nLog-probabilities are averaged with weights that are fitted to each "
            "fold's validation part. That the RBF SVM joins them was seen in the folds of partition 42 of both sets."
            "\n\n" + _table(["model", *columns.values()], lines))


def _columns(scored: list[tuple[str, dict]]) -> dict[tuple[str, str], str]:
    """(data set, part) to the heading of its column, from data sets and their `part_scores`."""
    scores = {(data, part): score for data, its in scored for part, score in its.items()}
    keys = product(dict.fromkeys(data for data, _ in scored), PARTS)
    return {key: f"{key[0]}, {key[1]} (n = {scores[key]['videos']})" for key in keys if key in scores}


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _section(rows: Sequence[dict], kind: str, backbone: str, weights: str) -> str:
    rows = [row for row in rows if (row["backbone"], row["weights"]) == (backbone, weights)]
    default = get_recipe("recommended", kind).resolved(backbone).to_dict()
    columns = _columns([(row["data"], row["scores"]) for row in rows])
    recipes = {json.dumps(row["recipe"], sort_keys=True): row["recipe"] for row in rows}
    lines = []
    for recipe in sorted(recipes.values(), key=lambda its: len(_changes(its, default))):
        its = [row for row in rows if row["recipe"] == recipe]
        costs = [[row["cost"][key] for row in its] for key in ("gflop", "view_seconds")]
        lines.append([", ".join(_changes(recipe, default)) or "**default**",
                      *(_spread([row["scores"][part]["accuracy"] for row in its
                                 if row["data"] == data and part in row["scores"]]) for data, part in columns),
                      f"{np.median(costs[0]):.1f}", f"{np.median(costs[1]):.2f}"])
    return (f"## {kind.upper()}-CNN: {title_of(backbone)}, weights {weights}\n\n"
            + _table(["changed", *columns.values(), "GFLOP per video", "s per view"], lines))


def _changes(recipe: dict, default: dict) -> list[str]:
    return [f"{name} = {value:.3g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in recipe.items() if value != default.get(name)]


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread} ({len(values)})"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    names = list(dict.fromkeys(name for its in VARIANTS.values() for name in its))
    parser = argparse.ArgumentParser(description="Compares variants of the recommended recipes by folds.")
    parser.add_argument("--data", nargs="+", default=name_list(os.environ.get("DATA", "")),
                        help="demo, ucf101, or folders of class folders (DATA)")
    parser.add_argument("--partitions", nargs="+", type=int, default=[42, 43, 44], help="seeds of the folds")
    parser.add_argument("--kind", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"variants: {', '.join(names)}")
    asked = parser.parse_args(arguments)
    if not asked.data:
        parser.error("name the folders of clips: --data FOLDER FOLDER, or DATA")
    target = RESULTS / "benchmarks" / "recipes.json"
    try:
        sets = [open_data(folder, results=CACHE / "recipes") for folder in asked.data]
        sources = {kind: choose_source(kind, os.environ.get("WEIGHTS") or "auto") for kind in asked.kind}
        compare_recipes(sets, sources, asked.partitions, asked.only, target, CACHE)
        if len(sources) > 1 and (asked.only is None or "default" in asked.only):
            compare_fusions(sets, sources, asked.partitions, target, CACHE)
    except (OSError, ValueError, WeightsError, VideoError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\nwritten: {shown(write_page(target))}")


if __name__ == "__main__":
    main()
