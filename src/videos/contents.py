"""What is in every clip: its hash and headers, and, decoded once, its length, look and motion; kept by content.

One file of the cache holds what is known of the clips below a folder. A file is told by its stamp (see
`files.file_stamp`), what was found in it by its bytes: a clip that was moved or renamed is not read again, one whose
bytes changed is.
"""

from __future__ import annotations

import hashlib
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from config import CACHE
from files import file_hash, file_stamp, read_sealed, write_sealed
from machine import cores, in_processes, opencv_without_threads
from videos.decoding import VideoError, read_track, walk
from videos.splits import clip_file

VERSION = 2  # raise it where the same clip gives other facts
PAIR_EVERY = 12  # of so many frames, two neighbours are looked at for motion and colour
FLOW_SIZE = (160, 120)  # (width, height) in pixels at which motion is measured
GLANCES, GLANCE_SIZE = 4, (16, 12)  # grey pictures of a clip, (width, height) in pixels, by which its copies are found
# Copies of 32 real clips, encoded anew in three ways, were as long, at most 2.1 grey levels (root mean square) from the
# original, and what moved in their glances differed by at most 0.24 of itself; between real clips of different groups
# it was 0.8 and more.
SAME_LOOK, SAME_COURSE, SAME_LENGTH = 4.0, 0.3, 0.02  # by which copies may differ: grey levels, share, seconds
STILL = 1.0  # grey levels (root mean square) that must move in the glances of a clip, or they don't tell it
AT_ONCE = 256  # clips that are compared with all others at a time
MEASURED = ("kbit_per_second", "motion", "mean_l", "mean_a", "mean_b")  # columns that are empty where not decoded
UNKNOWN = {"status": "broken", "reason": "", "frames": 0, "duration": 0.0, "fps": 0.0, "width": 0, "height": 0,
           "codec": "", **dict.fromkeys(MEASURED, np.nan), "glances": "", "decoded": True}
CRASHES = "crashes the decoder"  # a reason
TEXTS = ("clip_path", "stamp", "sha256", "status", "reason", "codec", "glances")


def clip_facts(root: str | Path, clips: pd.DataFrame, decode: bool = True, cache: Path = CACHE) -> pd.DataFrame:
    """What is in the clips of a table, `clip_path` below the folder `root`; what is known is not read again.

    Args:
        decode: whether every frame is decoded, which takes some 20 ms for a clip of UCF-101. Otherwise headers and
            packets alone are read.

    Returns:
        The same rows with status (`ok`; `one frame`; `broken`), reason (why it is broken), frames, duration (seconds),
        fps, width and height (pixels, as coded), codec, kbit_per_second (of the file), motion (mean optical flow in
        frame heights per second), mean_l, mean_a, mean_b (mean colour in CIE Lab), sha256 of the file, glances (hex:
        GLANCES grey pictures) and decoded. What only decoding tells is empty where it was not done.
    """
    kept = cache / "clips" / f"{hashlib.sha256(str(root).encode()).hexdigest()[:16]}-{VERSION}-{av.__version__}.csv"
    known = _read_known(kept)
    files = [clip_file(root, path) for path in clips["clip_path"]]
    stamps = [_stamp(file) for file in files]
    entries = [f"{path} {stamp}" for path, stamp in zip(clips["clip_path"], stamps, strict=True)]
    seen = pd.Series(known["sha256"].to_numpy(), known["clip_path"] + " " + known["stamp"])
    hashes = seen.to_dict()
    with ThreadPoolExecutor(cores()) as pool:
        contents = list(pool.map(lambda entry, file: hashes.get(entry) or _content(file), entries, files))
    # what is broken may be so for a passing reason: it is believed of the very file alone
    sure = known[(known["decoded"] | (not decode)) & ((known["status"] != "broken") | seen.index.isin(entries))]
    facts = sure.drop_duplicates("sha256").set_index("sha256")[list(UNKNOWN)].to_dict("index")
    new = {content: file for content, file in zip(contents, files, strict=True) if content and content not in facts}
    facts |= dict(zip(new, _examine_all(list(new.values()), decode), strict=True))
    rows = [facts[content] if content else _unread(file) for content, file in zip(contents, files, strict=True)]
    report = clips.assign(stamp=stamps, sha256=contents).join(pd.DataFrame(rows, clips.index))
    if new or not set(entries) <= hashes.keys():
        others = known[~known["clip_path"].isin(clips["clip_path"])]
        write_sealed(kept, pd.concat([report[list(known)], others]).to_csv(index=False).encode())
    return report.drop(columns="stamp")


