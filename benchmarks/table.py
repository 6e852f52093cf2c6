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
    parts = [f"# Benchmark\n\nMeasured on {hardware}; clips: {document['clips']}. Medians of interleaved repeats, least to "
             "greatest in brackets. A shared, noisy machine: compare within a row.",
             *(section(measured) for section in (study, loading, latency, decoding, tried, growth))]
    return "\n\n".join(filter(None, parts)) + "\n"


def value(figure: dict, digits: int = 1, scale: float = 1.0) -> str:
    """Median and spread."""
    low, middle, high = (f"{scale * figure[key]:.{digits}f}" for key in ("min", "median", "max"))
    return middle if figure["n"] == 1 else f"{middle} ({low} to {high})"


def ratio(first: dict, second: dict) -> str:
    """How many times the first median is the second."""
    return f"**{first['median'] / second['median']:.1f}x**"


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table under a heading; nothing where there are no rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def study(measured: dict) -> str:
    """The seed's 8 epochs, extrapolated, against ours whole; a second training; reload; memory."""
    rows = []
    for kind, name in NAMES.items():
        seed, ours, second = (measured.get(f"{part}_{kind}") for part in ("seed", "ours", "second"))
        if seed and ours:
            rows += [[name, f"the seed's 8 epochs (extrapolated) / ours from nothing: features, {ours['epochs']['median']:.0f} epochs, test [s]",
                      value(seed["epochs_8_s"], 0), value(ours["whole_s"], 1),
                      ratio(seed["epochs_8_s"], ours["whole_s"])],
                     [name, "peak memory of all its processes [MiB]", value(seed["peak_mib"], 0),
                      value(ours["peak_mib"], 0), ratio(seed["peak_mib"], ours["peak_mib"])]]
        if ours:
            rows += [[name, "of it features [s]", "–", value(ours["features_s"]), "–"],
                     [name, "reload of the trained model [s]", "–", value(ours["reload_s"], 2), "–"],
                     [name, "second training, other learning rate, kept features [s]", "–",
                      value(ours["second_training_s"]), "–"]]
        if second:
            rows.append([name, "second training on kept features of 362 clips' size [s]", "–",
                         value(second["seconds"]), "–"])
    return table("The study", ["model", "what", "seed's pipeline", "ours", "ratio"], rows)


def loading(measured: dict) -> str:
    """Clips a second of the loaders, and milliseconds of the transforms."""
    rows = []
    for kind, name in NAMES.items():
        if rates := measured.get(f"loader_{kind}"):
            rows += [[name, f"training views a second, {what}", value(rates["seed_views_per_s"]),
                      value(rates[f"{key}_views_per_s"]),
                      ratio(rates[f"{key}_views_per_s"], rates["seed_views_per_s"])]
                     for key, what in (("ours_one_view", "from the file, one view"),
                                       ("ours_all_views", "from the file, a clip's views in one pass, as features are computed"),
                                       ("ours_frames_kept", "kept frames"), ("ours_activations_kept", "kept activations"))]
    if times := measured.get("transforms"):
        rows += [["20 frames", f"{part} transform [ms]", value(times[f"{part}_seed_ms"]), value(times[f"{part}_ours_ms"]),
                  ratio(times[f"{part}_seed_ms"], times[f"{part}_ours_ms"])] for part in ("train", "eval")]
    return table("Loading, one worker", ["what for", "what", "seed's / torchvision's first", "ours", "ratio"], rows)


def latency(measured: dict) -> str:
    """One clip, warm."""
    rows = []
    for kind, name in NAMES.items():
        times = measured.get(f"latency_{kind}", {})
        for threads in sorted({int(key.split("_")[2]) for key in times if key.startswith("ours_model")}):
            end = f"_{threads}_threads_s"
            rows.append([name, str(threads), *(value(times[part + end], 0, 1000) for part in (
                "seed_model", "ours_model", "ours_decode", "ours_transform")),
                ratio(times["seed_model" + end], times["ours_model" + end])])
    return table("Latency of one clip [ms]", ["model", "threads", "seed's model", "our model", "our decoding",
                                              "our transform", "ratio of the models"], rows)


def decoding(measured: dict) -> str:
    """Clips a second by decoder."""
    rates = measured.get("decode", {})
    rows = [[key.removesuffix("_clips_per_s"), value(figure), ratio(rates["ours_clips_per_s"], figure)]
            for key, figure in rates.items() if key.endswith("_clips_per_s")]
    rows += [[key.removesuffix("_skipped"), f"skipped: {why}", "–"] for key, why in rates.items() if key.endswith("_skipped")]
    return table("Decoding 20 frames a clip, one thread", ["decoder", "clips a second", "ours is"], rows)


def tried(measured: dict) -> str:
    """The frozen trunk under each means."""
    labels = {"float32_s": "float32", "float32_folded_s": "float32, BatchNorm folded", "bfloat16_s": "bfloat16",
              "bfloat16_folded_s": "bfloat16, BatchNorm folded",
              "bfloat16_folded_compiled_s": "bfloat16, folded, torch.compile", "compile_s": "compiling [s]"}
    rows = []
    for kind, name in NAMES.items():
        times = measured.get(f"tried_{kind}", {})
        rows += [[name, label, value(times[key], 3), "–" if key == "compile_s" else ratio(times["float32_s"], times[key])]
                 for key, label in labels.items() if key in times]
        if "compile_skipped" in times:
            rows.append([name, "torch.compile", f"skipped: {times['compile_skipped']}", "–"])
    return table("The frozen trunk, one view [s]", ["model", "how", "seconds", "speed"], rows)


def growth(measured: dict) -> str:
    """Features and two epochs on 1x, 2x and 4x clips, and the slope between the ends."""
    rows = []
    for kind, name in NAMES.items():
        sizes = measured.get(f"growth_{kind}")
        if not sizes:
            continue
        rows += [[name, str(s["clips"]), f"{s['seconds']:.1f}", f"{s['peak_mib']:.0f}", "–"] for s in
                 (sizes["x1"], sizes["x2"], sizes["x4"])]
        for quantity, label in (("seconds", "seconds"), ("peak_mib", "memory")):
            rows[-1 if label == "memory" else -2][-1] = f"{label} grow as clips^{exponent(sizes, quantity):.2f}"
    return table("How cost grows: features, two epochs and test", ["model", "clips", "seconds", "peak MiB", "fit"], rows)


def exponent(sizes: dict, quantity: str) -> float:
    """The slope of log(quantity) over log(clips), least squares over the three sizes."""
    rows = [sizes[key] for key in ("x1", "x2", "x4")]
    return float(np.polyfit(np.log([r["clips"] for r in rows]), np.log([r[quantity] for r in rows]), 1)[0])
