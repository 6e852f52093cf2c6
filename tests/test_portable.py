"""What can be shown here of Windows and macOS: without Unix-only names, and with processes that are spawned."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import ROOT

pytestmark = pytest.mark.slow

FORKING = {"children.py", "faults.py", "mutants.py"}  # the campaign of faults kills what it forks, and says so
SOURCES = sorted(path for folder in ("src", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
                 if path.name not in FORKING)
MODULES = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
ATTRIBUTES = {
    "os": {"chown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg",
           "mkfifo", "nice", "sched_getaffinity", "setsid", "sysconf", "uname", "wait", "waitpid"},
    "signal": {"SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "alarm", "pause", "setitimer"},
}
# in every process: what Windows lacks is not there for callers in this repository, and processes are spawned
SITE = f"""
import builtins, multiprocessing, os, sys
MODULES, ROOT, real = {MODULES!r}, {str(ROOT)!r}, builtins.__import__

def ours(frame):
    file = frame.f_code.co_filename
    return file.startswith(ROOT) and os.sep + ".venv" + os.sep not in file

def without_unix(name, *arguments, **named):
    if name.partition(".")[0] in MODULES and ours(sys._getframe(1)):
        raise ImportError(name + " is not there, as on Windows")
    return real(name, *arguments, **named)

def without(function):
    def blocked(*arguments):
        if ours(sys._getframe(1)):
            raise AttributeError(function.__name__ + " is not there, as on Windows")
        return function(*arguments)
    return blocked

builtins.__import__ = without_unix
os.fork, os.sched_getaffinity = without(os.fork), without(os.sched_getaffinity)
multiprocessing.set_start_method("spawn")
"""
SCRIPT = """
import importlib, multiprocessing, sys
from pathlib import Path

if __name__ == "__main__":
    root, clips, results = map(Path, sys.argv[1:])
    sys.path[:0] = [str(root / "src"), str(root / "tools")]
    for path in sorted([*(root / "src").rglob("*.py"), *(root / "tools").glob("*.py")]):
        parts = path.relative_to(root / path.relative_to(root).parts[0]).with_suffix("").parts
        importlib.import_module(".".join(part for part in parts if part != "__init__"))
    from classical import classifiers
    from config import get_recipe
    from evaluation import evaluate, record_memory
    from experiment import load_or_train
    from videos.demo import render_dataset
    from videos.library import open_data

    assert multiprocessing.get_start_method() == "spawn"
    render_dataset(results / "demo", classes=["Punch"], groups=1, clips=2, workers=2)
    data = open_data(str(clips), results=results)
    recipe = get_recipe("recommended", "3d", modality="rgb+diff", num_frames=2, stills=2, size=64, train_views=1,
                        epochs=1, test_clips=2, batch_size=12)
    for reloaded in (False, True):
        experiment = load_or_train("3d", data, recipe, "none", cache=results / "cache", device="cpu")
        assert experiment.reloaded == reloaded and len(evaluate(experiment)) == len(data.table("test"))
        model = classifiers.load_or_fit("knn", data, cache=results / "cache")
        assert model.reloaded == reloaded and len(classifiers.evaluate(model)) == len(data.table("test"))
    assert record_memory(experiment)["peak"] > 0
    print("ran to the end")
"""


def calls_of(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unix_only_name(path: Path):
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for node in tree.body:  # at module level: a function may try, and catch the ImportError
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.partition(".")[0] in MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] * (node.attr in ATTRIBUTES.get(node.value.id, ()))
    for call in calls_of(tree):  # Windows takes text for something else than UTF-8
        name = getattr(call.func, "attr", "")
        if name in ("read_text", "write_text") and "encoding" not in {keyword.arg for keyword in call.keywords}:
            found.append(f"line {call.lineno}: {name} without encoding")
    assert not found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="shows on Unix what Windows lacks")
def test_everything_runs_without_unix_and_with_spawned_processes(tiny_dataset, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, tmp_path / "script.py", ROOT, tiny_dataset, tmp_path / "results"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ran.returncode == 0 and ran.stdout.endswith("ran to the end\n"), ran.stderr[-3000:]
