"""Says what a trained model sees in videos, as a whole and over time.

    python src/predict.py VIDEO|FOLDER ... [--model 2d] [--dataset demo] [--json FILE] [--csv FILE] [--annotate FILE]

VIDEO, MODEL and DATASET in the environment stand for what is not named. What can't be read is named in one line each;
the others are answered all the same, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import VIDEO_SUFFIXES, name_list
from files import atomic_path, shown

LONG = 60.0  # seconds of video from which progress is shown
LISTED = 12  # segments in the table on screen, at most; the files have them all


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    asked = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to others
    with _told_in_one_line():
        files = list(dict.fromkeys(find_videos(asked.videos or _named())))
        _check_annotated(asked.annotate, files)
        model = _load(asked)
    answers = []
    for file in files:
        if found := _answered(file, model):
            answers.append(found)
            print(described(found), flush=True)
    with _told_in_one_line():
        write(answers, asked.json, asked.csv)
        if asked.annotate and answers:
            from deployment.annotate import annotate

            annotate(answers[0], asked.annotate)
            print(f"annotated: {shown(asked.annotate)}")
    if len(answers) < len(files):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Says what a trained model sees in videos.")
    parser.add_argument("videos", nargs="*", type=Path, help="video files, or folders of them (default: VIDEO)")
    parser.add_argument("--model", default=os.environ.get("MODEL") or "2d",
                        help="2d, 3d, fusion, or a classical model's name (default: MODEL, or 2d)")
    parser.add_argument("--dataset", default=os.environ.get("DATASET") or "demo",
                        help="whose trained models: demo, ucf101 or a folder (default: DATASET, or demo)")
    parser.add_argument("--json", type=Path, help="writes all answers, windows included, into this file")
    parser.add_argument("--csv", type=Path, help="writes a row per video, and per window of long ones")
    parser.add_argument("--annotate", type=Path, help="writes the video with what was said drawn into it (.mp4)")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: the best there is")
    return parser


def _named() -> list[Path]:
    """What VIDEO names: a file, or a list of them; a ValueError where it names nothing."""
    text = os.environ.get("VIDEO", "")
    if text and Path(text).expanduser().exists():
        return [Path(text).expanduser()]
    if names := name_list(text):
        return [Path(name).expanduser() for name in names]
    raise ValueError("no video is named: python src/predict.py VIDEO ..., or make predict VIDEO=...")


def _load(asked: argparse.Namespace):
    from deployment.prepared import load_model
    from videos.places import locate

    _, _, results = locate(asked.dataset)
    return load_model(asked.model, asked.dataset, results, asked.device)


def _check_annotated(target: Path | None, files: list[Path]) -> None:
    """A ValueError where the annotated video can't be written, before minutes are spent."""
    from videos.encoding import check_target

    if target is None:
        return
    if len(files) != 1:
        raise ValueError(f"--annotate draws one video, not {len(files)}")
    check_target(target)
    if target.resolve() == files[0].resolve():
        raise ValueError(f"{target}: is the video itself; name another file")


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _expected(error):
            raise
        raise SystemExit(f"error: {error}") from None


def _expected(error: Exception) -> bool:
    """Whether an error is told in one line: those that name a file and the cure."""
    from deployment.trained import NotTrained

    named = type(error).__name__ in ("WeightsError", "ModelError")  # of modules that are imported where they are needed
    return named or isinstance(error, (OSError, ValueError, NotTrained))


def find_videos(paths: list[Path]) -> Iterator[Path]:
    """The files among paths, and what looks like a video in folders and below; a FileNotFoundError for an empty one."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(its for its in path.rglob("*") if its.suffix.lower() in VIDEO_SUFFIXES and its.is_file()
                       and not its.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"{path}: no video in this folder, by the names of its files")
        yield from found


def _answered(file: Path, model):
    """The answer, or None where the file can't be read, which is told."""
    from deployment.answer import answer
    from videos.decoding import VideoError

    progress = _Progress(file)
    try:
        return answer(file, model, progress)
    except VideoError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return None
    finally:
        progress.close()


class _Progress:
    """A bar on the screen for files that take long."""

    def __init__(self, file: Path):
        self.file, self.bar = file, None

    def __call__(self, done: int, frames: int) -> None:
        if frames < LONG * 25:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=frames, desc=self.file.name[:30], unit="frame", ncols=90, leave=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def described(answer) -> str:
    """An answer as lines on the screen."""
    order = answer.probabilities.argsort()[::-1]
    shares = "  ".join(f"{answer.classes[i]} {answer.probabilities[i]:.2f}" for i in order[:5])
    lines = [f"{answer.file}   {answer.seconds:.1f} s   {shares}", f"    {answer.familiarity()}"]
    segments = answer.segments() if len(answer.starts) else []
    lines += [f"    {its['start']:7.1f} to {its['end']:.1f} s   {its['class']} {its['probability']:.2f}"
              for its in segments[:LISTED]]
    if len(segments) > LISTED:
        lines.append(f"    and {len(segments) - LISTED} more (--csv or --json has all)")
    return "\n".join(lines)


def write(answers: list, json_file: Path | None, csv_file: Path | None) -> None:
    """Writes the answers, whole or not at all."""
    if json_file:
        from files import write_json

        write_json(json_file, {"answers": [answer.to_dict() for answer in answers]})
    if csv_file:
        import csv

        with atomic_path(csv_file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            classes = answers[0].classes if answers else []
            writer.writerow(["file", "start", "end", "predicted", "unfamiliarity", *(f"p_{name}" for name in classes)])
            for its in answers:
                rows = [(0.0, its.seconds, its.unfamiliarity, its.probabilities),
                        *zip(its.starts, its.ends, its.unfamiliar, its.course, strict=True)]
                writer.writerows([str(its.file), f"{start:.3f}", f"{end:.3f}", classes[int(p.argmax())], f"{far:.4f}",
                                  *(f"{value:.6f}" for value in p)] for start, end, far, p in rows)


if __name__ == "__main__":
    main()
