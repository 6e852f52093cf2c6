"""Hours of work in processes that stay: notebooks run again in open kernels, predictions, and a page that is asked.

    python benchmarks/soak.py [--budget 2h] [--out FILE]

It needs the demo's results (make run). A round runs every cell of the notebooks once more in kernels that stay open
and one notebook in a new kernel, asks a model again in a kernel of its own, and sends the page good videos and bad
requests. After each round memory, open files and threads of these processes, files on the disk and processes left are
noted in results/benchmarks/soak.json and .md.
"""

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import nbformat
import psutil
from jupyter_client.manager import start_new_kernel
from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from config import CACHE, RESULTS, ROOT
from faults import seconds_of
from files import shown, write_json
from machine import commit, environment, hardware_line
from videos.folder import scan_clips
from videos.places import locate

NOTEBOOKS = ROOT / "notebooks"
STAYING = ("03_2d_cnn", "06_interpretation", "07_comparison", "08_your_video")
OPENED = ("01_dataset", "02_classical_ml", "03_2d_cnn", "04_3d_cnn", "07_comparison")  # one a round, in a new kernel
WARM = 3  # rounds before what stays is taken to be there: libraries' pools and caches fill
MODELS = ("2d", "3d", "fusion")
READY = """
import os, sys
sys.path.insert(0, {source!r})
from deployment.answer import answer
from deployment.prepared import load_model
from pathlib import Path
from videos.decoding import VideoError
model = load_model("fusion", "demo", Path({results!r}))
"""
ASKED = """
said = answer({good!r}, model)
try:
    answer({bad!r}, model)
    raise SystemExit("a broken video was answered")
except VideoError:
    pass
"""


# ---------------------------------------------------------------- what is done in a round

