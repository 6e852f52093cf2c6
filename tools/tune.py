"""Searches hyperparameters of a deep model's head; the test set takes no part in it.

    python tools/tune.py --kind 2d --trials 60 [--cuts head stage] [--storage URL] [--test]

DATASET, SPLIT, CLASSES, SEED, WEIGHTS, BACKBONE and RECIPE are taken from the environment, as by the notebooks.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from config import asked_backbone, asked_number
from files import shown
from models import WeightsError
from studies.tuning import CUTS, compare, run_study, test_of_choice
from videos.decoding import VideoError
from videos.library import open_asked


def main(arguments: list[str] | None = None) -> None:
    """The command line: runs or reloads the study and prints what it chose."""
    parser = argparse.ArgumentParser(description="Searches hyperparameters of a deep model's head.")
    parser.add_argument("--kind", nargs="+", choices=("2d", "3d"), required=True)
    parser.add_argument("--trials", type=int, default=60, help="finished trials in the study (default: 60)")
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=["head"],
                        help="what may be trained: head (the default), or with a long budget stage as well")
    parser.add_argument("--storage", help="database URL; several machines can share one (default: a file)")
    parser.add_argument("--test", action="store_true",
                        help="afterwards, the default and the chosen values on the test set")
    asked = parser.parse_args(arguments)
    try:
        backbones = {kind: asked_backbone(kind) for kind in asked.kind}
        data = open_asked()
        for kind in asked.kind:
            study = run_study(kind, data, os.environ.get("WEIGHTS") or "auto", asked.trials,
                              asked_number("SEED"), tuple(asked.cuts), asked.storage,
                              recipe=os.environ.get("RECIPE") or "recommended", backbone=backbones[kind])
            print(f"\n{study.study_name}\n{compare(study).T.to_string()}")
            if asked.test:
                print(f"\non the test set:\n{test_of_choice(study, data).to_string(index=False)}")
    except (OSError, ValueError, WeightsError, VideoError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\nresults: {shown(data.results / 'tuning')}")


if __name__ == "__main__":
    main()
