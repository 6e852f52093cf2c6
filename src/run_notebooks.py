"""Executes the notebooks, showing where they are, and prints the headline table.

    python src/run_notebooks.py [NAME ...]

DATASET, WEIGHTS, RECIPE, SPLIT, CLASSES and SEED are taken from the environment, as by the notebooks themselves. With
the demo data the notebooks are executed in place; with any other data into the `notebooks` folder of its results, so
that the executed demo is not overwritten.
"""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from config import ROOT, shown
from store import atomic_path

NOTEBOOKS = ROOT / "notebooks"


class ShowingClient(NotebookClient):
    """Executes a notebook and tells which cell it is in; what cells print is passed on as it comes."""

    def __init__(self, notebook, name: str, started: float):
        super().__init__(notebook, record_timing=False, timeout=None, kernel_name="python3",
                         extra_arguments=["--IPKernelApp.log_level=ERROR"],
                         resources={"metadata": {"path": str(NOTEBOOKS)}})
        self.name, self.started = name, started
        self.code_cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self.on_cell_start = self._tell

    def _tell(self, cell, cell_index: int) -> None:
        if cell_index in self.code_cells:
            number = self.code_cells.index(cell_index) + 1
            before = [c.source for c in self.nb.cells[:cell_index] if c.cell_type == "markdown"]
            heading = before[-1].splitlines()[0].lstrip("# ") if before else ""
            elapsed = time.perf_counter() - self.started
            print(f"[{elapsed:5.0f} s] {self.name}  cell {number}/{len(self.code_cells)}  {heading}", flush=True)

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            text = msg["content"]["text"]
            if "\r" not in text:  # a progress bar moves on its own line
                text = textwrap.indent(text.rstrip("\n"), "    ") + "\n"
            print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(source: Path, target: Path, failed: Path, started: float) -> None:
    """Executes one notebook and writes it, whole, to `target`.

    Raises:
        SystemExit: a cell failed. What was executed is kept in the folder `failed`; `target` stays as it was.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = ShowingClient(notebook, source.stem, started)
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        _write(notebook, failed / source.name)
        reason = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        raise SystemExit(f"\n{source.name} failed: {reason}\nexecuted so far: {shown(failed / source.name)}") from None
    _write(notebook, target)


def _write(notebook, path: Path) -> None:
    CoalesceStreamsPreprocessor().preprocess(notebook, {})  # progress bars: only their last state
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


# What needs torch is imported where it is needed: it would stay in this process's memory beside the notebooks'.

def _open_data(dataset: str) -> tuple[str, Path]:
    """Makes the data ready; the name for DATASET, and where the results go."""
    from experiment import find_folder, open_data

    if dataset not in ("demo", "ucf101"):
        dataset = str(find_folder(dataset))
    data = open_data(dataset, os.environ.get("SPLIT") or None, os.environ.get("CLASSES", "").split() or None,
                     int(os.environ.get("SEED") or 42))
    print(f"data set {data.name}: {data.split['clips']} clips, split {data.split['kind']}, {len(data.classes)} classes",
          flush=True)
    return dataset, data.results


def _headline(results: Path) -> str:
    """The headline table and the hardware line."""
    from evaluation import comparison_table, load_results
    from utils import environment, hardware_line

    table = comparison_table(load_results(results))
    return f"{table[~table.index.str.startswith('seed ')].to_string()}\n\nhardware: {hardware_line(environment())}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Executes the notebooks and prints the headline table.")
    parser.add_argument("names", nargs="*", help="notebooks, such as 03_2d_cnn (default: all)")
    names = parser.parse_args(arguments).names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    started = time.perf_counter()
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its memory ends with it
            dataset, results = process.submit(_open_data, os.environ.get("DATASET") or "demo").result()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    os.environ["DATASET"] = dataset
    target = NOTEBOOKS if dataset == "demo" else results / "notebooks"
    for name in names:
        execute(NOTEBOOKS / f"{name}.ipynb", target / f"{name}.ipynb", results / "failed", started)
    print(f"\n{_headline(results)}\nnotebooks: {shown(target)}/   results: {shown(results)}/   "
          f"elapsed: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