def _read_known(path: Path) -> pd.DataFrame:
    columns = ["clip_path", "stamp", "sha256", *UNKNOWN]
    content = read_sealed(path)
    if content is None:
        return pd.DataFrame(columns=columns).astype({"decoded": bool})
    return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=dict.fromkeys(MEASURED, ""),
                       dtype=dict.fromkeys(TEXTS, str))[columns]


def _stamp(file: Path) -> str:
    try:
        return "-".join(map(str, file_stamp(file)))
    except OSError:
        return ""


def _content(file: Path) -> str:
    """The hash of a file; nothing where it can't be read."""
    try:
        return file_hash(file)
    except OSError:
        return ""


def _unread(file: Path) -> dict:
    """Facts of a file that can't even be read."""
    nowhere = file.is_symlink() and not file.exists()
    reason = "is a link to nothing" if nowhere else "can't be read: check its permissions"
    return {**UNKNOWN, "reason": reason}


def _examine_all(files: list[Path], decode: bool) -> list[dict]:
    """The facts of files, read in processes of their own, so that a decoder that crashes takes no more with it."""
    found, title = [], "decoding every clip once" if decode else ""
    with tqdm(None, title, len(files), unit="clip", file=sys.stdout, ncols=90, delay=1, disable=not title) as progress:
        while len(found) < len(files):
            rest, alone = [(file, decode) for file in files[len(found):]], False
            try:
                for facts in in_processes(_examine, rest, least=2):
                    found.append(facts)
                    progress.update()
            except BrokenProcessPool:
                alone = True  # which of those that were in work is seen one by one
            while alone and len(found) < len(files):
                facts = _examine_alone(files[len(found)], decode)
                alone = facts["reason"] != CRASHES
                found.append(facts)
                progress.update()
    return found


def _examine_alone(file: Path, decode: bool) -> dict:
    try:
        (facts,) = in_processes(_examine, [(file, decode)], least=2)
    except BrokenProcessPool:
        return {**UNKNOWN, "decoded": decode, "reason": CRASHES}
    return facts


# ---------------------------------------------------------------- one clip

def _examine(file: Path, decode: bool) -> dict:
    with opencv_without_threads():
        return _facts(file, decode)


def _facts(file: Path, decode: bool) -> dict:
    facts = {**UNKNOWN, "decoded": decode}
    try:
        track = read_track(file)
        info, frames = track.info, track.presented
        duration = info.frames / info.fps if info.fps else 0.0
        look = {}
        if decode:
            frames, look = _scan(file, info.fps)
            duration = frames / info.fps if info.fps and track.shown is None else duration
            look["kbit_per_second"] = file.stat().st_size * 8 / 1000 / duration if duration else np.nan
    except VideoError as error:
        return {**facts, "reason": str(error).removeprefix(f"{file}: ").rsplit("; ", 1)[0]}
    return {**facts, "status": "ok" if frames > 1 else "one frame", "frames": frames, "duration": duration,
            "fps": info.fps, "width": info.width, "height": info.height, "codec": track.codec, **look}


