"""What features cost per clip, what a cluster adds to it, and what that makes of larger data sets.

    python benchmarks/scale.py [--clips DIR] [--only costs nodes training simulated]

`nodes` starts a Ray cluster of two nodes with a core each on this machine, compares it with one process, and kills one
of them half-way. `training` trains the last stage on it, and in one process. `simulated` hands 100,000 clips to two
workers, in which decoding and trunk are a thousandth of what they take. Writes results/benchmarks/scale.json and
docs/scale.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import psutil
import torch

from cluster import shared_out
from config import RESULTS, ROOT, get_recipe
from data_loader import ClipViews, limit_threads
from deployed import FrozenTrunk
from experiment import Experiment, untrained
from features import trunk_activations
from files import ArrayStore, read_json, shown, update_json
from machine import commit, environment, hardware_line
from videos.library import open_data

SIMULATED, SCALE = 100_000, 1000
SOME = 12  # clips by which costs are measured
TRAINED = 48  # clips that a stage is trained on
DATA_SETS = {  # clips, frames of one (25 or 30 per second), MB of one, as their authors publish them
    "UCF-101": (13_320, 186, 0.52), "HMDB51": (6_766, 94, 0.31), "Kinetics-400": (240_000, 300, 1.8),
    "Something-Something V2": (220_847, 46, 0.09)}
WORKERS = (1, 16, 256)
GPUS, CORES_PER_GPU = 8, 16


# ---------------------------------------------------------------- what is measured

def opened(clips: str, kind: str, cache: Path) -> Experiment:
    """Our recipe with the packaged network, in both modalities, as a first training computes them."""
    data = open_data(clips, "group", results=cache / "results", cache=cache / "facts")
    return untrained(data, get_recipe("recommended", kind, modality="rgb+diff"), "packaged", seed=0, device="cpu",
                     cache=cache)


def measure_costs(clips: str) -> dict:
    """Milliseconds of one core per clip, and bytes kept, of the training views of each kind; the clips' mean length."""
    torch.set_num_threads(1)
    limit_threads(0)
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("2d", "3d"):
            experiment = opened(clips, kind, Path(folder))
            dataset, views = experiment.dataset("train", train=True), experiment.recipe.train_views
            passes, frozen = ClipViews(dataset, views, pixels=True), FrozenTrunk(experiment.model, "cpu")
            frozen(passes[0][0], dataset.transform)  # warm
            started = time.perf_counter()
            pixels = [passes[row][0] for row in range(SOME)]
            decoded = time.perf_counter()
            kept = [frozen(its, dataset.transform) for its in pixels]
            costs[kind] = {"decode_ms": 1000 * (decoded - started) / SOME,
                           "trunk_ms": 1000 * (time.perf_counter() - decoded) / SOME,
                           "kept_bytes": kept[0].nbytes, "views": views, "precision": frozen.precision}
    return {**costs, "frames": float(experiment.data.facts["frames"].mean())}


@contextmanager
def two_nodes() -> Iterator:
    """A Ray cluster of two nodes with a core each; `lose` kills the second."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes, second = started_nodes()
    nodes.lose = lambda: nodes.remove_node(second, allow_graceful=False)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def started_nodes(tries: int = 3) -> tuple:
    """A cluster and its second node; started again where a busy machine is too slow for Ray's 30 seconds."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False)
        second = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        return nodes, second
    except Exception:
        nodes.shutdown()
        if tries == 1:
            raise
    return started_nodes(tries - 1)


