"""Measures the study against the seed's own pipeline, side by side in one run.

    python benchmarks/bench.py [--clips DIR] [--repeats 3] [--device cpu] [--only NAME ...]

Each measurement runs in a process of its own, the repeats interleaved. Networks have random weights, on which time does
not depend. Writes results/benchmarks/<machine>.json and .md, where figures that were not measured anew stay.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import av
import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet18_Weights

import reference_pipeline
import seed_pipeline
from config import CACHE, DEFAULT_BACKBONE, RESULTS, ROOT, get_recipe
from data_loader import ClipViews, limit_threads, load_dataset
from deployed import FrozenTrunk
from engines import ENGINES
from evaluation import evaluate
from experiment import Experiment, load_or_train, untrained
from files import read_json, shown, write_json
from machine import accelerator, commit, computes_bfloat16, environment, hardware_line
from networks import preprocessing_of
from sampling import segment_indices
from table import markdown
from transforms import apply_transform, channels_first, eval_transform
from utils import eval_one_epoch, make_optimizer, train_one_epoch
from videos.decoding import read_frames
from videos.encoding import write_video
from videos.library import VideoData, open_data

SEED_STEPS = 3  # batches timed of the seed's training, after one to warm up
SIZES = (1000, 4000, 13320)  # tiny clips, by whose number the growth of cost is measured
TINY = {"modality": "diff", "num_frames": 2, "size": 32, "train_views": 1, "test_clips": 1, "sampling": "segments"}
REFERENCE_BATCH = 4  # of torchvision's 24: memory; the time per clip is the same
PRODUCT = 3072  # rows and columns of the matrices by which the processor's speed is measured


# ---------------------------------------------------------------- the whole study

def measure_seed(kind: str, clips: str, device: str) -> dict:
    """Seconds per clip of the seed's training and validation, loading included, in its steady state."""
    data, recipe = open_clips(clips), get_recipe("seed", kind)
    model = seed_pipeline.build(kind, len(data.classes)).to(device)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    epochs = {"train": partial(train_one_epoch, optimizer=make_optimizer(recipe, model)), "val": eval_one_epoch}
    seconds = {}
    for part, epoch in epochs.items():
        dataset = seed_pipeline.SeedDataset(kind, data, part)
        loader = DataLoader(dataset, recipe.batch_size, shuffle=part == "train", num_workers=seed_pipeline.WORKERS)
        seconds[part] = steady_s(partial(epoch, model, criterion=criterion, device=device), loader, device)
    epoch_s = sum(seconds[part] * data.split["clips"][part] for part in seconds)
    return {**{f"{part}_s_per_clip": value for part, value in seconds.items()}, "epochs_8_s": recipe.epochs * epoch_s}


def steady_s(epoch: Callable, loader: DataLoader, device: str) -> float:
    """Seconds per clip of an epoch, loading included, after a batch to warm up: of SEED_STEPS batches; on a GPU, which
    is done with those before they would have to be waited for, of a whole epoch."""
    batches = iter(loader)
    epoch(islice(batches, 1))
    if device != "cpu":
        del batches
        return stopwatch(epoch, loader) / len(loader.dataset)
    seen = min(SEED_STEPS * loader.batch_size, len(loader.dataset) - loader.batch_size)
    return stopwatch(epoch, islice(batches, SEED_STEPS)) / seen


def measure_ours(kind: str, clips: str, device: str) -> dict:
    """The whole of ours from nothing: decoding, features, every epoch, test; then a reload; then another training."""
    with tempfile.TemporaryDirectory() as folder:
        data = open_clips(clips, Path(folder))
        whole, reload = stopwatch(lambda: evaluate(study(kind, data, device))), stopwatch(study, kind, data, device)
        stats = study(kind, data, device).stats
        return {"whole_s": whole, "features_s": stats["feature_time"], "reload_s": reload,
                "second_training_s": stopwatch(study, kind, data, device, lr=1e-3)}


