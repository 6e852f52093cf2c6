"""The benchmark's figures as a Markdown page: each ratio with the two figures that it is made of."""

HEADER = ["model or decoder", "what", "seed's or decoder's", "ours", "ratio"]
NAMES = {"2d": "2D-CNN (ResNet-18, 20 frames of 224)", "3d": "3D-CNN (R3D-18)"}
TASKS = ("seed", "ours", "loader", "latency", "trunk")
STUDY = {  # what is compared, to the seed's figure and ours
    "the seed's 8 epochs (extrapolated) / ours from nothing: features, epochs, test [s]": ("epochs_8_s", "whole_s"),
    "peak memory of all its processes [MiB]": ("peak_mib", "peak_mib"),
    "of it features [s]": (None, "features_s"),
    "the card is at work, % of the time": (None, "gpu_busy"),
    "reload of the trained model [s]": (None, "reload_s"),
    "second training, other learning rate, kept features [s]": (None, "second_training_s"),
}
REFERENCE = {"torchvision's reference, 45 epochs of 5 clips (extrapolated) / ours from nothing [s]": "whole_s",
             "of it one epoch of one clip per video / ours from nothing [s]": "epoch_s"}
GROWTH = {"whole_ms": "per clip [ms]", "open_ms": "of it opening the data set [ms]", "peak_mib": "peak memory [MiB]"}
LOADING = {
    "training views per second, from the file, one view": "ours_one_view_views_per_s",
    "training views per second, a clip's views in one pass, as features are computed": "ours_all_views_views_per_s",
}


def markdown(document: dict, hardware: str) -> str:
    """The whole page of a `document`, as bench.py writes it; what was not measured is left out."""
    measured, study, loading, latency, trunks = document["measured"], [], [], [], []
    for kind, name in NAMES.items():
        seed, ours, rates, times, speeds = (measured.get(f"{task}_{kind}", {}) for task in TASKS)
        study += [compared(name, what, seed.get(other), ours.get(own)) for what, (other, own) in STUDY.items()]
        loading += [compared(name, what, rates.get("seed_views_per_s"), rates.get(own), more_is_better=True)
                    for what, own in LOADING.items()]
        latency += [compared(name, key.removeprefix("ours_").replace("_", " "), times.get(f"seed{key[4:]}"), figure)
                    for key, figure in times.items() if key.startswith("ours_")]
        for how in (key.removesuffix(" ms") for key in speeds if key.endswith(" ms")):
            trunks += [compared(name, f"{how} [ms]", None, speeds[f"{how} ms"]),
                       compared(name, f"{how} [GFLOP/s], beside a large matrix product", speeds[f"{how} peak"],
                                speeds[f"{how} gflops"], more_is_better=True)]
    reference = measured.get("reference_3d", {})
    study += [compared(NAMES["3d"], what, reference.get(key), measured.get("ours_3d", {}).get("whole_s"))
              for what, key in REFERENCE.items() if reference]
    growth = grown([its for task, its in measured.items() if task.startswith("growth_")])
    speeds = {key.removesuffix("_clips_per_s"): figure for key, figure in measured.get("decode", {}).items()
              if key.endswith("_clips_per_s")}
    decoding = [compared(decoder, "clips per second", figure, speeds["ours"], more_is_better=True)
                for decoder, figure in speeds.items() if decoder != "ours"]
    decoding += [[key.removesuffix("_skipped"), f"not measured: {why}", "–", "–", "–"]
                 for key, why in measured.get("decode", {}).items() if key.endswith("_skipped")]
    transform = measured.get("transform", {})
    sections = {"The study": study, "Loading, one worker": loading, "Latency of one clip, warm": latency,
                "Decoding 20 frames per clip, one thread": decoding,
                "The weights' evaluation transform, 20 frames, one thread": [
                    compared("torchvision's preset of ResNet-18", "clips per second",
                             transform.get("torchvision_clips_per_s"), transform.get("ours_clips_per_s"),
                             more_is_better=True)],
                "The frozen trunk, one view": trunks,
                "How cost grows: tiny clips, opened, features, two epochs and test": growth}
    code = ", ".join(sorted({its["commit"] for its in measured.values() if "commit" in its})) or "unknown"
    intro = (f"# Benchmark\n\nMeasured on {hardware}; clips: {document['clips']}; code: {code}. Medians of interleaved "
             "repeats, least to greatest in brackets. A shared, noisy machine: compare within a row.")
    return "\n\n".join([intro, *(table(title, rows) for title, rows in sections.items() if any(rows))]) + "\n"


def compared(name: str, what: str, other: dict | None, ours: dict | None, more_is_better: bool = False) -> list[str]:
    """A row of two figures and their ratio, above one where ours is better; empty where ours was not measured."""
    if not ours:
        return []
    if not other:
        return [name, what, "–", value(ours), "–"]
    better, worse = (ours, other) if more_is_better else (other, ours)
    return [name, what, value(other), value(ours), f"**{better['median'] / worse['median']:.1f}x**"]


def grown(sizes: list[dict]) -> list[list[str]]:
    """Cost per clip by number of clips; from the second size on, its ratio to that of the smallest."""
    rows = []
    for what in GROWTH:
        told = [size for size in sizes if {"clips", what} <= size.keys()]
        for size in told:
            row = compared(f"{size['clips']['median']:.0f} clips", GROWTH[what], None, size[what])
            rows.append([*row[:-1], f"{size[what]['median'] / told[0][what]['median']:.2f} of the fewest's"])
    return rows


def value(figure: dict) -> str:
    """Median and spread."""
    digits = 0 if figure["median"] >= 100 else 1 if figure["median"] >= 1 else 3
    low, middle, high = (f"{figure[key]:.{digits}f}" for key in ("min", "median", "max"))
    return middle if figure["n"] == 1 else f"{middle} ({low} to {high})"


def table(title: str, rows: list[list[str]]) -> str:
    """A Markdown table under a heading, without empty rows."""
    lines = [HEADER, ["---"] * len(HEADER), *filter(None, rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