def measure_nodes(clips: str) -> dict:
    """The same features by one process with one thread, by two nodes, and by two nodes of which one dies half-way."""
    found, arrays = {}, {}
    torch.set_num_threads(1)
    for how in ("one process", "two nodes", "two nodes, one dies"):
        with tempfile.TemporaryDirectory() as folder:
            experiment = opened(clips, "2d", Path(folder))
            views, cache = experiment.recipe.train_views, Path(folder, "features")
            asked = [(experiment.dataset(part, train=True), views) for part in experiment.data.splits]
            if how == "one process":
                os.environ.pop("RAY", None)
                seconds = timed(experiment, asked, cache)
            else:
                with two_nodes() as nodes:
                    os.environ["RAY"] = nodes.address
                    list(shared_out(abs, range(4), nodes.address))  # connected, and both have started once
                    if "dies" in how:
                        Timer(found["two nodes"]["seconds"] / 2, nodes.lose).start()
                    seconds = timed(experiment, asked, cache)
                os.environ.pop("RAY")
            written = [path.stat().st_mtime for path in cache.rglob("*.npy")]
            arrays[how] = {path.name: np.load(path) for path in cache.rglob("*.npy")}
            found[how] = {"seconds": seconds, "clips": len(written),  # without the workers' start:
                          "clips_per_s": (len(written) - 1) / (max(written) - min(written))}
    first = arrays["one process"]
    for how, its in arrays.items():
        found[how]["equal"] = its.keys() == first.keys() and all(np.array_equal(its[key], first[key]) for key in first)
    return found