def measure_reference(clips: str, device: str) -> dict:
    """Seconds per clip of training as torchvision's reference does it, loading included, in its steady state."""
    data = open_clips(clips)
    model, dataset = reference_pipeline.build(len(data.classes)).to(device), reference_pipeline.ReferenceClips(data)
    epoch = partial(train_one_epoch, model, criterion=torch.nn.CrossEntropyLoss(), device=device,
                    optimizer=reference_pipeline.optimizer(model))
    loader = DataLoader(dataset, REFERENCE_BATCH, shuffle=True, num_workers=reference_pipeline.WORKERS)
    seconds = steady_s(epoch, loader, device)
    return {"s_per_clip": seconds, "epoch_s": seconds * data.split["clips"]["train"],
            "whole_s": seconds * len(dataset) * reference_pipeline.EPOCHS}


def measure_growth(count: int, clips: str, device: str) -> dict:
    """Milliseconds per clip of opening a data set of so many tiny clips (every one decoded, splits made), and of
    features, two epochs, and test."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "clips")
        for number in range(count):
            label, group, clip = f"class{number % 3}", number // 12, number // 3 % 4
            write_video(root / label / f"v_{label}_g{group:05d}_c{clip:02d}.mp4", tiny_clip(number), 25.0)
        started = time.perf_counter()
        data = open_data(str(root), "group", results=Path(folder, "results"), cache=Path(folder, "cache"))
        opened = time.perf_counter() - started
        seconds = stopwatch(lambda: evaluate(study("2d", data, device, epochs=2, **TINY)))
        return {"clips": count, "open_ms": 1000 * opened / count, "study_ms": 1000 * seconds / count,
                "whole_ms": 1000 * (opened + seconds) / count}


def tiny_clip(number: int) -> np.ndarray:
    """(12 to 19, 48, 64, 3) uint8: a scene of its own that moves."""
    rng = np.random.default_rng(number)
    scene = np.kron(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    return np.stack([scene[t:t + 48, t:t + 64] for t in range(12 + number % 8)])


# ---------------------------------------------------------------- its parts

def measure_loader(kind: str, clips: str, device: str) -> dict:
    """Training views per second of one loader worker: the seed's data set; ours, one view of a clip or all of the
    recipe's in one pass, as activations are computed."""
    experiment = ours(kind, open_clips(clips), "cpu")
    seed = seed_pipeline.SeedDataset(kind, experiment.data, "train")
    dataset, views = experiment.dataset("train", train=True), experiment.recipe.train_views
    some = range(min(24, len(dataset)))
    torch.set_num_threads(1)  # as DataLoader does in every worker, the seed's too
    rates = {"seed_views_per_s": rate(seed.__getitem__, some[:8])}
    limit_threads(0)  # what ours add to that
    return {**rates, "ours_one_view_views_per_s": rate(dataset.__getitem__, some),
            "ours_all_views_views_per_s": views * rate(ClipViews(dataset, views, pixels=True).__getitem__, some)}


def measure_decode(clips: str, device: str) -> dict:
    """Clips per second of decoding 20 frames spread over each clip, by decoder; one thread where it can be set."""
    files = load_dataset(open_clips(clips).root)[0][:30]
    decoders = {"ours": lambda path: read_frames(path, lambda info: segment_indices(info.frames, 20)),
                "opencv_all_frames": seed_pipeline.read_all_frames, "av": decode_av, "decord": decode_decord,
                "torchcodec": decode_torchcodec}
    found = {}
    for name, decode in decoders.items():
        try:
            found[f"{name}_clips_per_s"] = rate(decode, files)
        except Exception as error:  # whatever keeps a peer from running here is told instead
            found[f"{name}_skipped"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:100]
    return found


def decode_decord(path: str) -> np.ndarray:
    """20 frames with decord, by their numbers."""
    from decord import VideoReader

    reader = VideoReader(path, num_threads=1)
    return reader.get_batch(segment_indices(len(reader), 20)).asnumpy()


def decode_torchcodec(path: str) -> torch.Tensor:
    """20 frames with torchcodec, by their numbers."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    return decoder.get_frames_at(segment_indices(len(decoder), 20).tolist()).data


def decode_av(path: str) -> np.ndarray:
    """20 frames with PyAV, in order."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        wanted = set(segment_indices(stream.frames, 20).tolist())
        return np.stack([f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted])


