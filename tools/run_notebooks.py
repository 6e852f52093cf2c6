"""Executes the notebooks, showing where they are, and prints the headline table.

    python tools/run_notebooks.py [NAME ...]

DATASET, WEIGHTS, BACKBONE, RECIPE, SPLIT, CLASSES, SEED and RAY are taken from the environment, as by the notebooks
themselves. With the demo data the notebooks are executed in place; with any other data into the `notebooks` folder of
its results, so that the executed demo is not overwritten.

Notebooks that don't read one another's results are executed side by side, but those that measure times alone, unless
the run only reloads what the last one left, with the same code, clips and settings.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import ClearOutputPreprocessor, CoalesceStreamsPreprocessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from cluster import asked_cluster
from comparison import comparison_table, fold_predictions, folds_table, lacking, load_results
from config import CACHE, DEFAULT_BACKBONE, NUMBERS, ROOT, asked_backbone, asked_number
from files import atomic_path, file_hash, read_json, shown, write_json
from machine import cores, hardware_line
from videos.library import VideoData, open_asked
from videos.places import DATASETS

NOTEBOOKS = ROOT / "notebooks"
# What a notebook reads of others' results; each waits for those that are executed in the same run.
NEEDS = {"05_tuning": ("03_2d_cnn", "04_3d_cnn"), "06_interpretation": ("03_2d_cnn", "04_3d_cnn"),
         "07_comparison": ("01_dataset", "02_classical_ml", "03_2d_cnn", "04_3d_cnn", "05_tuning", "06_interpretation"),
         "08_your_video": ("02_classical_ml", "03_2d_cnn", "04_3d_cnn")}
MEASURING = ("02_classical_ml", "03_2d_cnn", "04_3d_cnn")  # times, that others beside them would disturb
ASKED = ("WEIGHTS", "BACKBONE", "RECIPE", "SPLIT", "CLASSES", "STORAGE", "VIDEO", "MODEL", *NUMBERS)


class ShowingClient(NotebookClient):
    """Executes a notebook and tells which cell it is in; what cells print is passed on as it comes, with the notebook's
    name before each line where others run beside it."""

    def __init__(self, notebook, name: str, started: float, kernel: AsyncKernelManager, beside: bool):
        super().__init__(notebook, km=kernel, record_timing=False, timeout=None)
        self.name, self.started, self.margin = name, started, f"{name} | " if beside else "    "
        self.heading, self.cells = "", sum(cell.cell_type == "code" for cell in notebook.cells)
        self.on_cell_start = self._tell

    def _tell(self, cell, cell_index: int) -> None:
        if cell.cell_type == "code":
            elapsed, number = time.perf_counter() - self.started, self.code_cells_executed + 1
            print(f"[{elapsed:5.0f} s] {self.name}  cell {number}/{self.cells}  {self.heading}", flush=True)
        elif cell.source.startswith("#"):
            self.heading = cell.source.splitlines()[0].lstrip("# ")

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            text = msg["content"]["text"]
            if "\r" not in text:  # a progress bar moves on its own line
                text = textwrap.indent(text.rstrip("\n"), self.margin) + "\n"
            print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)


async def start_kernel() -> AsyncKernelManager:
    """A kernel in the notebooks' folder. While another one works, it imports what takes seconds in most notebooks."""
    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel(cwd=str(NOTEBOOKS), extra_arguments=[
        "--IPKernelApp.log_level=ERROR", "--IPKernelApp.exec_lines=import matplotlib.pyplot, sklearn, torch"])
    return manager


async def execute(source: Path, target: Path, failed: Path, started: float, kernel: AsyncKernelManager,
                  beside: bool = False) -> None:
    """Executes one notebook in a kernel, which is shut down at the end, and writes it, whole, to `target`.

    Args:
        failed: folder that keeps what was executed of a notebook whose cell fails; `target` stays as it was.
        started: of the whole run, on `time.perf_counter`'s clock.
        beside: whether other notebooks run at the same time.

    Raises:
        Failed: a cell failed.
    """
    notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(source, as_version=4), {})
    try:
        await ShowingClient(notebook, source.stem, started, kernel, beside).async_execute()
    except (CellExecutionError, DeadKernelError) as error:
        _write(notebook, failed / source.name)
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        raise Failed(f"\n{source.name} failed: {reason}\nexecuted so far: {shown(failed / source.name)}") from None
    finally:
        await kernel.shutdown_kernel(now=True)
    _write(notebook, target)


class Failed(Exception):
    """A notebook whose cell failed; the message says which, why, and where what was executed lies."""


