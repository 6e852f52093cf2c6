"""Which modality suits a data set: chosen inside its training part, at the cost of a linear layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from config import RGB_WEIGHT
from videos.splits import group_folds

FOLDS = 5  # at most; fewer where a class has fewer groups
STRENGTH = 0.003  # C of the logistic regression; from 0.0003 to 0.1 it hardly mattered on UT-Interaction


def modality_scores(streams: dict[str, np.ndarray], clips: pd.DataFrame, grouped: bool, seed: int) -> pd.DataFrame:
    """Inner cross-validation, by whole groups, of logistic regressions on each stream's standardised features.

    Args:
        streams: `rgb` and `diff` to (N, D) pooled features of the training clips.
        clips: those clips, with `label` and `group`.
        grouped: whether they name groups.
        seed: of the folds.

    Returns:
        One row per modality (rgb, diff, and rgb+diff, as `models.TwoStream` joins them): accuracy and log_loss of
        held-out clips. The best is first, by log_loss: accuracies of a few clips differ by chance.
    """
    folds, _ = group_folds(clips, FOLDS, grouped, seed)
    # the rotation by PCA keeps all there is and makes the fit fast: there are far more features than clips
    model = make_pipeline(StandardScaler(), PCA(random_state=0), LogisticRegression(C=STRENGTH, max_iter=1000))
    held_out = {name: cross_val_predict(model, x, clips["label"], cv=folds, method="predict_log_proba")
                for name, x in streams.items()}
    held_out["rgb+diff"] = (RGB_WEIGHT * held_out["rgb"] + held_out["diff"]) / (RGB_WEIGHT + 1)
    classes, rows = np.unique(clips["label"]), {}
    for name, logits in held_out.items():
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        rows[name] = {"accuracy": (classes[logits.argmax(axis=1)] == clips["label"]).mean(),
                      "log_loss": log_loss(clips["label"], probabilities, labels=classes)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("modality")
    return table.sort_values("log_loss", kind="stable")