def measure_latency(kind: str, clips: str, device: str) -> dict:
    """Seconds of one clip by part of the work, warm, at one and at all threads; the seed's model beside ours."""
    experiment, result = ours(kind, open_clips(clips), device), {}
    dataset, model = experiment.dataset("test"), experiment.deployed()
    seed_model = seed_pipeline.build(kind, len(experiment.data.classes)).eval().to(device)
    seed_clip = seed_pipeline.SeedDataset(kind, experiment.data, "test")[0][0][None].to(device)
    frames, _ = read_frames(dataset.file(0), dataset.sampler)
    clip = dataset.layout(apply_transform(frames, dataset.transform))[None].to(device)
    work = {"seed_model": partial(seed_model, seed_clip), "ours_model": partial(model, clip),
            "ours_decode": partial(read_frames, dataset.file(0), dataset.sampler),
            "ours_transform": partial(apply_transform, frames, dataset.transform)}
    for threads in sorted({1, torch.get_num_threads()}):
        for name, call in work.items():
            result[f"{name}_{threads}_threads_s"] = median_s(call, threads)
    return result


def measure_transform(clips: str, device: str) -> dict:
    """Clips per second of the evaluation transform that goes with ResNet-18's weights, on 20 frames, one thread: ours,
    torchvision's own preset."""
    path, prep = load_dataset(open_clips(clips).root)[0][0], preprocessing_of("resnet18")
    frames, _ = read_frames(path, lambda info: segment_indices(info.frames, 20))
    theirs, pixels = ResNet18_Weights.IMAGENET1K_V1.transforms(), channels_first(frames).contiguous()
    ours = eval_transform(prep)
    if not torch.equal(theirs(pixels), ours(pixels)):
        raise SystemExit("bench: the evaluation transform is not torchvision's any more")
    work = {"ours": lambda: apply_transform(frames, ours), "torchvision": lambda: theirs(channels_first(frames))}
    return {f"{name}_clips_per_s": 1 / median_s(call, 1) for name, call in work.items()}


