"""Executes the notebooks, showing where they are, and prints the headline table.

    python tools/run_notebooks.py [NAME ...]

DATASET, WEIGHTS, BACKBONE, RECIPE, SPLIT, CLASSES and SEED are taken from the environment, as by the notebooks
themselves. With the demo data the notebooks are executed in place; with any other data into the `notebooks` folder of
its results, so that the executed demo is not overwritten.
"""

import argparse
import os
import sys
import textwrap
import time
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import ClearOutputPreprocessor, CoalesceStreamsPreprocessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from comparison import comparison_table, folds_table, lacking, load_results
from config import DEFAULT_BACKBONE, NUMBERS, ROOT, asked_backbone, asked_number
from files import atomic_path, shown
from machine import hardware_line
from videos.library import VideoData, open_asked
from videos.places import DATASETS

NOTEBOOKS = ROOT / "notebooks"


class ShowingClient(NotebookClient):
    """Executes a notebook and tells which cell it is in; what cells print is passed on as it comes."""

    def __init__(self, notebook, name: str, started: float, kernel: KernelManager):
        super().__init__(notebook, km=kernel, record_timing=False, timeout=None)
        self.name, self.started = name, started
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
                text = textwrap.indent(text.rstrip("\n"), "    ") + "\n"
            print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def start_kernel() -> KernelManager:
    """A kernel in the notebooks' folder. While another one works, it imports what takes seconds in most notebooks."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(NOTEBOOKS), extra_arguments=[
        "--IPKernelApp.log_level=ERROR", "--IPKernelApp.exec_lines=import matplotlib.pyplot, sklearn, torchvision"])
    return manager


def execute(source: Path, target: Path, failed: Path, started: float, kernel: KernelManager) -> None:
    """Executes one notebook in a kernel, which is shut down at the end, and writes it, whole, to `target`.

    Args:
        failed: folder that keeps what was executed of a notebook whose cell fails; `target` stays as it was.
        started: of the whole run, on `time.perf_counter`'s clock.

    Raises:
        SystemExit: a cell failed.
    """
    notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(source, as_version=4), {})
    try:
        ShowingClient(notebook, source.stem, started, kernel).execute()
    except (CellExecutionError, DeadKernelError) as error:
        _write(notebook, failed / source.name)
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        raise SystemExit(f"\n{source.name} failed: {reason}\nexecuted so far: {shown(failed / source.name)}") from None
    finally:
        kernel.shutdown_kernel(now=True)
    _write(notebook, target)


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
    try:
        for number in NUMBERS:  # now, not in the notebook that reads it
            asked_number(number)
        for kind in DEFAULT_BACKBONE:
            asked_backbone(kind)
        data = open_asked()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"data set {data.name}: {data.split['clips']} clips, split {data.split['kind']}, {len(data.classes)} classes",
          flush=True)
    os.environ["DATASET"] = data.name if data.name in DATASETS else str(data.root)
    target, kernel = NOTEBOOKS if data.name == "demo" else data.results / "notebooks", start_kernel()
    for left, name in zip(reversed(range(len(names))), names, strict=True):
        following = start_kernel() if left else None  # it ends with this process, where a notebook fails
        execute(NOTEBOOKS / f"{name}.ipynb", target / f"{name}.ipynb", data.results / "failed", started, kernel)
        kernel = following
    print(f"\n{headline(data)}\nnotebooks: {shown(target)}/   results: {shown(data.results)}/   "
          f"elapsed: {time.perf_counter() - started:.0f} s")


def headline(data: VideoData) -> str:
    """The headline table of the models that a data set's results have, with the hardware, and what they lack; or why
    there is none."""
    try:
        results = load_results(data.results, data.split["sha256"])
        table, folds = comparison_table(results), folds_table(results)
    except (FileNotFoundError, ValueError) as error:
        return f"no headline table yet: {error}"
    environment, more = next(iter(results.values()))["environment"], lacking(results)
    rest = f"\nfor the other models {more}" if more else ""
    every = "" if folds.empty else f"every video, by folds:\n{folds.to_string()}\n\ntest set:\n"
    ours = table[~table.index.str.startswith("seed ")].to_string()
    return f"{every}{ours}\n\nmeasured on {hardware_line(environment)}{rest}"


if __name__ == "__main__":
    main()