class Kernel:
    """A notebook's kernel."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", cwd=str(NOTEBOOKS), extra_arguments=["--IPKernelApp.log_level=ERROR"])
        self.process = psutil.Process(self.manager.provisioner.pid)

    def run(self, code: str) -> None:
        """Runs code; RuntimeError where it fails."""
        reply = self.client.execute_interactive(code, output_hook=lambda _: None, stop_on_error=True)["content"]
        if reply["status"] != "ok":
            raise RuntimeError(f"{reply.get('ename')}: {reply.get('evalue')}")

    def run_notebook(self, name: str) -> None:
        """Runs every cell of a notebook."""
        for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                self.run(cell.source)

    def close(self) -> None:
        """Ends the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Page:
    """The page, in a process of its own."""

    def __init__(self):
        self.running = subprocess.Popen(  # noqa: S603  this Python, this repository's file
            [sys.executable, str(ROOT / "src" / "app.py"), "--dataset", "demo", "--port", "0"],
            stdout=subprocess.PIPE, text=True)
        self.process = psutil.Process(self.running.pid)
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", line := self.running.stdout.readline())):
            if not line:
                raise SystemExit("the page doesn't start")
        self.port = int(found[1])

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """A request's status and what is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, model: str, video: Path, content: bytes) -> str:
        """What the page says of a video: its last line."""
        _, said = self.send("POST", f"/ask?model={model}&name={quote(video.name)}", content,
                            Content_Type="application/octet-stream")
        return said.decode().strip().splitlines()[-1]

    def leave(self, model: str, content: bytes, part: float) -> None:
        """Sends a part of a video, and hangs up; with a part of 1, without waiting for the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.putrequest("POST", f"/ask?model={model}&name=a.avi")
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(len(content)))
        connection.endheaders()
        connection.send(content[:int(part * len(content))])
        connection.close()

    def round(self, number: int, video: Path) -> None:
        """Good videos and requests that must be refused; AssertionError where one is not answered as it must be."""
        content = video.read_bytes()
        status, said = self.send("GET", "/")
        expect(status == 200 and b"<form" in said, "no page")
        for model in MODELS:
            expect("answer" in json.loads(self.ask(model, video, content)), f"{model} doesn't answer")
        self.leave("2d", content, 0.5)
        self.leave("3d", content, 1)
        refused = [self.send("POST", "/ask?model=2d&name=a.avi", content, Content_Type="text/plain"),
                   self.send("POST", "/ask?model=none&name=a.avi", content, Content_Type="application/octet-stream"),
                   self.send("GET", "/../../etc/passwd"), self.send("GET", f"/static/{'a' * 4000}"),
                   self.send("POST", "/ask", b"", Content_Type="application/octet-stream", Content_Length="9" * 12)]
        expect(all(400 <= status < 500 for status, _ in refused), f"refused: {[status for status, _ in refused]}")
        at = 1000 + 37 * number % (len(content) // 2)
        damaged = content[:at] + bytes(200) + content[at + 200:len(content) // 2]
        said = json.loads(self.ask("2d", video, damaged))
        expect(said.keys() & {"answer", "error"}, "a damaged video is not told of")
        noise = random.Random(number).randbytes(5000)
        expect("error" in json.loads(self.ask("2d", video, noise)), "noise was answered")

    def close(self) -> None:
        """Ends the page."""
        self.running.terminate()
        self.running.wait(60)


def expect(right: bool, otherwise: str) -> None:
    """AssertionError where something is not as it must be."""
    if not right:
        raise AssertionError(otherwise)


# ---------------------------------------------------------------- what is noted

def state(process: psutil.Process) -> dict[str, float]:
    """Of a process and its children: MiB that are its own (USS), open files, threads, and how many processes."""
    every = [process, *process.children(recursive=True)]
    return {"mib": sum(its.memory_full_info().uss for its in every) / 2**20,
            "files": sum(its.num_fds() for its in every), "threads": sum(its.num_threads() for its in every),
            "processes": len(every)}


def on_disk(*folders: Path) -> dict[str, float]:
    """Files below folders, and their MiB."""
    sizes = [path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "mib": sum(sizes) / 2**20}


def settled(rounds: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Of each thing and figure: its median in the first and the last fifth after WARM rounds, and how much it grows in
    an hour (Theil-Sen)."""
    kept = rounds[WARM:] or rounds
    fifth, hours = max(len(kept) // 5, 1), [its["seconds"] / 3600 for its in kept]
    return {thing: {figure: [sorted(its[thing][figure] for its in part)[len(part) // 2]
                             for part in (kept[:fifth], kept[-fifth:])]
                    + [float(theilslopes([its[thing][figure] for its in kept], hours).slope)]
                    for figure in kept[0][thing]} for thing in kept[0] if thing != "seconds"}


def page(document: dict) -> str:
    """The figures as a Markdown page."""
    rounds, hours = document["rounds"], document["rounds"][-1]["seconds"] / 3600
    lines = ["# Hours of work", "",
             f"{len(rounds)} rounds in {hours:.2f} hours on {hardware_line(document['environment'])}; code: "
             f"{document['commit']}. Each cell: the median of the first fifth of the rounds (after {WARM}), that of "
             "the last fifth, and the growth in an hour (Theil-Sen).", ""]
    found = settled(rounds)
    figures = list(dict.fromkeys(figure for its in found.values() for figure in its))
    lines += [f"| | {' | '.join(figures)} |", "| --- |" + " ---: |" * len(figures)]
    for thing, its in found.items():
        cells = [f"{its[figure][0]:.4g} → {its[figure][1]:.4g} ({its[figure][2]:+.2g})" if figure in its else ""
                 for figure in figures]
        lines.append(f"| {thing} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the hours

@contextmanager
def open_processes() -> Iterator[tuple[dict[str, Kernel], Kernel, Page]]:
    """Kernels of the notebooks that stay, one that is asked, and the page."""
    things: list = []
    try:
        things += [Kernel() for _ in (*STAYING, "asked")] + [Page()]
        *kernels, asked, its_page = things
        yield dict(zip(STAYING, kernels, strict=True)), asked, its_page
    finally:
        for thing in things:
            thing.close()


def run(budget: float, target: Path) -> dict:
    """Rounds until the time is over."""
    document = {"environment": environment(), "commit": commit(ROOT), "rounds": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TMPDIR": folder, "DATASET": "demo"}
        tempfile.tempdir = None
        _, root, results = locate("demo")
        clips = [root / path.lstrip("/") for path in scan_clips(root)["clip_path"]]
        bad = Path(folder).resolve() / "bad.avi"
        bad.write_bytes(random.Random(0).randbytes(4000))
        with open_processes() as (kernels, asked, its_page):
            asked.run(READY.format(source=str(ROOT / "src"), results=str(results)))
            started = time.monotonic()
            while (seconds := time.monotonic() - started) < budget:
                number = len(document["rounds"])
                for name, kernel in kernels.items():
                    kernel.run_notebook(name)
                reopened(OPENED[number % len(OPENED)])
                for clip in (clips[number % len(clips)], clips[(7 * number + 3) % len(clips)]):
                    asked.run(ASKED.format(good=str(clip), bad=str(bad)))
                its_page.round(number, clips[number % len(clips)])
                things = {name: state(kernel.process) for name, kernel in kernels.items()}
                things |= {"asked": state(asked.process), "page": state(its_page.process),
                           "results and cache": on_disk(results, CACHE), "temporary": on_disk(Path(folder)),
                           "all together": state(psutil.Process()), "seconds": time.monotonic() - started}
                document["rounds"].append(things)
                write_json(target, document)
                print(f"round {number + 1}, {seconds / 60:.0f} min: " + ", ".join(
                    f"{name} {its['mib']:.0f} MiB" for name, its in things.items() if name != "seconds"), flush=True)
    return document


def reopened(name: str) -> None:
    """Runs a notebook in a new kernel, and closes it."""
    kernel = Kernel()
    try:
        kernel.run_notebook(name)
    finally:
        kernel.close()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hours of notebooks, predictions and page requests.")
    parser.add_argument("--budget", type=seconds_of, default=os.environ.get("BUDGET") or "2h", help="such as 2h")
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmarks" / "soak.json")
    asked = parser.parse_args(arguments)
    document = run(asked.budget, asked.out)
    asked.out.with_suffix(".md").write_text(page(document), encoding="utf-8")
    print(f"written: {shown(asked.out)}")


if __name__ == "__main__":
    main()