async def execute_all(names: list[str], target: Path, failed: Path, started: float, needs: dict[str, Sequence[str]],
                      alone: Sequence[str]) -> None:
    """Executes notebooks side by side, as many as there are cores; arguments and errors as `execute`.

    Kernels are started ahead of their notebooks: as many as can begin at once.

    Args:
        needs: which of them a notebook waits for.
        alone: those that have no other beside them.
    """
    waiting, running = list(names), {}
    spare = [await start_kernel() for _ in range(1 if alone else min(cores(), len(names)))]

    def may_start(name: str) -> bool:
        beside = [*running.values()]
        return (not {*needs.get(name, ())} & {*waiting, *beside} and len(beside) < cores()
                and not (beside and {name, *beside} & {*alone}))

    try:
        while waiting or running:
            for name in list(waiting):
                if may_start(name):
                    waiting.remove(name)
                    work = execute(NOTEBOOKS / f"{name}.ipynb", target / f"{name}.ipynb", failed, started,
                                   spare.pop(0), beside=name not in alone)
                    running[asyncio.create_task(work)] = name
                    if len(waiting) > len(spare):
                        spare.append(await start_kernel())
            finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                del running[task]
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for kernel in spare:
            await kernel.shutdown_kernel(now=True)


def _write(notebook, path: Path) -> None:
    CoalesceStreamsPreprocessor().preprocess(notebook, {})  # progress bars: only their last state
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Executes the notebooks and prints the headline table.")
    parser.add_argument("names", nargs="*", help="notebooks, such as 03_2d_cnn (default: all)")
    there = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    names, started = parser.parse_args(arguments).names or there, time.perf_counter()
    if unknown := [name for name in names if name not in there]:
        raise SystemExit(f"error: no notebook {', '.join(unknown)}: there are {', '.join(there)}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # in the kernels, threads that wait leave the cores to others
    try:
        for number in NUMBERS:  # now, not in the notebook that reads it
            asked_number(number)
        for kind in DEFAULT_BACKBONE:
            asked_backbone(kind)
        asked_cluster()
        data = open_asked()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"data set {data.name}: {data.split['clips']} clips, split {data.split['kind']}, {len(data.classes)} classes",
          flush=True)
    os.environ["DATASET"] = data.name if data.name in DATASETS else str(data.root)
    target, kept = NOTEBOOKS if data.name == "demo" else data.results / "notebooks", _last_run(data)
    reloads = read_json(kept) == _fingerprint(data)
    order, needs, alone = names, NEEDS, MEASURING
    if reloads:
        print("nothing has changed since the last run: notebooks reload, side by side", flush=True)
        order, needs, alone = names[::-1], {}, ()  # those that take longest begin
    try:
        asyncio.run(execute_all(order, target, data.results / "failed", started, needs, alone))
    except Failed as failure:
        raise SystemExit(str(failure)) from None
    if names == there:
        write_json(kept, _fingerprint(data))
    print(f"\n{headline(data)}\nnotebooks: {shown(target)}/   results: {shown(data.results)}/   "
          f"elapsed: {time.perf_counter() - started:.0f} s")


def _last_run(data: VideoData) -> Path:
    return CACHE / "runs" / f"{data.name}.json"


def _fingerprint(data: VideoData) -> dict:
    """What decides whether notebooks only reload what is there: the code, what is asked for, the split of the clips'
    contents, the saved models, and which results there are."""
    def digest(paths: Iterable[Path]) -> str:
        content = [f"{path.name} {file_hash(path)}" for path in sorted(paths)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    there = sorted(path for path in data.results.rglob("*.*") if path.suffix in (".csv", ".json", ".npy", ".npz"))
    saved = [path for path in (data.results / "saved_models").rglob("*.*") if path.is_file()]
    return {"code": digest((ROOT / "src").rglob("*.py")), "models": digest(saved), "root": str(data.root),
            "split": data.split["sha256"], "classes": data.classes, "results": [*map(str, there)],
            "asked": {name: os.environ.get(name, "") for name in ASKED}}


def headline(data: VideoData) -> str:
    """The headline table of the models that a data set's results have, with the hardware, and what they lack; or why
    there is none."""
    try:
        results = load_results(data.results, data.split["sha256"])
        table, folds = comparison_table(results), folds_table(fold_predictions(results))
    except (FileNotFoundError, ValueError) as error:
        return f"no headline table yet: {error}"
    environment, more = next(iter(results.values()))["environment"], lacking(results)
    rest = f"\nfor the other models {more}" if more else ""
    every = "" if folds.empty else f"every video, by folds:\n{folds.to_string()}\n\ntest set:\n"
    ours = table[~table.index.str.startswith("seed ")].to_string()
    return f"{every}{ours}\n\nmeasured on {hardware_line(environment)}{rest}"


if __name__ == "__main__":
    main()
