"""The assignment itself: the real clips, torchvision's weights, the seed's recipe beside the recommended one.

    python tools/reproduce.py [--url URL] [--root FOLDER] [--folds]

Fetches the clips and weights that are absent, trains and tests each recipe under each split, and writes one page,
results/reproduce/reproduce.md, with its figures in reproduce.json. Each split and recipe has results of its own below
that folder. Run again, it goes on where it was; what is finished is reloaded.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from statsmodels.stats.multitest import multipletests

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import metrics
from comparison import SEED_PRINTED
from config import CACHE, CLASSES, DEFAULT_BACKBONE, RESULTS, ROOT, UCF101_ROOT, get_recipe, title_of
from evaluation import cross_validate, evaluate, measure_latency
from experiment import load_or_train
from files import atomic_path, shown, write_json
from machine import commit, environment, hardware_line
from models import WeightsError, build_model, weights_file
from report import TEXTS
from videos import ucf101
from videos.decoding import VideoError
from videos.library import VideoData, open_data
from videos.splits import KINDS, TEST_GROUPS, group_pairs

SEED = 42
LATENCY_SECONDS = 2.0  # that each part of a clip's way is measured for
RECIPES = ("seed", "recommended")
SPLITS = ("random", "official1")
# Columns of the page: what a model's figures call it, its heading and its format.
SCORES = {"modality": ("input", ""), "videos": ("test videos", ""), "accuracy": ("accuracy", ".3f"),
          "wilson": ("95 %, Wilson", ".3f"), "clustered": ("95 %, groups resampled", ".3f"),
          "precision": ("macro precision", ".3f"), "recall": ("macro recall", ".3f"), "f1": ("macro F1", ".3f")}
COSTS = {"network": ("network", ""), "params": ("parameters", ","), "trained_params": ("trained parameters", ","),
         "epochs": ("epochs", ""), "train_time": ("training, features included [s]", ".0f"),
         "inference_time": ("latency of the model [s/clip]", ".3f"),
         "latency": ("with decoding and transform [s/clip]", ".3f"), "trained_on": ("trained on", "")}


@dataclass(frozen=True)
class Run:
    """One recipe of one kind, trained and tested under one split: its statistics and its predictions.

    `predictions` are of the split's test set; `fold_predictions` of the three official splits' test sets, or None.
    """

    data: VideoData
    recipe: str
    kind: str
    stats: dict
    predictions: pd.DataFrame
    fold_predictions: pd.DataFrame | None = None

    @property
    def title(self) -> str:
        """The model as the page calls it."""
        return f"{self.kind.upper()}-CNN ({self.recipe})"

    @property
    def split(self) -> str:
        """The kind of its split."""
        return self.data.split["kind"]


def main(arguments: list[str] | None = None) -> None:
    """The command line: an error is one line and exit status 1."""
    options = vars(_parser().parse_args(arguments))
    try:
        page = reproduce(**options)
    except (ucf101.DataError, WeightsError, VideoError, OSError, ValueError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: run again to go on, what is finished is kept") from None
    print(f"\nthe page: {shown(page)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default=ucf101.DEFAULT_URL, help="the archive of UCF-101 (%(default)s)")
    parser.add_argument("--root", type=Path, default=UCF101_ROOT, help="folder of class folders (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "reproduce", help="of page and results (%(default)s)")
    parser.add_argument("--folds", action="store_true", help="also train and test on each of the three official splits")
    tries = parser.add_argument_group("small tries", "give them an --out of their own: each run writes the page anew")
    tries.add_argument("--epochs", type=int, help="at most (as each recipe has it)")
    tries.add_argument("--classes", nargs="+", default=CLASSES, help=f"of UCF-101 ({' '.join(CLASSES)})")
    for name, choices, default in (("kinds", tuple(DEFAULT_BACKBONE), tuple(DEFAULT_BACKBONE)),
                                   ("recipes", RECIPES, RECIPES), ("splits", KINDS, SPLITS)):
        tries.add_argument(f"--{name}", nargs="+", choices=choices, default=default, help=f"({' '.join(default)})")
    return parser


def reproduce(root: Path, url: str, out: Path, classes: Iterable[str], kinds: Iterable[str], recipes: Iterable[str],
              splits: Iterable[str], epochs: int | None, folds: bool) -> Path:
    """Everything, from the clips to the page, whose path is returned; arguments as on the command line.

    Raises:
        DataError, WeightsError, VideoError, OSError, ValueError: a step can't be done; the message says what to do.
    """
    official = next((split for split in splits if split.startswith("official")), None)
    if folds and not official:
        raise ValueError("--folds tests by UCF-101's official splits: name official1 in --splits as well")
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: a training needs one at least")
    root, out = root.absolute(), out.absolute()
    classes = sorted({ucf101.canonical_class(name) for name in classes})
    get_clips(root, url, classes)
    get_weights(kinds)
    runs = []
    for split in splits:
        data = open_data("ucf101", split, classes, SEED, out, root)
        for recipe in recipes:
            its = dataclasses.replace(data, results=out / f"{split}-{recipe}")
            runs += [train_and_test(its, recipe, kind, epochs, folds and split == official) for kind in kinds]
    return write_page(out, runs, epochs)


# ---------------------------------------------------------------- the steps

def get_clips(root: Path, url: str, classes: list[str]) -> None:
    """Fetches the clips of some classes, unless all of them are there.

    Raises:
        DataError: as `ucf101.fetch`.
    """
    known = set(classes) <= set(ucf101.UCF101_CLASSES)
    if known and not ucf101.describe_missing(root, classes):
        print(f"clips: all of {', '.join(classes)} are in {shown(root)}")
    else:
        print(f"clips: {len(ucf101.fetch(classes, root, url))} in {shown(root)}")


def get_weights(kinds: Iterable[str]) -> None:
    """Fetches torchvision's weights where they are absent, and loads them once, before hours are spent.

    Raises:
        WeightsError: they can't be fetched or read.
    """
    for kind in kinds:
        model = build_model(get_recipe("seed", kind), len(CLASSES), "torchvision")
        print(f"weights: torchvision's {weights_file(model.backbone).name}")


def train_and_test(data: VideoData, recipe: str, kind: str, epochs: int | None, folds: bool) -> Run:
    """Trains or reloads one recipe, tests it and measures its latency; with `folds` also by the official splits.

    Raises:
        WeightsError, VideoError, OSError, ValueError: as `load_or_train`.
    """
    print(f"\n{data.split['kind']} split, {recipe} recipe, {kind.upper()}-CNN", flush=True)
    asked = get_recipe(recipe, kind, **({"epochs": epochs} if epochs else {}))
    experiment = load_or_train(kind, data, asked, "torchvision", SEED, cache=CACHE)
    predictions = evaluate(experiment)
    measure_latency(experiment, LATENCY_SECONDS)
    pooled = cross_validate(experiment, asked, len(TEST_GROUPS)) if folds else None
    print(f"accuracy {metrics.classification_metrics(predictions)['accuracy']:.3f} of {len(predictions)} test videos")
    return Run(data, recipe, kind, experiment.stats, predictions, pooled)


# ---------------------------------------------------------------- figures

def scores(predictions: pd.DataFrame) -> dict:
    """What a prediction table says, as numbers; intervals are pairs of their ends."""
    return {"videos": len(predictions), **metrics.classification_metrics(predictions),
            "wilson": metrics.accuracy_interval(predictions)[1:], "clustered": metrics.group_bootstrap(predictions)[1:]}


def figures(run: Run, table: str = "predictions") -> dict:
    """All numbers of a run, for one of its prediction tables, with where and when it was trained."""
    stats = run.stats
    return {"model": run.title, "split": run.split, "recipe": run.recipe, "kind": run.kind,
            "network": title_of(stats["backbone"]), "modality": stats["recipe"]["modality"],
            **scores(getattr(run, table)), **{key: stats[key] for key in ("params", "trained_params", "train_time")},
            "epochs": len(stats["train_losses"]), "inference_time": stats["latency"]["model"],
            "latency": stats["latency"]["total"], "trained_on": stats["environment"]["date"],
            "hardware": hardware_line(stats["environment"])}


def printed(kind: str) -> dict:
    """What the seed notebook printed of its model of a kind, under the names of `figures`."""
    its = next(its for its in SEED_PRINTED.values() if its["network"] == title_of(DEFAULT_BACKBONE[kind]))
    return {**its, "model": f"{kind.upper()}-CNN (printed in the seed notebook)", "videos": its["test_clips"],
            "modality": "rgb"}


def paired_tests(runs: list[Run], table: str = "predictions") -> pd.DataFrame:
    """`metrics.pairwise` of recommended against seed recipe, a row per kind that has both, Holm-adjusted over these."""
    found = []
    for kind in dict.fromkeys(run.kind for run in runs):
        tables = {run.recipe: (run.title, getattr(run, table)) for run in runs if run.kind == kind}
        if set(RECIPES) <= set(tables):
            found.append(metrics.pairwise(dict(tables[recipe] for recipe in reversed(RECIPES))))
    if not found:
        return pd.DataFrame()
    pairs = pd.concat(found, ignore_index=True)
    return pairs.assign(p_holm=multipletests(pairs["p_value"], method="holm")[1])


# ---------------------------------------------------------------- the page

def write_page(out: Path, runs: list[Run], epochs: int | None) -> Path:
    """Writes reproduce.md and reproduce.json into `out`; gives the page's path."""
    first, now = runs[0], environment()
    sections = [section([run for run in runs if run.split == split]) for split in dict.fromkeys(r.split for r in runs)]
    tested = [run for run in runs if run.fold_predictions is not None]
    by_folds = section(tested, "fold_predictions") if tested else None
    about = {"commit": commit(ROOT), "written": now["date"], "environment": now, "classes": first.data.classes,
             "seed": SEED, "epochs_at_most": epochs, "weights": {
                 run.stats["facts"]["backbone"]: run.stats["facts"]["pretrained weights"] for run in runs}}
    write_json(out / "reproduce.json", {
        **about, "splits": {its["split"]["kind"]: numbers(its) for its in sections},
        "official_splits": numbers(by_folds) if by_folds else None,
        "printed": [printed(kind) for kind in dict.fromkeys(run.kind for run in runs)]})
    page = out / "reproduce.md"
    text = TEXTS.get_template("reproduce.md.j2").render(
        about=about, hardware=hardware_line(now), trained=sorted({figures(run)["hardware"] for run in runs}),
        usual=first.data.classes == sorted(CLASSES), reading=reading(runs), sections=sections, by_folds=by_folds)
    text = f"{text.strip()}\n"
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def section(runs: list[Run], table: str = "predictions") -> dict:
    """What the page and its JSON tell of runs on the same test videos; the notebook's figures stand beside them."""
    data, pairs = runs[0].data, paired_tests(runs, table)
    clips = pd.concat([data.table(part) for part in data.splits])
    rows = [figures(run, table) for run in runs]
    beside = [*rows, *(printed(kind) for kind in dict.fromkeys(run.kind for run in runs))]
    return {"split": data.split, "groups": group_pairs(clips).nunique(), "models": rows, "pairs": pairs,
            "scores": as_table(beside, SCORES), "costs": as_table(beside, COSTS),
            "paired": metrics.pairwise_reading(pairs).splitlines() if len(pairs) else []}