def measure_training(clips: str) -> dict:
    """The last stage of the 3D-CNN trained on TRAINED clips in one process with one thread, and in two nodes: seconds
    of an epoch, and how far the losses are apart."""
    torch.set_num_threads(1)
    limit_threads(0)
    found, losses = {}, {}
    for how in ("one process", "two nodes"):
        with tempfile.TemporaryDirectory() as folder, two_nodes() if how == "two nodes" else nullcontext() as nodes:
            if nodes:
                os.environ["RAY"] = nodes.address
            data = open_data(clips, "group", results=Path(folder, "results"), cache=Path(folder, "facts"))
            recipe = get_recipe("recommended", "3d", modality="rgb", trained="stage", cache="none", epochs=3)
            experiment = untrained(data, recipe, "packaged", seed=0, device="cpu", cache=Path(folder))
            train_ds = experiment.dataset("train", train=True)
            train_ds.data = train_ds.data.groupby("label").head(TRAINED // len(data.classes)).reset_index(drop=True)
            loader, started = experiment.loader(train_ds), time.perf_counter()
            loader.num_workers = 0
            training = experiment.fit(experiment.training(len(train_ds), until=recipe.epochs), loader, None)
            os.environ.pop("RAY", None)
            losses[how] = training.history["train_losses"]
            found[how] = {"epoch_s": training.seconds / recipe.epochs, "clips": len(train_ds),
                          "total_s": time.perf_counter() - started}
    apart = np.abs(np.subtract(*losses.values())).max()
    return {**found, "losses": losses["one process"], "apart": float(apart)}


def timed(experiment: Experiment, asked: list, cache: Path) -> float:
    """Seconds of computing activations."""
    started = time.perf_counter()
    trunk_activations(experiment.model, asked, "cpu", seed=0, cache=cache)
    return time.perf_counter() - started


class Simulated:
    """What keeps an array per clip, after a thousandth of the time that decoding and trunk take."""

    def __init__(self, store: ArrayStore, seconds: float):
        self.store, self.seconds = store, seconds

    def __call__(self, number: int) -> None:
        """One clip."""
        time.sleep(self.seconds)
        self.store.write(self.store.path("activations", number), np.zeros(64, np.float16))


def measure_simulated(clips: str) -> dict:
    """What two workers and the driver need for SIMULATED clips: milliseconds per clip, and the driver's memory."""
    costs = measure_costs(clips)["2d"]
    seconds, found, memory = (costs["decode_ms"] + costs["trunk_ms"]) / 1000 / SCALE, {}, []
    with tempfile.TemporaryDirectory() as folder, two_nodes() as nodes:
        work = Simulated(ArrayStore(folder, 100), seconds)
        for chunk in (1, 16):
            list(shared_out(abs, range(4), nodes.address))
            started, many = 0.0, SIMULATED if chunk == 1 else SIMULATED // 10
            for seen, _ in enumerate(shared_out(work, range(many), nodes.address, chunk=chunk), 1):
                started = started or time.perf_counter()  # when the workers are there
                if chunk == 1 and seen % (SIMULATED // 10) == 0:
                    memory.append(psutil.Process().memory_info().rss / 2**20)
            found[f"chunk_{chunk}_ms"] = 1000 * (time.perf_counter() - started) / many
        there = sum(1 for _ in Path(folder).rglob("*.npy"))
    return {**found, "clips": SIMULATED, "kept": there, "slept_ms": 1000 * seconds, "driver_mib": memory}


# ---------------------------------------------------------------- what follows from it

def hours(clips: int, decode_ms: float, trunk_ms: float, workers: int, overhead_ms: float) -> str:
    """Hours of a data set's features by so many cores, and what they wait for."""
    work, handing = clips * (decode_ms + trunk_ms) / workers, clips * overhead_ms
    waits = "driver" if handing > work else "decoding" if decode_ms > trunk_ms else "trunk"
    return f"{max(work, handing) / 3.6e6:.2g} ({waits})"


def page(document: dict) -> str:
    """docs/scale.md."""
    measured, lines = document["measured"], []
    costs, nodes, training, simulated = (measured.get(name, {}) for name in TASKS)
    lines += ["# Beyond one machine", "", INTRO, "", f"Hardware: {hardware_line(document['environment'])}.", ""]
    if costs:
        lines += ["## What a clip costs (measured, one core)", "",
                  "| | decode, transform [ms] | trunk [ms] | kept [kB] | views | arithmetic |",
                  "| --- | ---: | ---: | ---: | ---: | --- |"]
        lines += [f"| {kind.upper()}-CNN | {its['decode_ms']:.0f} | {its['trunk_ms']:.0f} | "
                  f"{its['kept_bytes'] / 1e3:.0f} | {its['views']} | {its['precision']} |"
                  for kind, its in costs.items() if kind in ("2d", "3d")]
        lines.append("")
    if nodes:
        lines += ["## Two nodes on this machine (measured)", "",
                  "| | files | seconds, start included | files/s after it | equal to one process's, to the last bit |",
                  "| --- | ---: | ---: | ---: | --- |"]
        lines += [f"| {how} | {its['clips']} | {its['seconds']:.1f} | {its['clips_per_s']:.2f} | "
                  f"{'yes' if its['equal'] else 'NO'} |" for how, its in nodes.items() if how != "commit"] + [""]
    if training:
        lines += ["## Training the last stage on two nodes (measured)", "",
                  "The packaged 3D-CNN on RGB frames, three epochs, every batch shared by two processes with a core "
                  "each (DistributedDataParallel, gloo), beside one process with one thread. The losses are at "
                  f"most {training['apart']:.1e} apart ({', '.join(f'{its:.4f}' for its in training['losses'])}).", "",
                  "| | clips | seconds of an epoch | of all, start included |", "| --- | ---: | ---: | ---: |"]
        lines += [f"| {how} | {training[how]['clips']} | {training[how]['epoch_s']:.1f} | "
                  f"{training[how]['total_s']:.1f} |" for how in ("one process", "two nodes")] + [""]
    if simulated:
        memory = simulated["driver_mib"]
        lines += [f"## {simulated['clips']:,} clips (simulated)", "",
                  f"Two workers that sleep {simulated['slept_ms']:.2f} ms per clip, a thousandth of what decoding and "
                  f"trunk take, and keep an array: {simulated['chunk_1_ms']:.2f} ms per clip handed over one by one, "
                  f"{simulated['chunk_16_ms']:.2f} ms sixteen by sixteen (of a tenth as many). Arrays kept: "
                  f"{simulated['kept']:,}. The driver's memory at each tenth of the way, MiB: "
                  f"{', '.join(f'{its:.0f}' for its in memory)}.", ""]
    if costs and simulated:
        lines += computed(costs, simulated["chunk_1_ms"])
    return "\n".join(lines).rstrip() + "\n"


def computed(costs: dict, overhead_ms: float) -> list[str]:
    """The table of larger data sets."""
    lines = ["## Larger data sets (computed)", "",
             "Hours of one kind's training features, and what they wait for: clips times what is measured above, "
             "decoding in proportion to a clip's frames, divided by the workers, or clips times the driver's time "
             f"where that is more. With {GPUS} GPUs and {CORES_PER_GPU} cores each: decoding alone, which H100s leave"
             " to the cores (a trunk's eight views take 3 to 60 ms there).", "",
             f"| data set | clips | kind | {' | '.join(f'{n} workers' for n in WORKERS)} | {GPUS} GPUs | kept [GB] | "
             "read [GB] |",
             "| --- | ---: | --- |" + " ---: |" * (len(WORKERS) + 3)]
    for name, (clips, frames, megabytes) in DATA_SETS.items():
        for kind in ("2d", "3d"):
            decode_ms, trunk_ms = costs[kind]["decode_ms"] * frames / costs["frames"], costs[kind]["trunk_ms"]
            cells = [hours(clips, decode_ms, trunk_ms, workers, overhead_ms) for workers in WORKERS]
            on_gpus = clips * decode_ms / (GPUS * CORES_PER_GPU) / 3.6e6
            lines.append(f"| {name} | {clips:,} | {kind.upper()} | {' | '.join(cells)} | {on_gpus:.2g} | "
                         f"{clips * costs[kind]['kept_bytes'] / 1e9:.3g} | {clips * megabytes / 1e3:.3g} |")
    return [*lines, ""]


INTRO = """Where features take hours, a [Ray](https://docs.ray.io) cluster computes them: `RAY=local` uses this
machine's cores as workers, `RAY=auto` the cluster that this machine belongs to, `RAY=host:port` another
(`pip install -r requirements-cluster.txt -c constraints.txt` first). What is kept goes to the same cache by the same
names, so that a study that was begun on a laptop goes on in a cluster, and back. Clips, results and cache need the same
paths on every machine: a shared folder. A machine that dies costs what was in work there; a clip that can't be decoded
is named at the end, and the others are kept.

Where a recipe trains stages of the network (`trained="stage"` or `"all"`), the same variable shares every batch out to
the cluster's processes (Ray Train, PyTorch's DistributedDataParallel): one on each core or, where the notebook's own
device is CUDA, on each GPU. A batch passes through the stages in micro-batches (`Recipe.micro_batch`), whose gradients
add up; what is drawn (views, augmentation, dropout) belongs to the batch and to the clip, and the standardised features
are those of the whole batch. So the result does not depend on the number of processes, to within rounding; an
interrupted training goes on in another number of them, or in none. A BatchNorm layer that is trained sees one
micro-batch, in a single process too, and its running statistics become the mean over the micro-batches: `micro_batch`
decides what it does, the number of processes doesn't. Starting the processes takes more than a minute on two slow
cores, which pays where an epoch takes minutes.

This page is written by `python benchmarks/scale.py`; each section says
whether it is measured, simulated or computed."""

TASKS = {"costs": measure_costs, "nodes": measure_nodes, "training": measure_training,
         "simulated": measure_simulated}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What features cost on one machine and on many.")
    real = ROOT.parent / "shared" / "ucf101-three"
    parser.add_argument("--clips", default=str(real) if real.is_dir() else "demo", help="folder of class folders")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    asked = parser.parse_args()
    target = RESULTS / "benchmarks" / "scale.json"
    for name in asked.only:
        found = {**TASKS[name](asked.clips), "commit": commit(ROOT)}
        measured = {**read_json(target).get("measured", {}), name: found}
        update_json(target, measured=measured, environment=environment(), clips=Path(asked.clips).name)
        print(f"{name}: {found}", flush=True)
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "scale.md").write_text(page(read_json(target)), encoding="utf-8")
    print(f"written: {shown(target)}, docs/scale.md")


if __name__ == "__main__":
    main()
