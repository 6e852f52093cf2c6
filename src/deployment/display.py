"""Answers as notebooks show them."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from deployment.annotate import annotate
from deployment.answer import Answer
from metrics import MANY


def answers_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per answer: the video's name, model, seconds, predicted class, a probability per class (of MANY classes,
    those of the predicted one and of the next), unfamiliarity."""
    rows = [{"video": its.file.name, "model": its.model, "seconds": its.seconds, "predicted": its.predicted,
             **_probabilities(its), "unfamiliarity": its.unfamiliarity} for its in answers]
    return pd.DataFrame(rows).set_index(["video", "model"])


def _probabilities(its: Answer) -> dict[str, float | str]:
    if len(its.classes) <= MANY:
        return dict(zip(its.classes, its.probabilities, strict=True))
    first, second = (-its.probabilities).argsort(kind="stable")[:2]
    return {"probability": its.probabilities[first], "next": its.classes[second],
            "its probability": its.probabilities[second]}


def player(answer: Answer, width: int = 320) -> str:
    """The annotated video as a piece of HTML that plays it, `width` pixels wide; errors as `annotate`."""
    with TemporaryDirectory() as folder:
        target = Path(folder, "answer.mp4")
        annotate(answer, target)
        data = b64encode(target.read_bytes()).decode()
    words = html.escape(f"{answer.file.name}: {answer.predicted} {answer.probabilities.max():.2f}", quote=True)
    return (f'<video controls muted loop playsinline width="{width}" title="{words}" aria-label="{words}" '
            f'src="data:video/mp4;base64,{data}"></video>')
