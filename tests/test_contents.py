"""What is in clips: facts with known values, kept by content; copies found, also when they were encoded anew."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from conftest import REAL_CLIPS, moving_square, write_video
from synthetic import remux
from videos import contents, decoding
from videos.contents import clip_facts, copies
from videos.folder import scan_clips


def noise(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


CRASHING = """
import av, os
opened = av.open
def open(file, *args, **kwargs):
    if os.path.basename(str(file)).startswith("crash"):
        os.abort()
    return opened(file, *args, **kwargs)
av.open = open
"""


@pytest.fixture
def videos(tmp_path):
    """Eight clips per class, of 10 to 17 frames."""
    for number, label in enumerate(("A", "B")):
        for group in range(8):
            path = tmp_path / "videos" / label / f"v_{label}_g{group + 1:02d}_c01.avi"
            write_video(path, noise(10 + group, 8 * number + group), 10.0, "MJPG")
    return tmp_path / "videos"


def test_facts_tell_frames_time_and_format(videos, tmp_path):
    facts = clip_facts(videos, scan_clips(videos), cache=tmp_path)
    assert facts["frames"].tolist() == [*range(10, 18)] * 2
    assert facts["duration"].tolist() == [frames / 10 for frames in facts["frames"]]
    assert set(facts["codec"]) == {"mjpeg"} and set(facts["width"]) == {64} and set(facts["height"]) == {48}
    assert set(facts["status"]) == {"ok"} and facts["decoded"].all()
    size = (videos / "A" / "v_A_g01_c01.avi").stat().st_size
    assert facts["kbit_per_second"][0] == pytest.approx(size * 8 / 1000 / 1.0)


@pytest.mark.parametrize("fps", [10.0, 20.0])
def test_motion_is_in_frame_heights_a_second_and_colour_in_lab(tmp_path, fps):
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (240, 640, 3), dtype=np.uint8), (0, 0), 3)
    write_video(tmp_path / "moves.avi", np.stack([texture[:, 4 * i:4 * i + 320] for i in range(30)]), fps)
    red = np.zeros((30, 240, 320, 3), np.uint8)
    red[..., 0] = 255
    write_video(tmp_path / "red.avi", red, fps)
    facts = clip_facts(tmp_path, pd.DataFrame({"clip_path": ["/moves.avi", "/red.avi"]}), cache=tmp_path)
    assert facts["motion"].tolist() == pytest.approx([4 / 240 * fps, 0], rel=0.1, abs=0.01)
    assert facts.loc[1, ["mean_l", "mean_a", "mean_b"]].tolist() == pytest.approx([53.2, 80.1, 67.2], abs=2.5)


def test_facts_are_kept_by_content(videos, tmp_path, monkeypatch):
    clips, cache = scan_clips(videos), tmp_path / "cache"
    first = clip_facts(videos, clips, cache=cache)
    opened = []
    monkeypatch.setattr(contents, "walk", lambda path: opened.append(path.name) or decoding.walk(path))
    monkeypatch.setattr(contents, "file_hash", lambda path: pytest.fail("an unchanged file was read"))
    pd.testing.assert_frame_equal(clip_facts(videos, clips, cache=cache), first, check_dtype=False)
    monkeypatch.undo()
    monkeypatch.setattr(contents, "walk", lambda path: opened.append(path.name) or decoding.walk(path))

    one, other = (videos / path.lstrip("/") for path in clips["clip_path"][:2])  # of 10 and 11 frames
    one.rename(one.with_name("third"))
    other.rename(one)
    one.with_name("third").rename(other)
    changed = clip_facts(videos, clips, cache=cache)
    assert opened == [] and changed["frames"][:2].tolist() == [11, 10] and changed["sha256"][0] == first["sha256"][1]
    write_video(one, noise(25, 99), 10.0, "MJPG")
    assert clip_facts(videos, clips, cache=cache)["frames"][0] == 25 and opened == [one.name]
    assert clip_facts(videos, clips.iloc[3:5], cache=cache)["frames"].tolist() == [13, 14]
    clip_facts(videos, clips, cache=cache)
    assert opened == [one.name]


def test_headers_alone_are_read_at_first(videos, tmp_path, monkeypatch):
    clips = scan_clips(videos)
    with monkeypatch.context() as patch:
        patch.setattr(contents, "walk", lambda path: pytest.fail("a clip was decoded"))
        quick = clip_facts(videos, clips, decode=False, cache=tmp_path)
    assert quick["frames"].tolist() == [*range(10, 18)] * 2
    assert not quick["decoded"].any() and quick["motion"].isna().all()
    full = clip_facts(videos, clips, cache=tmp_path)
    assert full["decoded"].all() and full["motion"].notna().all()
    assert clip_facts(videos, clips, decode=False, cache=tmp_path)["decoded"].all()


def test_broken_files_are_told_each_with_its_reason(videos, tmp_path):
    folder = videos / "A"
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>Not Found</html>")
    whole = (folder / "v_A_g05_c01.avi").read_bytes()
    (folder / "cut.avi").write_bytes(whole[:len(whole) // 2])
    (folder / "link.avi").symlink_to(folder / "nowhere.avi")
    write_video(folder / "one.avi", noise(1, 5))
    facts = clip_facts(videos, scan_clips(videos), cache=tmp_path).set_index("clip_path")
    assert facts["status"].value_counts().to_dict() == {"ok": 16, "broken": 4, "one frame": 1}
    for name, words in (("empty.mp4", "can't be opened"), ("page.mp4", "can't be opened"), ("cut.avi", "breaks off"),
                        ("link.avi", "link to nothing")):
        assert words in facts.loc[f"/A/{name}", "reason"] and str(folder) not in facts.loc[f"/A/{name}", "reason"]
    assert facts.loc["/A/one.avi", "status"] == "one frame"


@pytest.mark.parametrize("decode", [True, False])
def test_a_decoder_that_crashes_takes_nothing_with_it_and_its_clip_is_named(videos, tmp_path, decode):
    for seed, name in enumerate(("A/crash1.avi", "B/crash2.avi"), 50):
        write_video(videos / name, noise(10, seed), 10.0, "MJPG")
    (tmp_path / "sitecustomize.py").write_text(CRASHING)
    code = (f"from videos.contents import clip_facts; from videos.folder import scan_clips; from pathlib import Path\n"
            f"root = Path({str(videos)!r})\n"
            f"facts = clip_facts(root, scan_clips(root), {decode}, root.parent / 'cache')\n"
            "print(facts.set_index('clip_path')[['status', 'reason', 'frames']].to_csv(sep='|'))")
    source = str(Path(contents.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), source))})
    assert done.returncode == 0, done.stderr
    told = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines() if line.startswith("/")}
    assert len(told) == 18
    for name, (status, reason, frames) in told.items():
        assert (status, reason) == (("broken", "crashes the decoder") if "crash" in name else ("ok", ""))
        assert "crash" in name or int(frames) == 9 + int(name.split("_g")[1][:2])


def test_what_is_broken_is_looked_at_again_in_a_fresh_copy(videos, tmp_path, monkeypatch):
    def fail(file: Path) -> None:
        raise decoding.VideoError(f"{file}: disk; run again")

    path = videos / "A" / "v_A_g01_c01.avi"
    with monkeypatch.context() as patch:
        patch.setattr(contents, "read_track", fail)
        assert clip_facts(videos, scan_clips(videos).iloc[:1], cache=tmp_path)["reason"].tolist() == ["disk"]
    assert clip_facts(videos, scan_clips(videos).iloc[:1], cache=tmp_path)["status"].tolist() == ["broken"]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert clip_facts(videos, scan_clips(videos).iloc[:1], cache=tmp_path)["status"].tolist() == ["ok"]


def test_different_clips_of_one_fixed_camera_are_no_copies(tmp_path):
    scene = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (120, 160, 3), dtype=np.uint8), (0, 0), 8)
    scene = cv2.normalize(scene, None, 20, 230, cv2.NORM_MINMAX)
    for number in range(12):
        frames, left = np.stack([scene] * 40), 10 + 6 * number
        for time, frame in enumerate(frames):  # a small person that walks from another place each time
            frame[50:85, left + time:left + time + 13] = 40 + 12 * number
        write_video(tmp_path / "A" / f"{number}.avi", frames, codec="XVID")
    facts = clip_facts(tmp_path, scan_with_one_class(tmp_path), cache=tmp_path / "cache")
    assert copies(facts).tolist() == facts["clip_path"].tolist()


# ---------------------------------------------------------------- copies

def encoded(source: np.ndarray, path: Path, codec: str, rate: int = 25, **options: str) -> Path:
    """Writes (T, H, W, 3) RGB frames by an encoder of PyAV's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *source.shape[1:3], "yuv420p"
        for frame in source:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def test_copies_are_found_whatever_was_done_to_them(tmp_path):
    scene = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (96, 400, 3), dtype=np.uint8), (0, 0), 6)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX)
    clip = np.stack([scene[:, 3 * i:3 * i + 128] for i in range(50)])
    original = encoded(clip, tmp_path / "A" / "a.mp4", "libx264", crf="20")
    shutil.copy(original, tmp_path / "A" / "b.mp4")
    remux(original, tmp_path / "A" / "c.mkv")
    encoded(clip, tmp_path / "A" / "d.avi", "mpeg4", qmin="10", qmax="10")
    encoded(np.stack([cv2.resize(frame, (64, 48)) for frame in clip]), tmp_path / "A" / "e.webm", "libvpx")
    encoded(clip[:40], tmp_path / "A" / "shorter.mp4", "libx264")
    encoded(clip[::-1], tmp_path / "A" / "backwards.mp4", "libx264")
    encoded(clip[:, :, ::-1], tmp_path / "A" / "mirrored.mp4", "libx264")
    facts = clip_facts(tmp_path, scan_with_one_class(tmp_path), cache=tmp_path / "cache")
    sets = copies(facts).groupby(copies(facts)).groups
    paths = {first: sorted(facts["clip_path"][list(rows)]) for first, rows in sets.items()}
    assert paths == {"/A/a.mp4": [f"/A/{name}" for name in ("a.mp4", "b.mp4", "c.mkv", "d.avi", "e.webm")],
                     **{f"/A/{name}.mp4": [f"/A/{name}.mp4"] for name in ("shorter", "backwards", "mirrored")}}
    quick = clip_facts(tmp_path, scan_with_one_class(tmp_path), decode=False, cache=tmp_path / "other")
    assert copies(quick).tolist().count("/A/a.mp4") == 2  # byte for byte alone


