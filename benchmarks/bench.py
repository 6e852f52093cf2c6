"""Measures the study against the seed's own pipeline, side by side in one run.

    python benchmarks/bench.py [--clips DIR] [--repeats 3] [--only NAME ...]

Each measurement runs in a process of its own, the repeats interleaved. Networks have random weights, on which time does
not depend. Writes results/benchmarks/<machine>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import numpy as np
import pandas as pd
import psutil
import torch

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader

import seed_pipeline
from config import RESULTS, ROOT, get_recipe, shown
from data_loader import (
    ClipViews, DrawnView, VideoDataset2D, apply_transform, eval_transform, read_frames, seed_worker,
    segment_indices, train_transform,
)
from evaluation import evaluate
from experiment import Training, load_or_train, open_data, untrained
from features import Activations, Deployed, FrozenTrunk, frozen_trunk
from models import build_model, preprocessing_of
from store import ArrayStore
from table import markdown
from utils import environment, hardware_line, memory_mb, save_array, seed_everything, write_json

SEED_STEPS = 3  # batches timed of the seed's training, after one to warm up
FULL_SIZE = {"train": 271, "val": 45, "test": 46}  # the three-class set of 362 clips
BACKBONE = {"2d": "resnet18", "3d": "resnet3d"}


# ---------------------------------------------------------------- what is measured, each in its own process

def measure_seed(kind: str, clips: str) -> dict:
    """Seconds a clip of the seed's training and validation, loading included, in its steady state."""
    data = open_quietly(clips)
    train, val = (clip_lists(data, part) for part in ("train", "val"))
    model = seed_pipeline.build(kind, len(data.classes))
    optimizer = seed_pipeline.optimizer_of(model)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=seed_pipeline.LABEL_SMOOTHING)

    def train_step(x, y):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    @torch.no_grad()
    def val_step(x, y):
        criterion(model(x), y)

    seconds = {}
    for name, lists, step in (("train", train, train_step), ("val", val, val_step)):
        model.train(name == "train")
        batches = iter(seed_pipeline.loader(*lists, kind, name == "train"))
        step(*next(batches))
        started, seen = time.perf_counter(), 0
        for (x, y), _ in zip(batches, range(SEED_STEPS)):
            step(x, y)
            seen += len(y)
        seconds[f"{name}_s_per_clip"] = (time.perf_counter() - started) / seen
        del batches
    size = data.split["clips"]
    return {**seconds, "epochs_8_s": seed_pipeline.EPOCHS * (
        seconds["train_s_per_clip"] * size["train"] + seconds["val_s_per_clip"] * size["val"])}


def measure_ours(kind: str, clips: str) -> dict:
    """The whole of ours from nothing: decode, features, every epoch, evaluation; then a reload."""
    with tempfile.TemporaryDirectory() as folder:
        data = open_quietly(clips, Path(folder) / "results")
        recipe = get_recipe("recommended", kind, patience=100)  # random weights would stop too early
        seconds = {}
        with Stopwatch(seconds, "train"):
            run = load_or_train(kind, data, recipe, "none", cache=Path(folder) / "cache")
        with Stopwatch(seconds, "evaluate"):
            evaluate(run)
        features = run.stats["feature_time"]
        with Stopwatch(seconds, "reload"):
            load_or_train(kind, data, recipe, "none", cache=Path(folder) / "cache")
        with Stopwatch(seconds, "second_training"):
            load_or_train(kind, data, get_recipe("recommended", kind, patience=100, lr=1e-3), "none",
                          cache=Path(folder) / "cache")
    return {"whole_s": seconds["train"] + seconds["evaluate"], "features_s": features,
            **{f"{name}_s": value for name, value in seconds.items()}, "epochs": run.recipe.epochs, "trained": run.recipe.trained}


def measure_second_training(kind: str, clips: str) -> dict:
    """Training with another learning rate on kept activations of 362 clips: made-up values of the true shapes."""
    data, recipe = open_quietly(clips), get_recipe("recommended", kind, patience=100, lr=1e-3).resolved(BACKBONE[kind])
    model, dataset = build_model(recipe, len(data.classes), "none"), view_dataset(data, kind, "train")
    with torch.inference_mode():
        shape = tuple(model.trunk(dataset[0][0][None])[0].shape)
    with tempfile.TemporaryDirectory() as folder:
        rng, kept = np.random.default_rng(0), {}
        for part, views in (("train", recipe.train_views), ("val", 1)):
            files = [Path(folder) / part / f"{i}.npy" for i in range(FULL_SIZE[part])]
            for file in files:
                save_array(file, rng.standard_normal((views, *shape)).astype(np.float16))
            kept[part] = Activations(files, [i % len(data.classes) for i in range(len(files))], draw=True)
        return {"seconds": train_on(model, recipe, kept, Path(folder) / "last.pth"), "epochs": recipe.epochs}


