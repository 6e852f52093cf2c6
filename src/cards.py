"""A model's card, in Markdown, from what its training and its test left in the results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import metrics
from files import ModelFiles, shown
from machine import hardware_line
from names import in_markdown

TEMPLATES = Path(__file__).with_name("templates")


def cell(value) -> str:
    """A value in Markdown, also in a table: numbers get three decimals, texts are as they are (`names.in_markdown`)."""
    return f"{value:.3f}" if isinstance(value, float) else in_markdown(str(value))


def texts(*folders: Path) -> Environment:
    """The templates of some folders, and those that lie here."""
    found = Environment(  # noqa: S701  the templates are Markdown; `cell` writes names as it needs them
        loader=FileSystemLoader([*folders, TEMPLATES]), undefined=StrictUndefined, trim_blocks=True)
    found.filters["cell"] = cell
    return found


def card(title: str, stats: dict, files: ModelFiles) -> str:
    """One model's card, in Markdown; sections follow Mitchell et al., Model Cards for Model Reporting (2019).

    `stats` are those of `load_results`, with the predictions.

    Raises:
        ValueError: the predictions are not of the saved model.
    """
    if not files.is_current(files.predictions):
        raise ValueError(f"{files.predictions}: not of the model that {files.sidecar} describes; run the model's "
                         "notebook again")
    predictions = stats["predictions"].assign(confidence=metrics.confidence(stats["predictions"]))
    classes = metrics.per_class(predictions, stats["classes"]).reset_index()
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    mistakes = wrong.value_counts(["label", "predicted"]).reset_index()
    return texts().get_template("card.md.j2").render(
        title=title, stats=stats, checkpoint=Path(shown(files.checkpoint)).as_posix(), sha256=files.sha256,
        hardware=hardware_line(stats["environment"]), predictions=predictions, wrong=wrong,
        seeds=metrics.seeds_reading(pd.DataFrame(stats["seeds"])) if "seeds" in stats else "",
        wilson=metrics.accuracy_interval(predictions), clustered=metrics.group_bootstrap(predictions),
        f1=metrics.group_bootstrap(predictions, "f1"), classes=classes, groups=metrics.by_group(predictions),
        worst=classes.loc[classes["recall"].where(classes["support"] > 0).idxmin()],
        mistake=mistakes.iloc[0] if len(mistakes) else None,
        least=predictions.loc[predictions["confidence"].idxmin()],
        calibration_error=metrics.expected_calibration_error(predictions), brier=metrics.brier(predictions),
        log_loss=metrics.negative_log_likelihood(predictions))
