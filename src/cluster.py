"""Work shared out to the processes of a Ray cluster: of this machine, or of many.

The variable RAY says where: `local` starts one here, `auto` joins the one that this machine belongs to, an address
(host:port) another. Where it is empty, nothing of this is used. It needs requirements-cluster.txt too. Clips, results
and the cache must have the same paths on every machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, current_thread, main_thread

from config import CACHE

AHEAD = 2  # chunks of items that each worker has at a time, so that it never waits for the next
MOST_ON_GPU = 4  # workers that have a GPU in common
BACK = 0.1  # seconds between two looks whether a dead worker is back
DEATHS = 2  # of workers that had nothing but an item, after which it is given up
SOURCE = Path(__file__).parent


class Lost(Exception):
    """An item over which worker after worker died."""


def asked_cluster() -> str | None:
    """Where RAY says that work is to be shared out; None for this process alone.

    Raises:
        ValueError: Ray is not installed.
    """
    address = os.environ.get("RAY") or None
    if address and not importlib.util.find_spec("ray"):
        raise ValueError(f"RAY={address}: Ray is missing: pip install -r requirements-cluster.txt -c constraints.txt")
    return address


def connected(address: str):
    """Ray, connected to a cluster; workers import this very code.

    Raises:
        ValueError: there is no cluster at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if not ray.is_initialized():
        place = {"include_dashboard": False} if address == "local" else {"address": address}
        try:
            ray.init(**place, log_to_driver=False, logging_level=logging.ERROR,
                     runtime_env={"working_dir": str(SOURCE), "excludes": ["__pycache__"]})
        except ConnectionError as error:
            raise ValueError(f"RAY={address}: no cluster there ({error}): start one with `ray start --head`, or use "
                             "RAY=local") from error
    return ray


