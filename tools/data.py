"""Gets, splits and checks the clips; clears away what can be computed again.

`python tools/data.py --help` lists the commands, `python tools/data.py COMMAND --help` a command's options.
"""

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from config import CACHE, CLASSES, RESULTS, UCF101_ROOT
from files import shown
from videos import splits, ucf101
from videos.demo import render_dataset
from videos.library import locate


def main(arguments: list[str] | None = None) -> None:
    """The command line: an error is one line and exit status 1."""
    options = vars(_parser().parse_args(arguments))
    run = options.pop("run")
    if "all" in (options.get("classes") or ()):
        options["classes"] = None
    try:
        run(**options)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: run again to go on, what is finished is kept") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name: str, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    command(render_demo, "demo", "render the embedded clips")

    fetching = command(fetch_clips, "fetch", "download only the wanted clips of UCF-101")
    fetching.add_argument("--url", default=ucf101.DEFAULT_URL, help="the archive (%(default)s)")
    importing = command(import_clips, "import", "use a local copy of UCF-101, or other videos")
    importing.add_argument("--from", dest="source", type=Path, required=True, help="folder of the copy")
    modes = importing.add_mutually_exclusive_group()
    for mode, how in (("link", "hard links (default)"), ("copy", "copies"), ("reference", "symbolic links")):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="link", help=how)
    for getting in (fetching, importing):
        getting.add_argument("--classes", nargs="+", default=CLASSES, help=f"names, or all ({' '.join(CLASSES)})")
        getting.add_argument("--root", type=Path, default=UCF101_ROOT, help="folder of class folders (%(default)s)")

    splitting = command(split_clips, "split", "write a folder's split CSVs, or keep those that are there")
    splitting.add_argument("root", type=Path, nargs="?", default=UCF101_ROOT,
                           help="folder with one sub-folder of clips per class (%(default)s)")
    splitting.add_argument("--classes", nargs="+", help="names, or all (all)")

    checking = command(check_clips, "check", "decode every clip once, report broken and duplicate ones")
    checking.add_argument("dataset", nargs="?", default="ucf101", help="demo, ucf101 or a folder (%(default)s)")

    command(clean, "clean", "remove kept activations and unfinished trainings; clips, models and results stay")
    return parser


def render_demo() -> None:
    print(render_dataset())


def fetch_clips(root: Path, classes: list[str] | None, url: str) -> None:
    print(f"{len(ucf101.fetch(classes, root, url))} clips in {root}")


def import_clips(root: Path, classes: list[str] | None, source: Path, mode: str) -> None:
    """Brings a local copy into place, counts its clips, and says what UCF-101 has besides."""
    clips = ucf101.import_tree(source, root, classes, mode)
    lacking = ucf101.describe_missing(root, {path.parent.name for path in clips})
    print(f"{len(clips)} clips in {root}", *lacking, sep="\n")


def split_clips(root: Path, classes: list[str] | None) -> None:
    """Writes the split CSVs where there are none; prints the split and what is known about its leakage."""
    out, kind = root / "splits", "official1" if root.resolve() == UCF101_ROOT.resolve() else "group"
    kept = (out / "train.csv").exists()
    splits.ensure_splits(root, out, kind, classes)
    print(f"{'kept as they were' if kept else f'written ({kind})'}: the split CSVs in {out}")
    parts = splits.read_split(out)
    print(splits.split_table(parts).to_string())
    if not splits.has_groups(pd.concat(parts.values())):
        print(splits.NO_GROUPS)
    elif warning := splits.leakage_warning(splits.check_leakage(parts)):
        print(warning)


def check_clips(dataset: str) -> None:
    """Decodes a data set, prints what it holds and what is wrong with it; an unreadable clip is an error at the end."""
    from studies import audit  # which imports torch: not for the other commands

    _, root, results = locate(dataset)
    csv = results / "dataset" / "check.csv"
    report = audit.load_or_check(root, splits.scan_clips(root).drop(columns="clip_name"), csv)
    print(audit.check_table(report).to_string(), *audit.findings(report), f"report: {shown(csv)}", sep="\n")
    if (report["status"] == "unreadable").any():
        raise RuntimeError("some clips are unreadable: remove them and fetch or import them again")


def clean() -> None:
    """Removes kept activations, unfinished trainings, and what failed runs of the notebooks left."""
    for folder in (CACHE, *RESULTS.glob("*/failed")):
        if folder.is_dir():
            shutil.rmtree(folder)
            print(f"removed {shown(folder)}")
    for path in RESULTS.rglob("last_*.pth"):
        path.unlink()
        print(f"removed {shown(path)}")


if __name__ == "__main__":
    main()
