"""What a reader should know of a folder of clips: what is used, what is left out and why, what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from videos.folder import Folder

TWO_LABELS, STRADDLING = "copies under two labels", "copies in different parts"
SHOWN = 3  # names of each row


def findings(found: Folder, facts: pd.DataFrame) -> pd.DataFrame:
    """A row each of what, files (how many) and which (the first of them).

    Args:
        found: the folder.
        facts: as `contents.clip_facts` gives them, with copy_of and, once the clips are split, part, which is empty for
            those that are left out.
    """
    part = facts["part"] if "part" in facts else facts["status"].where(facts["status"] == "ok", "")
    sets = [its for _, its in facts[facts["status"] != "broken"].groupby("copy_of") if len(its) > 1]
    parts = [set(part[its.index]) - {""} for its in sets]
    rows = {"used": facts.loc[part != "", "clip_path"],
            "broken": facts.loc[facts["status"] == "broken", "clip_path"],
            "one frame": facts.loc[facts["status"] == "one frame", "clip_path"],
            "not in the split": facts.loc[(part == "") & (facts["status"] == "ok"), "clip_path"],
            "copies": _equations(sets),
            TWO_LABELS: _equations(its for its in sets if its["label"].nunique() > 1),
            STRADDLING: _equations(its for its, its_parts in zip(sets, parts, strict=True) if len(its_parts) > 1),
            **found.others.groupby("reason")["path"].agg(list).to_dict()}
    shown = [(what, len(which), first_of(list(which))) for what, which in rows.items() if len(which)]
    return pd.DataFrame(shown, columns=["what", "files", "which"])


def check_table(facts: pd.DataFrame) -> pd.DataFrame:
    """One row per class of what is in the clips: counts, the range of frames, seconds in all, and the formats."""
    def values(column: pd.Series) -> str:
        return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(column.unique()))

    size = facts["width"].astype(str) + "x" + facts["height"].astype(str)
    readable = facts.assign(size=size, fps=facts["fps"].round(2))[facts["status"] != "broken"].groupby("label")
    counted = pd.DataFrame({"clips": True, "broken": facts["status"] == "broken",
                            "one frame": facts["status"] == "one frame",
                            "copies": facts["copy_of"] != facts["clip_path"]})
    return counted.groupby(facts["label"]).sum().join(pd.DataFrame({
        "frames": readable["frames"].agg(lambda frames: f"{frames.min()}-{frames.max()}"),
        "seconds": readable["duration"].sum().round(1),
        **{name: readable[name].agg(values) for name in ("fps", "size", "codec")}}))


def _equations(sets) -> list[str]:
    return [" = ".join(its["clip_path"]) for its in sets]


def left_out(split: dict) -> str:
    """What `VideoData.split` tells of clips that are not used, in brackets; empty where all are."""
    told = ", ".join(f"{count} {reason}" for reason, count in split.get("left_out", {}).items())
    return f" (left out: {told})" if told else ""


def first_of(names: Sequence[str], count: int = SHOWN) -> str:
    """The first few of some names, and how many there are besides."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