def train_on(model, recipe, kept: dict[str, Activations], last: Path) -> float:
    """Seconds of all epochs of a recipe on kept activations."""
    loaders = [DataLoader(kept[part], recipe.batch_size, shuffle=part == "train") for part in ("train", "val")]
    training = Training(model.head, recipe, len(loaders[0]), {}, last)
    started = time.perf_counter()
    training.run(*loaders, "cpu")
    return time.perf_counter() - started


def measure_loader(kind: str, clips: str) -> dict:
    """Training views a second of one loader worker: the seed's data set; ours from the file, one view of a clip or all of
    the recipe's in one pass, as activations are computed; from kept frames; and from kept activations."""
    data = open_quietly(clips)
    files, labels = clip_lists(data, "train")
    count = min(24, len(files))
    ours = view_dataset(data, kind, "train", train=True)
    seed, views = seed_pipeline.SeedDataset(files, labels, kind, train=True), get_recipe("recommended", kind).train_views
    with tempfile.TemporaryDirectory() as folder:
        stored = DrawnView(ours, views, store=ArrayStore(Path(folder) / "frames"))
        for i in range(count):
            stored[i]
        model = build_model(get_recipe("recommended", kind), len(data.classes), "none")
        with torch.inference_mode():
            shape = tuple(model.trunk(ours[0][0][None])[0].shape)
        kept = [Path(folder) / f"{i}.npy" for i in range(count)]
        for path in kept:
            save_array(path, np.zeros((views, *shape), np.float16))
        activations = Activations(kept, labels[:count], draw=True)
        sources = {"ours_one_view": ours, "ours_all_views": ClipViews(ours, views, pixels=True),
                   "ours_frames_kept": stored, "ours_activations_kept": activations}
        torch.set_num_threads(1)  # as DataLoader does in every worker, the seed's too
        rates = {"seed": rate(seed.__getitem__, range(min(count, 8)))}
        seed_worker(0)  # what ours add to that
        rates |= {name: rate(source.__getitem__, range(count)) for name, source in sources.items()}
        rates["ours_all_views"] *= views
        return {f"{name}_views_per_s": value for name, value in rates.items()}


def measure_decode(clips: str) -> dict:
    """Clips a second of decoding 20 frames spread over each clip, by decoder; one thread where it can be set."""
    files = clip_lists(open_quietly(clips), "train")[0][:30]
    decoders = {"ours": lambda path: read_frames(path, lambda info: segment_indices(info.frames, 20))[0],
                "opencv_all_frames": seed_pipeline.read_all_frames}
    optional = {"av": decode_av, "decord": decode_decord, "torchcodec": decode_torchcodec}
    result = {}
    for name, decode in {**decoders, **{n: d for n, d in optional.items() if find_spec(n)}}.items():
        try:
            decode(files[0])
            result[f"{name}_clips_per_s"] = rate(decode, files)
        except Exception as error:  # installed, but of no use here: that is the line to print
            result[f"{name}_skipped"] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return {**result, **{f"{name}_skipped": "not installed" for name in optional if not find_spec(name)}}


def decode_av(path: str) -> np.ndarray:
    """20 frames with PyAV, in order."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        wanted = set(segment_indices(stream.frames, 20).tolist())
        return np.stack([f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted])


def decode_decord(path: str) -> np.ndarray:
    """20 frames with decord."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(segment_indices(len(reader), 20).tolist()).asnumpy()


def decode_torchcodec(path: str) -> torch.Tensor:
    """20 frames with torchcodec."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    return decoder.get_frames_at(segment_indices(len(decoder), 20).tolist()).data


def measure_transforms(clips: str) -> dict:
    """Milliseconds a clip of 20 frames in a loader worker: torchvision's first transforms on PIL frames, ours on the clip."""
    seed_worker(0)
    data = open_quietly(clips)
    frames, _ = read_frames(clip_lists(data, "train")[0][0], lambda info: segment_indices(info.frames, 20))
    prep, result = preprocessing_of("resnet18"), {}
    for name, ours, seed in (("train", train_transform(prep), seed_pipeline.frame_transform(True)),
                             ("eval", eval_transform(prep), seed_pipeline.frame_transform(False))):
        result[f"{name}_seed_ms"] = 1000 / rate(lambda _: apply_transform(frames, seed), range(4))
        result[f"{name}_ours_ms"] = 1000 / rate(lambda _: apply_transform(frames, ours), range(8))
    return result