def _scan(file: Path, fps: float) -> tuple[int, dict]:
    """Decodes a clip: its frames, and what they look like."""
    optical_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    frames, flows, colours, before = 0, [], [], None
    glances = []
    for number, picture in walk(file):
        frames = number + 1
        if number % PAIR_EVERY > 1:
            continue
        small = cv2.resize(picture(), FLOW_SIZE, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        if number % PAIR_EVERY == 1:
            flows.append(np.linalg.norm(optical_flow.calc(before, grey, None), axis=2).mean())
        colours.append(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).mean(axis=(0, 1)))
        glances.append(cv2.resize(grey, GLANCE_SIZE, interpolation=cv2.INTER_AREA))
        before = grey
    chosen = np.stack(glances)[np.linspace(0, len(glances) - 1, GLANCES).round().astype(int)]
    lightness, a, b = np.mean(colours, axis=0)
    return frames, {"motion": float(np.mean(flows)) * fps / FLOW_SIZE[1] if flows else np.nan,
                    "mean_l": lightness, "mean_a": a, "mean_b": b, "glances": chosen.tobytes().hex()}


# ---------------------------------------------------------------- copies

def copies(facts: pd.DataFrame) -> pd.Series:
    """Which clips show the same, for what `clip_facts` gives: the clip_path of the first one of each such set.

    They do where their bytes are equal, or where they last as long (SAME_LENGTH), look alike from beginning to end
    (SAME_LOOK) and what moves is the same (SAME_COURSE), as after a change of container or codec. Broken clips are like
    no other, and clips in which next to nothing moves are copies only byte for byte.
    """
    readable = (facts["sha256"] != "") & (facts["status"] != "broken")
    number = pd.factorize(facts["sha256"].where(readable, facts["clip_path"]))[0]
    first = np.unique(number, return_index=True)[1]
    pairs = [(first[number], np.arange(len(facts))), _alike(facts)]
    rows, columns = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    together = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), (len(facts),) * 2), False)[1]
    return facts["clip_path"].groupby(together).transform("first")


def _alike(facts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the pairs of clips that look alike, move alike and last as long."""
    told = np.flatnonzero((facts["glances"] != "").to_numpy() & (facts["status"] == "ok").to_numpy())
    told = told[np.argsort(facts["duration"].to_numpy()[told], kind="stable")]
    glances = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in facts["glances"].iloc[told]]
    looks = np.array(glances, np.float32).reshape(len(told), GLANCES, np.prod(GLANCE_SIZE))
    looks -= looks.mean(axis=(1, 2), keepdims=True)
    course = looks - looks.mean(axis=1, keepdims=True)
    looks, course = (np.concatenate(np.moveaxis(values, 1, 0), axis=1) for values in (looks, course))
    moving = np.sqrt((course**2).mean(axis=1))
    told, looks, course, moving = (values[moving >= STILL] for values in (told, looks, course, moving))
    seconds, squares = facts["duration"].to_numpy()[told], (looks**2).sum(axis=1)
    pairs = [(np.empty(0, int), np.empty(0, int))]
    for start in range(0, len(told), AT_ONCE):
        block = slice(start, start + AT_ONCE)
        ahead = slice(start, np.searchsorted(seconds, seconds[block][-1] + SAME_LENGTH, side="right"))
        distance = squares[block, None] + squares[None, ahead] - 2 * looks[block] @ looks[ahead].T
        rows, columns = np.nonzero(distance <= SAME_LOOK**2 * looks.shape[1])
        rows, columns = (side[rows < columns] + start for side in (rows, columns))
        same = seconds[columns] - seconds[rows] <= SAME_LENGTH
        rows, columns = rows[same], columns[same]
        off = np.sqrt(((course[rows] - course[columns])**2).mean(axis=1))
        same = off <= SAME_COURSE * np.minimum(moving[rows], moving[columns])
        pairs.append((told[rows[same]], told[columns[same]]))
    return tuple(np.concatenate(side) for side in zip(*pairs, strict=True))