def scan_with_one_class(root: Path) -> pd.DataFrame:
    return pd.DataFrame({"clip_path": [f"/A/{path.name}" for path in sorted((root / "A").iterdir())]})


def test_blank_and_broken_clips_are_no_copies_of_each_other(tmp_path):
    for number in range(2):
        write_video(tmp_path / "A" / f"grey{number}.avi", np.full((20, 48, 64, 3), 90 + number, np.uint8))
        (tmp_path / "A" / f"broken{number}.avi").write_bytes(b"the same")
        write_video(tmp_path / "A" / f"moving{number}.avi", moving_square(number, number))
    facts = clip_facts(tmp_path, scan_with_one_class(tmp_path), cache=tmp_path / "cache")
    assert copies(facts).tolist() == facts["clip_path"].tolist()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the real clips of shared/ucf101 are not here")
@pytest.mark.parametrize("name", ["ucf101", "ut-interaction"])
def test_real_clips_are_whole_and_different(name, tmp_path):
    root = REAL_CLIPS.parent / name
    facts = clip_facts(root, scan_clips(root), cache=tmp_path)
    assert set(facts["status"]) == {"ok"} and copies(facts).tolist() == facts["clip_path"].tolist()
    assert facts["motion"].between(0.001, 2).all() and facts["kbit_per_second"].between(50, 5000).all()
