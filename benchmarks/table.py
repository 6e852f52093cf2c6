"""The benchmark's figures as a Markdown page: each ratio with the two figures that it is made of."""

from __future__ import annotations

import numpy as np

NAMES = {"2d": "2D-CNN (ResNet-18, 20 frames of 224)", "3d": "3D-CNN (R3D-18)"}


def markdown(document: dict, hardware: str) -> str:
    """The whole page; what was not measured is left out.

    Args:
        document: with `clips` and `measured`, as bench.py writes it.
        hardware: the hardware line.
    """
    measured = document["measured"]
    parts = [f"# Benchmark\n\nMeasured on {hardware}; clips: {document['clips']}. Medians of interleaved repeats, "
             "least to greatest in brackets. A shared, noisy machine: compare within a row.",
             *(section(measured) for section in (study, loading, latency, decoding, growth))]
    return "\n\n".join(filter(None, parts)) + "\n"


# ---------------------------------------------------------------- figures and rows

def value(figure: dict, scale: float = 1.0) -> str:
    """Median and spread."""
    median = scale * figure["median"]
    digits = 0 if median >= 100 else 1 if median >= 1 else 2
    low, middle, high = (f"{scale * figure[key]:.{digits}f}" for key in ("min", "median", "max"))
    return middle if figure["n"] == 1 else f"{middle} ({low} to {high})"


def compared(name: str, what: str, other: dict | None, ours: dict | None, more_is_better: bool = False,
             scale: float = 1.0) -> list[str]:
    """A row of two figures and their ratio, above one where ours is better; empty where ours was not measured."""
    if not ours:
        return []
    if not other:
        return [name, what, "–", value(ours, scale), "–"]
    better, worse = (ours, other) if more_is_better else (other, ours)
    return [name, what, value(other, scale), value(ours, scale), f"**{better['median'] / worse['median']:.1f}x**"]


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table under a heading, without empty rows; nothing where there are no rows."""
    if not any(rows):
        return ""
    lines = [header, ["---"] * len(header), *filter(None, rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- sections

def study(measured: dict) -> str:
    """The seed's 8 epochs, extrapolated, against ours whole; a second training; reload; memory."""
    rows = []
    for kind, name in NAMES.items():
        seed, ours, second = (measured.get(f"{part}_{kind}", {}) for part in ("seed", "ours", "second"))
        epochs = f"{ours['epochs']['median']:.0f} epochs" if ours else "epochs"
        rows += [
            compared(name, f"the seed's 8 epochs (extrapolated) / ours from nothing: features, {epochs}, test [s]",
                     seed.get("epochs_8_s"), ours.get("whole_s")),
            compared(name, "peak memory of all its processes [MiB]", seed.get("peak_mib"), ours.get("peak_mib")),
            compared(name, "of it features [s]", None, ours.get("features_s")),
            compared(name, "reload of the trained model [s]", None, ours.get("reload_s")),
            compared(name, "second training, other learning rate, kept features [s]", None,
                     ours.get("second_training_s")),
            compared(name, "second training on kept features of 362 clips' size [s]", None, second.get("seconds"))]
    return table("The study", ["model", "what", "seed's pipeline", "ours", "ratio"], rows)


def loading(measured: dict) -> str:
    """Clips per second of the loaders, and milliseconds of the transforms."""
    rows, times = [], measured.get("transforms", {})
    sources = {"one_view": "from the file, one view",
               "all_views": "from the file, a clip's views in one pass, as features are computed",
               "activations_kept": "kept activations"}
    for kind, name in NAMES.items():
        rates = measured.get(f"loader_{kind}", {})
        rows += [compared(name, f"training views per second, {what}", rates.get("seed_views_per_s"),
                          rates.get(f"ours_{key}_views_per_s"), more_is_better=True) for key, what in sources.items()]
    rows += [compared("20 frames", f"{part} transform [ms]", times.get(f"{part}_seed_ms"), times.get(f"{part}_ours_ms"))
             for part in ("train", "eval")]
    return table("Loading, one worker", ["what for", "what", "seed's / torchvision's first", "ours", "ratio"], rows)


def latency(measured: dict) -> str:
    """One clip, warm."""
    rows = []
    for kind, name in NAMES.items():
        times = measured.get(f"latency_{kind}", {})
        for threads in sorted({int(key.split("_")[2]) for key in times if key.startswith("ours_model")}):
            for part in ("model", "decode", "transform"):
                seed, ours = (times.get(f"{whose}_{part}_{threads}_threads_s") for whose in ("seed", "ours"))
                rows.append(compared(name, f"{part}, threads: {threads}", seed, ours, scale=1000))
    return table("Latency of one clip [ms], warm", ["model", "what", "seed's", "ours", "ratio"], rows)


def decoding(measured: dict) -> str:
    """Clips per second by decoder."""
    found, rows = measured.get("decode", {}), []
    for key, figure in found.items():
        name = key.removesuffix("_clips_per_s").removesuffix("_skipped")
        if key.endswith("_skipped"):
            rows.append([name, "skipped", figure, "–", "–"])
        elif key.endswith("_clips_per_s") and name != "ours":
            rows.append(compared(name, "clips per second", figure, found["ours_clips_per_s"], more_is_better=True))
    return table("Decoding 20 frames per clip, one thread", ["decoder", "what", "its", "ours", "ratio"], rows)


def growth(measured: dict) -> str:
    """Features and two epochs on 1x, 2x and 4x clips, and the slope between the ends."""
    rows = []
    for kind, name in NAMES.items():
        sizes = [size for key, size in measured.get(f"growth_{kind}", {}).items() if key.startswith("x")]
        rows += [[name, str(size["clips"]), f"{size['seconds']:.1f}", f"{size['peak_mib']:.0f}", "–"] for size in sizes]
        if sizes:
            rows[-2][-1] = f"seconds grow as clips^{exponent(sizes, 'seconds'):.2f}"
            rows[-1][-1] = f"memory grows as clips^{exponent(sizes, 'peak_mib'):.2f}"
    return table("How cost grows: features, two epochs and test",
                 ["model", "clips", "seconds", "peak MiB", "fit"], rows)


def exponent(sizes: list[dict], quantity: str) -> float:
    """The slope of log(quantity) over log(clips), by least squares."""
    return float(np.polyfit(np.log([s["clips"] for s in sizes]), np.log([s[quantity] for s in sizes]), 1)[0])
