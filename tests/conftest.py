"""Small synthetic videos with known frames, and a small data set made of them."""

import os
import shutil
import socket
import subprocess
import tempfile
from functools import partial

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", str(max(  # all workers' threads together are as many as there are cores
    (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)), 1)))
os.environ["CACHE_DIR"] = tempfile.mkdtemp(prefix="tests-cache-")  # before `config` is imported; processes inherit it

from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a first call imports what the others have
settings.load_profile("untimed")

REAL_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "ucf101"


def write_video(path: Path, frames: np.ndarray, fps: float = 25.0, codec: str = "FFV1") -> Path:
    """Writes (T, H, W, 3) uint8 RGB frames; FFV1 keeps every pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, frames.shape[2:0:-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose grey value is 5 times their index, so that a frame tells which it is."""
    grey = 5 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (count, height, width, 3)).copy()


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The indices of `numbered_frames`."""
    return np.rint(frames.reshape(len(frames), -1).mean(axis=1) / 5).astype(int).tolist()


def moving_square(label: int, seed: int, count: int = 20) -> np.ndarray:
    """A bright square on a scene of its own, with noise, that moves right (label 0), down (1) or stays (2)."""
    rng = np.random.default_rng([label, seed])
    scene = np.kron(rng.integers(0, 50, (6, 8, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    frames = scene + rng.integers(0, 30, (count, 96, 128, 3), dtype=np.uint8)
    x, y = rng.integers(5, 30, 2)
    for i, frame in enumerate(frames):
        left, top = x + (3 * i if label == 0 else 0), y + (2 * i if label == 1 else 0)
        frame[top:top + 24, left:left + 24] = (220, 60 + 80 * label, 200 - 90 * label)
    return frames


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What opens a browser is slow."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """Three classes of 6 groups of 2 clips, and CSVs of a split by whole groups."""
    from videos.folder import scan_clips
    from videos.split_files import write_split
    from videos.splits import make_split

    root = tmp_path_factory.mktemp("tiny")
    for label, name in enumerate(("PullUps", "Punch", "PushUps")):
        for group in range(1, 7):
            for clip in (1, 2):
                path = root / name / f"v_{name}_g{group:02d}_c{clip:02d}.avi"
                write_video(path, moving_square(label, 10 * group + clip), codec="XVID")
    write_split(make_split(scan_clips(root), "group"), root / "splits")
    return root


@pytest.fixture
def two_nodes(monkeypatch):
    """A Ray cluster of two nodes with a core each, which RAY names. `lose` kills the second one."""
    pytest.importorskip("ray", reason="Ray is not installed")
    import scale

    with scale.two_nodes() as nodes:
        monkeypatch.setenv("RAY", nodes.address)
        yield nodes


@pytest.fixture
def postgres():
    """The address of a PostgreSQL server of this test's own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    run = partial(subprocess.run, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if user:
        shutil.chown(folder, user)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run([programs[-1], "-D", folder / "data", "-A", "trust", "-U", "tester", "-E", "UTF8"])
    control = programs[-1].with_name("pg_ctl")
    run([control, "-D", folder / "data", "-w", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1",
         "-l", folder / "log", "start"])
    yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    run([control, "-D", folder / "data", "-m", "immediate", "stop"])
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def own_cache():
    """What tests keep in the cache goes with them."""
    yield
    shutil.rmtree(os.environ["CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def one_process():
    """Folds are computed in the test's own process, where it can watch and replace things."""
    with joblib.parallel_config(backend="sequential"):
        yield


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, with a camera that shows a pattern."""
    client = pytest.importorskip("playwright.sync_api", reason="no playwright here: pages were not opened")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip("no Chromium here: pages were not opened")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with client.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def class_map() -> dict[str, int]:
    return {"PullUps": 0, "Punch": 1, "PushUps": 2}


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A split CSV of (clip_path, label) rows."""
    pd.DataFrame(rows, columns=["clip_path", "label"]).to_csv(path, index=False)
    return path
