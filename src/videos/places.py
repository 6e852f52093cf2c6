"""Where a data set's clips and its results lie, by its name; nothing is opened."""

import os
import platform
import re
from pathlib import Path

from config import DEMO_ROOT, RESULTS, ROOT, UCF101_ROOT
from files import read_json, write_json

DATASETS = {"demo": DEMO_ROOT, "ucf101": UCF101_ROOT}
SOURCE = "source.json"  # in a folder's results: whose they are
# Names that a folder's results don't get: UCF-101's own lie in these folders of `results`.
TAKEN = {*DATASETS, "behaviour", "benchmarks", "confusion_matrices", "dataset", "exported", "failed",
         "feature_visualizations", "model_cards", "notebooks", "performance_plots", "predictions", "previous", "report",
         "reproduce", "saved_models", "splits", "stats_classical_ml", "stats_deep_learning", "tuning"}


def locate(dataset: str = "demo", results: Path = RESULTS, name: str | None = None) -> tuple[str, Path, Path]:
    """Name, root folder and results root of a data set, without opening it.

    A folder is given absolutely, or relative to the working folder or the repository. Its results have its own name, or
    `name`, which NAME in the environment gives where it is None.

    Raises:
        FileNotFoundError: it is neither `demo`, `ucf101` nor a folder.
    """
    if dataset in DATASETS:
        return dataset, DATASETS[dataset], results if dataset == "ucf101" else results / dataset
    places = dict.fromkeys([Path(dataset).expanduser().absolute(), ROOT / dataset])
    root = next((place.resolve() for place in places if place.is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"DATASET={dataset}: neither demo, ucf101 nor a folder (looked at "
                                f"{' and '.join(map(str, places))})")
    asked = os.environ.get("NAME", "")
    if asked == platform.node():  # which some systems set it to
        asked = ""
    name = _as_name(name or asked or root.name)
    if not name.strip("."):
        raise ValueError(f"{root}: its results need a name: choose one with NAME=")
    name = f"{name}-sample" if name.casefold() in TAKEN else name
    _check_owner(results / name, root)
    return name, root, results / name


def _check_owner(results: Path, root: Path) -> None:
    """Sees to it that two folders of one name don't share their results."""
    owner = Path(read_json(results / SOURCE).get("root", root))
    if owner.is_dir() and not owner.samefile(root):
        raise ValueError(f"the results in {results} are those of another folder, {owner}: give this one a name of its "
                         f"own, such as NAME={_as_name(f'{root.parent.name}-{root.name}')}")


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def claim(results: Path, root: Path) -> None:
    """Notes whose results they are; says so where they were those of a folder that is not there any more."""
    owner = read_json(results / SOURCE).get("root")
    if owner and not Path(owner).is_dir():
        print(f"the results in {results} were those of {owner}, which is gone: now they are this folder's")
    if owner != str(root):
        write_json(results / SOURCE, {"root": str(root)})