def measure_latency(kind: str, clips: str) -> dict:
    """Seconds of one clip by part of the work, warm, at one and at all threads; the seed's model beside ours."""
    data, result = open_quietly(clips), {}
    path, dataset = clip_lists(data, "test")[0][0], view_dataset(data, kind, "test")
    seed = seed_pipeline.SeedDataset([path], [0], kind, train=False)
    seed_model, seed_clip = seed_pipeline.build(kind, len(data.classes)).eval(), seed[0][0][None]
    with tempfile.TemporaryDirectory() as folder:
        model = deployed(kind, data, dataset, Path(folder))
    frames, _ = read_frames(path, dataset.sampler)
    clip = dataset.layout(apply_transform(frames, dataset.transform))[None]
    for threads in sorted({1, torch.get_num_threads()}):
        for name, statement, names in (
                ("seed_model", "model(clip)", {"model": seed_model, "clip": seed_clip}),
                ("ours_model", "model(clip)", {"model": model, "clip": clip}),
                ("ours_decode", "read(path, sampler)", {"read": read_frames, "path": path, "sampler": dataset.sampler}),
                ("ours_transform", "apply(frames, transform)",
                 {"apply": apply_transform, "frames": frames, "transform": dataset.transform})):
            with torch.inference_mode():
                timer = Timer(statement, globals=names, num_threads=threads)
                result[f"{name}_{threads}_threads_s"] = timer.blocked_autorange(min_run_time=1.0).median
    return result


def measure_growth(kind: str, clips: str) -> dict:
    """Seconds and peak memory of features and two epochs on 1x, 2x and 4x clips: see `measure_size`."""
    return {f"x{times}": run_task(f"size_{kind}_{times}", clips)[0] for times in (1, 2, 4)}


def measure_size(kind: str, times: int, clips: str) -> dict:
    """One size of `measure_growth`: `times` times 6 training clips a class, one test and one validation clip."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "clips"
        table = open_quietly(clips)
        for label, rows in pd.concat([table.table(p) for p in ("train", "val", "test")]).groupby("label"):
            (root / label).mkdir(parents=True)
            for i in range(8 * times):
                source = table.root / rows["clip_path"].iloc[i % len(rows)].lstrip("/")
                (root / label / f"v_{label}_g{i // times + 1:02d}_c{i % times + 1:02d}.avi").symlink_to(source.resolve())
        data = open_quietly(str(root), Path(folder) / "results")
        recipe = get_recipe("recommended", kind, patience=100, epochs=2)
        started = time.perf_counter()
        evaluate(load_or_train(kind, data, recipe, "none", cache=Path(folder) / "cache"))
        return {"clips": sum(data.split["clips"].values()), "seconds": time.perf_counter() - started,
                "peak_mib": memory_mb()["peak"]}


def measure_tried(kind: str, clips: str) -> dict:
    """Seconds a view of the frozen trunk under each means of making it faster, and what compiling costs."""
    data = open_quietly(clips)
    recipe = get_recipe("recommended", kind)
    model = build_model(recipe, len(data.classes), "none").eval()
    dataset = view_dataset(data, kind, "test")
    clip = dataset[0][0][None]
    frozen, result = FrozenTrunk(model, dataset, "cpu"), {}
    plain = torch.inference_mode()(lambda: model.trunk(clip))
    result["float32_s"] = 1 / rate(lambda _: plain(), range(4))
    result["float32_folded_s"] = 1 / rate(lambda _: frozen.run(clip), range(4))
    with torch.autocast("cpu", torch.bfloat16):
        result["bfloat16_s"] = 1 / rate(lambda _: plain(), range(4))
    frozen.precision = "bfloat16"
    result["bfloat16_folded_s"] = 1 / rate(lambda _: frozen.run(clip), range(4))
    frozen.trunk = torch.compile(frozen.trunk)
    try:
        started = time.perf_counter()
        frozen.run(clip)
        result["compile_s"] = time.perf_counter() - started
        result["bfloat16_folded_compiled_s"] = 1 / rate(lambda _: frozen.run(clip), range(4))
    except Exception as error:  # no compiler on this machine
        result["compile_skipped"] = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return result


# ---------------------------------------------------------------- their parts

class Stopwatch:
    """Puts the seconds of a block into a dictionary."""

    def __init__(self, seconds: dict, name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.name] = time.perf_counter() - self.started


def rate(work: Callable, items: Iterable) -> float:
    """Items a second, after one to warm up."""
    items = list(items)
    work(items[0])
    started = time.perf_counter()
    for item in items:
        work(item)
    return len(items) / (time.perf_counter() - started)


def open_quietly(clips: str, results: Path | None = None):
    """The clips by whole groups."""
    return open_data(clips, "group", results=results or Path(tempfile.gettempdir()) / "bench")


def clip_lists(data, part: str) -> tuple[list[str], list[int]]:
    """Files and labels of a part."""
    table = data.table(part)
    return [str(data.root / path.lstrip("/")) for path in table["clip_path"]], table["label"].map(data.class_map).tolist()


def view_dataset(data, kind: str, part: str, train: bool = False) -> VideoDataset2D:
    """A part as our recipe samples and transforms it for ResNet-18 or R3D-18."""
    return untrained(data, get_recipe("recommended", kind), "none", seed=0, device="cpu").dataset(part, train)


def deployed(kind: str, data, dataset, folder: Path) -> Deployed:
    """Our model as it is tested."""
    seed_everything(0)
    model = build_model(get_recipe("recommended", kind), len(data.classes), "none")
    return Deployed(frozen_trunk(model, dataset, "cpu", cache=folder), model.head)


class MemoryWatch(threading.Thread):
    """Samples the memory of a process and its children: `peak_mib`, the sum of their proportional sets."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.process, self.peak_mib, self.stopped = psutil.Process(pid), 0.0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.3):
            total = 0
            for process in [self.process, *self._children()]:
                try:
                    total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)

    def _children(self):
        try:
            return self.process.children(recursive=True)
        except psutil.Error:
            return []