def shared_out(work: Callable, items: Sequence, address: str, gpu: bool = False, chunk: int = 1,
               errors: type[Exception] | tuple = ()) -> Iterator[tuple[int, object]]:
    """`work` of each item, in the workers of a cluster: the item's number and what came of it, as it comes.

    Each worker holds one copy of `work` and a core, of which it makes one thread; where a GPU is needed, several have
    one in common, since decoding takes longer than what follows. What was in work when a worker or its machine died is
    done again by others; a worker comes back as soon as there is room for it, and so do those for which there was none
    in the beginning.

    Args:
        work: what is picklable and called with an item.
        gpu: whether a worker needs a GPU.
        chunk: items that are handed over at a time; more than one where they take milliseconds.
        errors: of `work` that are results of their items, and no end of all.

    Yields:
        (number, result); of an item over which worker after worker died, a Lost.

    Raises:
        ValueError: as `connected`.
        Exception: what else `work` raises.
    """
    ray = connected(address)
    there = ray.cluster_resources()
    share = min(MOST_ON_GPU, max(int(there.get("CPU", 1) // max(there.get("GPU", 0), 1)), 1))
    room = int(there.get("GPU", 0) * share if gpu else there.get("CPU", 0))
    actor = ray.remote(num_cpus=1, num_gpus=1 / share if gpu else 0, max_restarts=-1)(_Worker)
    kept = [ray.put((work, errors))]  # in a list it is handed over as it is: each worker fetches it once
    crew = [actor.remote() for _ in range(max(room, 1))]
    try:
        yield from _Flights(ray, crew, kept, items, chunk).results()
    finally:
        for worker in crew:
            ray.kill(worker)


def in_step(work: Callable, address: str, most: int, gpu: bool, report: Callable[[str], None]) -> None:
    """`work` in several processes of a cluster at once, which know each other by torch.distributed: one on each core,
    by gloo, or one on each GPU, by NCCL.

    When one of them dies, all start again, as many as there is room for then: `work` goes on from what it has saved.

    Args:
        work: what is picklable and called with a process's device, its cores, and where its lines go.
        address: as `asked_cluster` gives it.
        most: processes that have something to do.
        gpu: whether a process needs a GPU.
        report: told the lines of the first process.

    Raises:
        ValueError: as `connected`.
        Exception: what `work` raises; or the cluster's, where processes died DEATHS times with nothing new told.
    """
    ray = connected(address)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # a minute is short on busy machines
    from ray.train import TrainingFailedError
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lines, told, deaths = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}), set(), 0
    notes = CACHE / "ray" / f"{os.getpid()}-{time.time_ns()}"  # Ray Train's own: what is trained is saved elsewhere

    def tell() -> None:
        while (line := lines.get()) is not None:
            told.add(line)
            report(line)

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        while deaths < DEATHS:
            before = len(told)
            try:
                with _interruptible():
                    _trainer(ray, _Step(work, lines), most, gpu, notes).fit()
                return
            except TrainingFailedError as error:
                own = [its for its in getattr(error, "worker_failures", {}).values() if not _of_the_cluster(its)]
                if own:
                    raise own[0] from None
                deaths, failed = deaths + 1 if len(told) == before else 1, error
        raise failed
    finally:
        lines.put(None)
        teller.join()
        lines.shutdown()
        shutil.rmtree(notes, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train takes over what an interrupt does: it ends the processes, and then this one. Here it ends what waits
    for them, and is as it was afterwards."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if current_thread() is main_thread():
            signal.signal(signal.SIGINT, before)


def _trainer(ray, step: _Step, most: int, gpu: bool, notes: Path) -> object:
    """Ray Train's, of as many processes as there is room for."""
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpu:
        cards = [(int(its["GPU"]), int(its.get("CPU", 1))) for its in nodes if its.get("GPU", 0) >= 1]
        step.cores = min((max(cores // count, 1) for count, cores in cards), default=1)
        room = sum(count for count, _ in cards)
    else:
        room = int(sum(its.get("CPU", 0) for its in nodes))
    return TorchTrainer(
        step, scaling_config=ScalingConfig(num_workers=(1, max(min(most, room), 1)), use_gpu=gpu,
                                           resources_per_worker={"CPU": step.cores}),
        run_config=RunConfig(name=notes.name, storage_path=str(notes.parent), logging_config=LoggingConfig("ERROR")))


def _of_the_cluster(error: Exception) -> bool:
    """Whether a process died, or waited for one that did, rather than did something wrong."""
    from torch.distributed import DistError

    of_ray = type(error).__module__.startswith("ray.")
    return of_ray or type(error) is RuntimeError or isinstance(error, DistError)


class _Step:
    """What each process of a trainer does."""

    def __init__(self, work: Callable, lines: object):
        self.work, self.lines, self.cores = work, lines, 1

    def __call__(self) -> None:
        import cv2
        import torch
        from ray import train

        torch.set_num_threads(self.cores)
        cv2.setNumThreads(0)
        first = train.get_context().get_world_rank() == 0
        self.work(train.torch.get_device(), self.cores, self.lines.put if first else lambda line: None)


class _Flights:
    """Which worker has which items, until all of them are done.

    What a worker had when it died is under suspicion, and then handed out one by one to workers that have nothing else:
    so it is seen over which item they die.
    """

    def __init__(self, ray, crew: list, kept: list, items: Sequence, chunk: int):
        self.ray, self.kept, self.items = ray, kept, items
        self.waiting = deque(range(at, min(at + chunk, len(items))) for at in range(0, len(items), chunk))
        self.suspects: deque[int] = deque()
        self.deaths: Counter[int] = Counter()
        self.load = dict.fromkeys(crew, 0)  # calls that each has not answered
        self.alone: dict[object, int] = {}  # the suspect that a worker has
        self.flying: dict[object, tuple[object, Sequence[int]]] = {}  # a call: its worker and items
        for worker in crew:
            self._call(worker, worker.ready.remote(), ())

    def results(self) -> Iterator[tuple[int, object]]:
        """The number of each item and what came of it, as it comes."""
        left = len(self.items)
        while left:
            (done,), _ = self.ray.wait(list(self.flying))
            worker, numbers = self.flying.pop(done)
            self.load[worker] -= 1
            try:
                results = list(zip(numbers, self.ray.get(done) or (), strict=True))
            except self.ray.exceptions.RayActorError:
                results = self._bury(worker, numbers)
            else:
                self.alone.pop(worker, None)
                self._hand_out(worker)
            left -= len(results)
            yield from results

    def _call(self, worker: object, call: object, numbers: Sequence[int]) -> None:
        self.flying[call] = worker, numbers
        self.load[worker] += 1

    def _hand_out(self, worker: object) -> None:
        """Gives a worker as much as it may have."""
        while (self.suspects or self.waiting) and worker not in self.alone and self.load[worker] < AHEAD:
            if self.suspects:
                if self.load[worker]:
                    return
                self.alone[worker] = self.suspects.popleft()
            its = [self.alone[worker]] if worker in self.alone else self.waiting.popleft()
            self._call(worker, worker.work.remote(self.kept, [self.items[number] for number in its]), its)

    def _bury(self, worker: object, numbers: Sequence[int]) -> list[tuple[int, Lost]]:
        """Of a worker that died: what it had is done again, or given up after DEATHS; and it is asked whether it is
        back."""
        if not self.load[worker]:
            time.sleep(BACK)
            self._call(worker, worker.ready.remote(), ())
        suspect = self.alone.pop(worker, None)
        if suspect is not None:
            self.deaths[suspect] += 1
        if self.deaths[suspect] >= DEATHS:
            return [(suspect, Lost(f"{DEATHS} workers died over it"))]
        self.suspects.extend(numbers)
        for other in [other for other, load in self.load.items() if not load]:
            self._hand_out(other)  # it had nothing to do any more
        return []


def failures(done: Iterable[tuple[int, object]], names: Sequence[object]) -> list[str]:
    """Waits for what `shared_out` gives where nothing but an error can come of an item: the errors, with names."""
    found = [(names[number], error) for number, error in done if error is not None]
    return [f"{name}: {error}" if isinstance(error, Lost) else str(error) for name, error in found]


class _Worker:
    """A process of the cluster that does the work."""

    def __init__(self):
        import cv2
        import torch

        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        self._work, self._errors = None, ()

    def ready(self) -> None:
        """Answers as soon as the process is there."""

    def work(self, kept: list, items: list) -> list:
        """What comes of some items."""
        if self._work is None:
            import ray

            self._work, self._errors = ray.get(kept[0])
        return [self._result(item) for item in items]

    def _result(self, item: object) -> object:
        try:
            return self._work(item)
        except self._errors as error:
            return error