def measure_trunk(kind: str, clips: str, device: str) -> dict:
    """Milliseconds and GFLOP/s of the frozen trunk on one view, by engine and precision, beside the GFLOP/s of a large
    matrix product in the same precision: what the processor can."""
    experiment, result = ours(kind, open_clips(clips), device), {}
    clip = experiment.dataset("test")[0][0][None].to(device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        experiment.model.trunk.eval()(clip)
    for precision in ("float32", "bfloat16"):
        if precision == "bfloat16" and not computes_bfloat16(device):
            continue
        square = torch.randn(PRODUCT, PRODUCT, device=device).to(getattr(torch, precision))
        peak = 2e-9 * PRODUCT**3 / median_s(partial(torch.matmul, square, square))
        for engine in ENGINES if device == "cpu" and importlib.util.find_spec("openvino") else ("torch",):
            seconds = median_s(partial(FrozenTrunk(experiment.model, device, precision, engine).run, clip))
            name = f"{precision} {engine}"
            result |= {f"{name} ms": 1000 * seconds, f"{name} gflops": 1e-9 * counter.get_total_flops() / seconds,
                       f"{name} peak": peak}
    return result


def median_s(call: Callable, threads: int | None = None) -> float:
    """Seconds of a call, warm, with so many threads; None takes all."""
    with torch.inference_mode():
        timer = Timer("call()", globals={"call": call}, num_threads=threads or torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=1.0).median


# ---------------------------------------------------------------- what they share

def stopwatch(work: Callable, *arguments, **named) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work(*arguments, **named)
    return time.perf_counter() - started


def rate(work: Callable, items: Iterable) -> float:
    """Items per second, after one to warm up."""
    items = list(items)
    work(items[0])
    started = time.perf_counter()
    for item in items:
        work(item)
    return len(items) / (time.perf_counter() - started)


def open_clips(clips: str, results: Path | None = None) -> VideoData:
    """The clips, split by whole groups."""
    own = hashlib.sha256(str(Path(clips).resolve()).encode()).hexdigest()[:8]  # folders of one name don't share results
    return open_data(clips, "group", results=results or CACHE / "bench" / own)


def ours(kind: str, data: VideoData, device: str) -> Experiment:
    """Our recipe with ResNet-18 or R3D-18, untrained, in both modalities."""
    return untrained(data, get_recipe("recommended", kind, modality="rgb+diff"), "none", seed=0, device=device)


def study(kind: str, data: VideoData, device: str, **changes) -> Experiment:
    """Our recipe with ResNet-18 or R3D-18, trained or reloaded; its cache lies beside the data's results."""
    recipe = get_recipe("recommended", kind, patience=100, **changes)  # random weights would stop too early
    return load_or_train(kind, data, recipe, "none", device=device, cache=data.results / "cache")


# ---------------------------------------------------------------- the run

BY_KIND = {"seed": measure_seed, "ours": measure_ours, "loader": measure_loader, "latency": measure_latency,
           "trunk": measure_trunk}
TASKS = {f"{name}_{kind}": partial(measure, kind) for name, measure in BY_KIND.items() for kind in DEFAULT_BACKBONE}
TASKS |= {"decode": measure_decode, "transform": measure_transform, "reference_3d": measure_reference}
TASKS |= {f"growth_{count}": partial(measure_growth, count) for count in SIZES}


def run_task(name: str, clips: str, device: str) -> dict:
    """One measurement in its own process: what it returns, and the peak memory in MiB of it and its children; on CUDA
    with the greatest and the mean share of the time in which the card was at work, in percent."""
    command = [sys.executable, str(Path(__file__).resolve()), "--task", name, "--clips", clips, "--device", device]
    process, peak_mib, busy = psutil.Popen(command, stdout=subprocess.PIPE, text=True), 0.0, []
    while True:
        try:
            output, _ = process.communicate(timeout=0.3)
            break
        except subprocess.TimeoutExpired:
            peak_mib = max(peak_mib, memory_of_tree(process))
            busy += [torch.cuda.utilization()] if device == "cuda" else []
    if process.returncode:
        raise SystemExit(f"bench: {name} failed (exit status {process.returncode})")
    cards = {"gpu_most_busy": max(busy), "gpu_busy": sum(busy) / len(busy)} if busy else {}
    return {**json.loads(output.splitlines()[-1]), "peak_mib": peak_mib, **cards, "commit": commit(ROOT)}


def memory_of_tree(process: psutil.Process) -> float:
    """MiB of a process and its children now, what they share counted once where the system tells (PSS)."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += getattr(member.memory_full_info(), "pss", 0) or member.memory_info().rss
    except psutil.Error:  # it has just ended
        pass
    return total / 2**20


def collect(names: list[str], clips: str, device: str, repeats: int) -> dict[str, list[dict]]:
    """All repeats of all measurements, interleaved, with their peak memory; the growth, a fit, is measured once."""
    collected = {name: [] for name in names}
    started = time.perf_counter()
    for repeat in range(repeats):
        for name in names:
            if repeat == 0 or not name.startswith("growth"):
                collected[name].append(run_task(name, clips, device))
                print(f"[{time.perf_counter() - started:5.0f} s] {name} {repeat + 1}/{repeats}", flush=True)
    return collected


def summary(runs: list[dict]) -> dict:
    """Median, least and greatest of each number over the repeats; anything else as it is first."""
    numbers = pd.DataFrame(runs).select_dtypes("number").agg(["median", "min", "max", "count"])
    return {**runs[0], **numbers.rename({"count": "n"}).to_dict()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures the study against the seed's pipeline.")
    parser.add_argument("--clips", help="folder of class folders (../shared/ucf101 where present, else the demo)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default=str(accelerator()), help="of the networks (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(TASKS[options.task](options.clips, options.device)))
        return
    real, env = ROOT.parent / "shared" / "ucf101", environment(options.device)
    clips = options.clips or (str(real) if real.is_dir() else "demo")
    runs = collect(options.only, clips, options.device, options.repeats)
    machine = re.sub(r"[^\w.]+", "-", f"{env['gpu'] or env['cpu']}-{env['cores']}-cores").strip("-").lower()
    target = RESULTS / "benchmarks" / f"{machine}.json"
    document, former = {"clips": Path(clips).name, "environment": env}, read_json(target)
    kept = former["measured"] if former.get("clips") == document["clips"] else {}
    document["measured"] = {**kept, **{name: summary(its) for name, its in runs.items()}}
    write_json(target, document)
    text = markdown(document, hardware_line(env))
    target.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten: {shown(target)}")


if __name__ == "__main__":
    main()