TASKS = {
    **{f"seed_{k}": (lambda clips, k=k: measure_seed(k, clips)) for k in BACKBONE},
    **{f"ours_{k}": (lambda clips, k=k: measure_ours(k, clips)) for k in BACKBONE},
    **{f"loader_{k}": (lambda clips, k=k: measure_loader(k, clips)) for k in BACKBONE},
    **{f"latency_{k}": (lambda clips, k=k: measure_latency(k, clips)) for k in BACKBONE},
    **{f"second_{k}": (lambda clips, k=k: measure_second_training(k, clips)) for k in BACKBONE},
    **{f"tried_{k}": (lambda clips, k=k: measure_tried(k, clips)) for k in BACKBONE},
    "decode": measure_decode,
    "transforms": measure_transforms,
    **{f"growth_{k}": (lambda clips, k=k: measure_growth(k, clips)) for k in BACKBONE},
}
INNER = {f"size_{k}_{n}": (lambda clips, k=k, n=n: measure_size(k, n, clips)) for k in BACKBONE for n in (1, 2, 4)}
ONCE = {"growth_2d", "growth_3d", "tried_2d", "tried_3d"}  # a fit or a choice, not a ratio: measured once


# ---------------------------------------------------------------- the run

def run_task(name: str, clips: str) -> tuple[dict, float]:
    """One measurement in its own process: what it returns, and the peak memory of that process and its children."""
    command = [sys.executable, str(Path(__file__).resolve()), "--task", name, "--clips", clips]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    watch.start()
    output, _ = process.communicate()
    watch.stopped.set()
    if process.returncode:
        raise SystemExit(f"bench: {name} failed (exit status {process.returncode})")
    return json.loads(output.splitlines()[-1]), watch.peak_mib


def collect(names: list[str], clips: str, repeats: int) -> dict[str, list[dict]]:
    """All repeats of all measurements, interleaved."""
    collected = {name: [] for name in names}
    started = time.perf_counter()
    for repeat in range(repeats):
        for name in names:
            if repeat == 0 or name not in ONCE:
                result, peak = run_task(name, clips)
                collected[name].append({**result, "peak_mib": peak})
                print(f"[{time.perf_counter() - started:5.0f} s] {name} {repeat + 1}/{repeats}", flush=True)
    return collected


def summary(runs: list[dict]) -> dict:
    """Median, least and greatest of each number over the repeats."""
    out = {}
    for key, value in runs[0].items():
        if isinstance(value, (int, float)):
            values = [run[key] for run in runs]
            out[key] = {"median": float(np.median(values)), "min": min(values), "max": max(values), "n": len(values)}
        else:
            out[key] = value
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures the study against the seed's pipeline.")
    parser.add_argument("--clips", help="folder of class folders (default: ../shared/ucf101 where present, else the demo)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps({**TASKS, **INNER}[options.task](options.clips)))
        return
    real = ROOT.parent / "shared" / "ucf101"
    clips = options.clips or (str(real) if real.is_dir() else "demo")
    env = environment()
    measured = {name: summary(runs) for name, runs in collect(options.only, clips, options.repeats).items()}
    machine = re.sub(r"[^\w.-]+", "-", f"{env['cpu']}-{env['cores']}-cores").strip("-").lower()
    target = RESULTS / "benchmarks" / f"{machine}.json"
    document = {"clips": Path(clips).name if clips != "demo" else "demo", "environment": env, "measured": measured}
    write_json(target, document)
    text = markdown(document, hardware_line(env))
    target.with_suffix(".md").write_text(text)
    print(f"\n{text}\nwritten: {shown(target)}")


if __name__ == "__main__":
    main()