def numbers(its: dict) -> dict:
    """A `section` as plain types, without what is made of them."""
    return {"split": its["split"], "groups": its["groups"], "models": its["models"],
            "pairs": its["pairs"].to_dict("records")}


def as_table(rows: list[dict], columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Figures as text: a row per model, a column per heading; – where a figure is not known."""
    texts = [{"model": row["model"], **{heading: as_text(row.get(key), form) for key, (heading, form) in
                                        columns.items()}} for row in rows]
    return pd.DataFrame(texts)


def as_text(value, form: str) -> str:
    """One figure, or the two ends of an interval."""
    if value is None:
        return "–"
    return " to ".join(format(end, form) for end in value) if isinstance(value, tuple) else format(value, form)


def reading(runs: list[Run]) -> list[str]:
    """What the numbers say, a paragraph per kind, made from them."""
    return [" ".join(_of_kind([run for run in runs if run.kind == kind], printed(kind)))
            for kind in dict.fromkeys(run.kind for run in runs)]


def _of_kind(runs: list[Run], notebook: dict) -> list[str]:
    """Sentences about one kind of model: each recipe under each split, and what a split that shares groups is worth."""
    told, random = [], {run.recipe: run for run in runs if run.split == "random"}
    for run in sorted(runs, key=lambda run: run.recipe, reverse=True):  # the seed's first
        accuracy, low, high = metrics.accuracy_interval(run.predictions)
        told.append(f"Under {run.split}, {run.title} names {accuracy:.3f} of {len(run.predictions)} test videos "
                    f"correctly (95 % interval {low:.3f} to {high:.3f}).")
        if run.recipe == "seed" and run.split == "random" and run.data.classes == sorted(CLASSES):
            printed_one = notebook["accuracy"]
            where = "below" if printed_one < low else "above" if printed_one > high else "inside"
            told.append(f"The seed notebook printed {printed_one:.3f} of {notebook['videos']}, which lies {where} that "
                        "interval; its random split was another one.")
        if run.split.startswith("official") and run.recipe in random:
            told.append(_beside_random(accuracy, random[run.recipe]))
    return told


def _beside_random(accuracy: float, random: Run) -> str:
    points = 100 * (accuracy - metrics.accuracy_interval(random.predictions).estimate)
    change = f"{abs(points):.1f} percentage points {'more' if points > 0 else 'fewer'} than" if points else "as many as"
    return (f"No group is shared between its parts; that is {change} under random, where "
            f"{random.data.split['shared_groups']} groups are shared, and of other videos.")


if __name__ == "__main__":
    main()
