"""Gets, splits and checks the clips; clears away what can be computed again.

`python tools/data.py --help` lists the commands, `python tools/data.py COMMAND --help` a command's options.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from config import CACHE, CLASSES, RESULTS, UCF101_ROOT, asked_number, name_list
from files import shown
from videos import splits, ucf101
from videos.demo import render_dataset
from videos.findings import check_table
from videos.library import VideoData, open_data


def main(arguments: list[str] | None = None) -> None:
    """The command line: an error is told without a traceback, with exit status 1."""
    try:
        options = vars(_parser().parse_args(arguments))
        run = options.pop("run")
        if "all" in (options.get("classes") or ()):
            options["classes"] = None
        run(**options)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: run again to go on, what is finished is kept") from None


def _parser() -> argparse.ArgumentParser:
    """Names that are not given on the command line are those of the environment: DATASET, CLASSES, FROM and MODE."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asked = name_list(os.environ.get("CLASSES", ""))

    def command(run, name: str, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    command(render_demo, "demo", "render the embedded clips")

    getting = command(get_clips, "get", "as fetch or, where FROM is set, as import")
    fetching = command(fetch_clips, "fetch", "download only the wanted clips of UCF-101")
    importing = command(import_clips, "import", "use a local copy of UCF-101, or other videos")
    importing.add_argument("--from", dest="source", type=Path, required=True, help="folder of the copy")
    modes = importing.add_mutually_exclusive_group()
    for mode, how in (("link", "hard links (default)"), ("copy", "copies"), ("reference", "symbolic links")):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="link", help=how)
    for one in (getting, fetching):
        one.add_argument("--url", default=ucf101.DEFAULT_URL, help="the archive (%(default)s)")
    for one in (getting, fetching, importing):
        one.add_argument("--classes", nargs="+", default=asked or CLASSES, help=f"names, or all ({' '.join(CLASSES)})")
        one.add_argument("--root", type=Path, default=UCF101_ROOT, help="folder of class folders (%(default)s)")

    splitting = command(split_clips, "split", "make the split that a run uses, or extend it, and show it")
    checking = command(check_clips, "check", "decode every clip once, report what is broken, copied or left out")
    for one in (splitting, checking):
        one.add_argument("dataset", nargs="?", default=os.environ.get("DATASET") or "ucf101",
                         help="demo, ucf101 or a folder (DATASET, or ucf101)")
        one.add_argument("--classes", nargs="+", default=asked, help="names, or all (all)")

    command(clean, "clean", "remove kept activations and unfinished trainings; clips, models and results stay")
    return parser


def render_demo() -> None:
    print(render_dataset())


def get_clips(root: Path, classes: list[str] | None, url: str) -> None:
    """Imports or fetches, as FROM and MODE in the environment say."""
    if source := os.environ.get("FROM"):
        import_clips(root, classes, Path(source).expanduser(), os.environ.get("MODE") or "link")
    else:
        fetch_clips(root, classes, url)


def fetch_clips(root: Path, classes: list[str] | None, url: str) -> None:
    print(f"{len(ucf101.fetch(classes, root, url))} clips in {root}")


def import_clips(root: Path, classes: list[str] | None, source: Path, mode: str) -> None:
    """Brings a local copy into place, counts its clips, and says what UCF-101 has besides."""
    clips = ucf101.import_tree(source, root, classes, mode)
    lacking = ucf101.describe_missing(root, {path.parent.name for path in clips})
    print(f"{len(clips)} clips in {root}", *lacking, sep="\n")


def split_clips(dataset: str, classes: list[str] | None) -> None:
    """Makes or extends the split; prints it and what is known about its leakage."""
    data = _opened(dataset, classes)
    print(f"split {data.split['kind']}, in {shown(data.splits['train'].parent)}")
    print(splits.split_table({part: data.table(part) for part in data.splits}).to_string())
    if not data.split["groups_named"]:
        print(splits.NO_GROUPS)


def check_clips(dataset: str, classes: list[str] | None) -> None:
    """Looks at names, headers and hashes, then decodes every clip; what a run would refuse is an error."""
    data = _opened(dataset, classes, look_first=True)
    print(check_table(data.facts).to_string(), data.findings.to_string(index=False), sep="\n\n")


def _opened(dataset: str, classes: list[str] | None, look_first: bool = False) -> VideoData:
    split = os.environ.get("SPLIT") or None
    return open_data(dataset, split, classes, asked_number("SEED"), look_first=look_first)


def clean() -> None:
    """Removes kept activations, unfinished trainings, and what failed runs of the notebooks left."""
    for folder in (CACHE, RESULTS / "failed", *RESULTS.glob("*/failed")):
        if folder.is_dir():
            shutil.rmtree(folder)
            print(f"removed {shown(folder)}")
    for path in RESULTS.rglob("last_*.pth"):
        path.unlink()
        print(f"removed {shown(path)}")


if __name__ == "__main__":
    main()
