"""A campaign of kills, broken videos, full disks and broken files against the whole of the project, with fixed seeds.

    python benchmarks/faults.py [--budget 30m] [--only kills mutants ...] [--short] [--again]

What was tried is counted in results/benchmarks/faults.json and .md, batch by batch: the next run goes on where this one
stopped. benchmarks/victim.py is what the faults are done to. It begins with a fault that is planted, and must be found.
It needs processes that can be forked: Linux or macOS.
"""

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import mutants
import victim
from children import at_writes, child, ended, kill
from config import RESULTS, ROOT
from files import read_json, remove_abandoned, shown, write_json
from machine import commit, environment, hardware_line

KILLS = 20  # of a run, before it is let to its end
TARGETS = {"kills": 1000, "mutants": 10_000, "disk": 200, "small disk": 55, "broken": 200, "together": 40,
           "surroundings": 7}
SHORT = {"kills": 12, "mutants": 25, "disk": 6, "small disk": 2, "broken": 5, "together": 4, "surroundings": 1}
SHORT_STAGES = ("fetch", "import", "open", "train", "predict")
EVERYTHING = "everything"  # the place when all stages are done
CLEAR = "files.NotWritten", "videos.ucf101.DataError"  # how a refused write is told
REFUSALS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "rights": errno.EACCES, "read-only": errno.EROFS}


# ---------------------------------------------------------------- places before each stage

class Places:
    """A place as it is before each stage, and what is there after an undisturbed one; made when first asked for."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, {}

    def before(self, stage: str) -> Path:
        """A place in which the stages before this one are done."""
        if stage not in self.made:
            names = [*victim.STAGES, EVERYTHING]
            number = names.index(stage) if stage in names else 0
            place = self.folder / "before" / stage
            if number:
                earlier = names[number - 1]
                victim.copied(self.before(earlier), place)
                self.undisturbed(place, earlier)
            else:
                victim.make_place(place)
            self.made[stage] = place
        return self.made[stage]

    def copy(self, stage: str, name: str) -> Path:
        """A new copy of a place before a stage."""
        return victim.copied(self.before(stage), self.folder / "work" / name / "place")

    def undisturbed(self, place: Path, stage: str) -> None:
        """Does a stage."""
        log = self.folder / "undisturbed.log"
        if ended(child(partial(victim.work, place, stage), log)):
            raise SystemExit(f"the stage {stage} fails even when nothing disturbs it:\n{log.read_text()[-2000:]}")

    def after(self, stage: str) -> tuple[dict[str, str], float, int]:
        """What is there after an undisturbed stage, the seconds that it takes, and how often it writes."""
        key = f"after {stage}"
        if key not in self.made:
            place, counts = self.copy(stage, "reference"), self.folder / "counts"

            def counted() -> None:
                at_writes(place, lambda number, what, path: counts.write_text(str(number)))
                victim.work(place, stage)

            started = time.monotonic()
            status = ended(child(counted, self.folder / "reference.log"))
            seconds = time.monotonic() - started
            if status:
                raise SystemExit((self.folder / "reference.log").read_text()[-2000:])
            self.made[key] = victim.contents(place), seconds, int(counts.read_text())
            shutil.rmtree(place.parent)
        return self.made[key]


# ---------------------------------------------------------------- kinds of faults: each batch gives tried, faults

def kills(places: Places, number: int) -> tuple[int, list[str]]:
    """A stage, killed KILLS times, at random moments and at random writes, then let to its end."""
    rng, stage = random.Random(number), list(victim.STAGES)[number % len(victim.STAGES)]
    return killed(places, stage, rng, f"kills-{number}")


def killed(places: Places, stage: str, rng: random.Random, name: str) -> tuple[int, list[str]]:
    """Of one stage: what was tried, and what of it was not as it must be."""
    place, (expected, seconds, writes) = places.copy(stage, name), places.after(stage)
    log, found = place.parent / "log", []
    for _ in range(KILLS):
        if rng.random() < 0.5:
            at = rng.randint(1, writes)

            def work(at=at) -> None:
                at_writes(place, lambda its, what, path: its == at and os.killpg(0, signal.SIGKILL))
                victim.work(place, stage)

            ended(child(work, log))
        else:
            pid = child(partial(victim.work, place, stage), log)
            time.sleep(rng.uniform(0, seconds))
            kill(pid)
            ended(pid)
        found += [f"{stage}: {line}" for line in victim.broken(place)]
    return KILLS, found + finished(places, place, stage, expected)


def finished(places: Places, place: Path, stage: str, expected: dict[str, str]) -> list[str]:
    """Lets a disturbed stage go on to its end; what is not as after an undisturbed one."""
    log = place.parent / "log"
    if ended(child(partial(victim.work, place, stage), log)):
        return [f"{stage}: does not go on: {log.read_text()[-300:]}"]
    remove_abandoned(place)
    there, found = victim.contents(place), []
    for name in sorted(there.keys() | expected.keys()):
        if there.get(name) != expected.get(name):
            state = "is missing" if name not in there else "is left over" if name not in expected else "differs"
            found.append(f"{stage}: {name} {state}")
    shutil.rmtree(place.parent)
    return found


def found_planted(places: Places) -> int:
    """How often a file that is not written whole is seen to be broken: never, if the campaign were blind."""
    place, found = places.copy("planted", "planted"), 0
    for at in range(1, 21):
        def work(at=at) -> None:
            at_writes(place, lambda its, what, path: its == 2 * at and os.killpg(0, signal.SIGKILL))
            victim.work(place, "planted")

        ended(child(work, place.parent / "log"))
        found += bool(victim.broken(place))
        shutil.rmtree(place / "out")
    shutil.rmtree(place.parent)
    return found


def disk(places: Places, number: int) -> tuple[int, list[str]]:
    """A stage whose n-th write is refused: one clear line, nothing broken, and it goes on when there is room."""
    rng, stage = random.Random(number), list(victim.STAGES)[number % len(victim.STAGES)]
    refusal, code = list(REFUSALS.items())[number // len(victim.STAGES) % len(REFUSALS)]
    place, (expected, _, writes) = places.copy(stage, f"disk-{number}"), places.after(stage)
    at, log = rng.randint(1, writes), place.parent / "log"

    def refuse(its: int, what: str, path: Path) -> None:
        if its < at or what == "os.remove":
            return
        if refusal == "full" and what == "open" and Path("/dev/full").exists() and not path.exists():
            path.symlink_to("/dev/full")  # so that writing fails, not opening
        elif what != "commit":
            raise OSError(code, os.strerror(code), str(path))

    def work() -> None:
        at_writes(place, refuse)
        victim.work(place, stage)

    status, found, last = ended(child(work, log)), [], said_last(log)
    if status and not last.startswith(CLEAR):
        found.append(f"{stage}, {refusal} at write {at}: {last[:200]}")
    found += [f"{stage}, {refusal}: {line}" for line in victim.broken(place)]
    return 1, found + finished(places, place, stage, expected)


def small_disk(places: Places, number: int) -> tuple[int, list[str], dict[str, int]]:
    """A stage on a real disk, of memory, that has room for a part of what it writes: also databases and encoders, whose
    writes no hook sees. One clear line, nothing broken, and it goes on when the disk grows."""
    rng, stage = random.Random(number), list(victim.STAGES)[number % len(victim.STAGES)]
    names = [*victim.STAGES, EVERYTHING]
    before, after = (on_disk(places.before(its)) for its in (stage, names[names.index(stage) + 1]))
    disk, expected, found = places.folder / "disk", places.after(stage)[0], []
    disk.mkdir(exist_ok=True)
    mounted(disk, "size=1g")
    try:
        place, log = victim.copied(places.before(stage), disk / "work" / "place"), places.folder / "small disk.log"
        again = on_disk(places.before(stage) / "cache" / "clips")  # which `copied` left out
        room = shutil.disk_usage(disk).used + again + int(rng.uniform(0, 0.9) * (after - before))
        mounted(disk, f"remount,size={room}")
        status, last = ended(child(partial(victim.work, place, stage), log)), said_last(log)
        if status and not last.startswith(CLEAR):
            found.append(f"{stage}, small disk: {last[:200]}")
        mounted(disk, "remount,size=1g")
        found += [f"{stage}, small disk: {line}" for line in victim.broken(place)]
        found += finished(places, place, stage, expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S603, S607  the system's own, our folder
    return 1, found, {"refused": int(status != 0)}


def on_disk(folder: Path) -> int:
    """Bytes that the files below a folder take, in pages."""
    return sum(-(-path.lstat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def mounted(folder: Path, options: str) -> None:
    """Mounts a disk of memory, or changes it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],  # noqa: S603, S607  as above
                   check=True, capture_output=True)


def can_mount() -> bool:
    """Whether disks can be mounted here: root of Linux, outside most containers."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mounted(Path(folder), "size=1m")
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", folder], check=True)  # noqa: S603, S607  as above
        return True


def said_last(log: Path) -> str:
    """The last line of a log."""
    return (log.read_text().strip().splitlines()[-1:] or [""])[0]


def broken(places: Places, number: int) -> tuple[int, list[str]]:
    """A kept file cut, emptied, exchanged or of another format, before all stages are done once more: computed again,
    or refused by its name. What is in the cache and not read may stay as it is."""
    rng, place = random.Random(number), places.copy(EVERYTHING, f"broken-{number}")
    kept = sorted(path for part in ("cache", "results", "out") for path in (place / part).rglob("*") if path.is_file())
    kinds = sorted({kind_of(place, path) for path in kept})
    kind = kinds[number % len(kinds)]
    path = rng.choice([path for path in kept if kind_of(place, path) == kind])
    how = list(DAMAGES)[number // len(kinds) % len(DAMAGES)]
    path.write_bytes(damage := DAMAGES[how](path, kept, rng))
    expected, log, found = places.after(list(victim.STAGES)[-1])[0], place.parent / "log", []
    for stage in victim.STAGES:
        if ended(child(partial(victim.work, place, stage), log)):
            if path.name not in said_last(log):
                found.append(f"{path.relative_to(place)} {how}: {stage} says {said_last(log)[:200]}")
            break
    else:
        unread = path.is_file() and path.read_bytes() == damage and path.is_relative_to(place / "cache")
        there = victim.contents(place)
        found += [f"{path.relative_to(place)} {how}: {name} differs" for name in expected
                  if there.get(name) != expected[name] and not (unread and name == str(path.relative_to(place)))]
    shutil.rmtree(place.parent)
    return 1, found


def kind_of(place: Path, path: Path) -> str:
    """Files of one kind lie in one folder and end alike."""
    return f"{path.relative_to(place).parts[:2]} {path.suffix}"


DAMAGES: dict[str, Callable[[Path, list[Path], random.Random], bytes]] = {
    "cut": lambda path, kept, rng: path.read_bytes()[:path.stat().st_size // 2],
    "emptied": lambda path, kept, rng: b"",
    "exchanged": lambda path, kept, rng: rng.choice(
        [its for its in kept if its.suffix == path.suffix and its != path] or kept).read_bytes(),
    "of another format": lambda path, kept, rng: b'{"version": 0}' if path.suffix == ".json" else b"version 0\n",
    "changed": lambda path, kept, rng: flipped(path.read_bytes(), rng)}


def flipped(content: bytes, rng: random.Random) -> bytes:
    """With one byte changed, in the middle."""
    at = rng.randrange(len(content) // 4, max(3 * len(content) // 4, 1)) if content else 0
    return content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1:] if content else b"?"


def together(places: Places, number: int) -> tuple[int, list[str]]:
    """Four processes that do one stage in one place, started at random moments."""
    rng, stage = random.Random(number), list(victim.STAGES)[number % len(victim.STAGES)]
    place, (expected, seconds, _) = places.copy(stage, f"together-{number}"), places.after(stage)
    running = []
    for one in range(4):
        running.append(child(partial(victim.work, place, stage), place.parent / f"log{one}"))
        time.sleep(rng.uniform(0, seconds / 4))
    found = [f"{stage}: one of four fails: {(place.parent / f'log{one}').read_text()[-300:]}"
             for one, pid in enumerate(running) if ended(pid)]
    found += [f"{stage}: {line}" for line in victim.broken(place)]
    return 4, found + finished(places, place, stage, expected)


def surroundings(places: Places, number: int) -> tuple[int, list[str]]:
    """All stages in odd surroundings: another time zone, clips from the future, no locale, no HOME, a path with blanks
    and umlauts, clips that can only be read, files for their owner alone."""
    odd = ["time zone", "future", "locale", "home", "path", "read-only", "umask"][number % 7]
    first = next(iter(victim.STAGES))
    place = places.copy(first, "wörk 1 mit Leer zeichen" if odd == "path" else f"odd-{number}")

    def work() -> None:
        if odd == "time zone":
            os.environ["TZ"] = "Pacific/Kiritimati"
            time.tzset()
        elif odd == "locale":
            os.environ |= {"LANG": "C", "LC_ALL": "C"}
        elif odd == "home":
            os.environ.pop("HOME", None)
        elif odd == "umask":
            os.umask(0o077)
        for stage in victim.STAGES:
            victim.work(place, stage)
            if stage == "import":
                for path in (place / "clips").rglob("*"):
                    if odd == "future":  # as after a clock was set back
                        os.utime(path, (time.time() + 864_000,) * 2)
                    elif odd == "read-only":
                        path.chmod(0o555 if path.is_dir() else 0o444)

    log, found = place.parent / "log", []
    if ended(child(work, log)):
        found = [f"{odd}: {log.read_text()[-300:]}"]
    else:
        there, expected = victim.contents(place), places.after(list(victim.STAGES)[-1])[0]
        found = [f"{odd}: {name} differs" for name in expected if there.get(name) != expected[name]]
    shutil.rmtree(place.parent)
    return 1, found


FAMILIES = {"kills": kills, "mutants": mutants.batch, "disk": disk, "small disk": small_disk, "broken": broken,
            "together": together, "surroundings": surroundings}
TITLES = {"kills": f"kills (SIGKILL), at random moments and writes, {KILLS} in a run of a stage, compared at its end",
          "mutants": "damaged videos, read, checked and predicted",
          "disk": "refused writes: disk full, quota, rights, read-only",
          "small disk": "a disk that is full half-way, databases and encoders included (needs rights to mount)",
          "broken": "kept files cut, emptied, exchanged, changed or of another format",
          "together": "processes that do a stage in one place, four at a time",
          "surroundings": "odd surroundings: time zone, clock, locale, no HOME, path, rights"}


# ---------------------------------------------------------------- the campaign

def run(targets: dict[str, int], budget: float, target: Path) -> dict:
    """Batches of each family in turn, until each has what it is to have or the time is over; what is counted by now."""
    document, deadline = read_json(target), time.monotonic() + budget
    counted = document.setdefault("families", {})
    document |= {"environment": environment(), "commits": list(dict.fromkeys([*document.get("commits", ()),
                                                                              commit(ROOT)]))}
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder).resolve())
        document["planted"] = found_planted(places)
        if not document["planted"]:
            raise SystemExit("a fault that was planted is not seen: the campaign would be blind")
        while time.monotonic() < deadline:
            done = {name: counted.get(name, {}).get("tried", 0) / count for name, count in targets.items()}
            name = min(done, key=done.get)
            if done[name] >= 1:
                break
            its = counted.setdefault(name, {"batches": 0, "tried": 0, "faults": [], "mended": [], "told": {}})
            tried, faults, *told = FAMILIES[name](places, its["batches"])
            its["faults"] += [{"batch": its["batches"], "what": fault.replace(f"{places.folder}/", "")}
                              for fault in faults]
            its |= {"batches": its["batches"] + 1, "tried": its["tried"] + tried}
            for what, count in (told[0] if told else {}).items():
                its["told"][what] = its["told"].get(what, 0) + count
            write_json(target, document)
            print(f"{name} {its['tried']} of {targets[name]}, faults {len(its['faults'])}", *faults, sep="\n    ",
                  flush=True)
    return document


def run_again(target: Path) -> dict:
    """The batches that had faults, once more: those whose faults are gone are noted as mended."""
    document = read_json(target)
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder).resolve())
        for name, its in document["families"].items():
            for batch in sorted({fault["batch"] for fault in its["faults"]}):
                _, faults, *_ = FAMILIES[name](places, batch)
                print(f"{name}, batch {batch}, again: faults {len(faults)}", *faults, sep="\n    ", flush=True)
                before = [fault for fault in its["faults"] if fault["batch"] == batch]
                its["faults"] = [fault for fault in its["faults"] if fault["batch"] != batch]
                its["mended" if not faults else "faults"] += [fault | {"commit": commit(ROOT)} for fault in before]
                write_json(target, document)
    return document


def page(document: dict) -> str:
    """The campaign as a Markdown page."""
    intro = (f"Measured on {hardware_line(document['environment'])}; code: {', '.join(document['commits'])}. A planted "
             f"fault was seen in {document['planted']} of 20 kills. `make faults` goes on with the campaign.")
    lines = ["# Faults", "", intro, "", "| what | tried | at once as it must be | faults found, mended, tried again | "
             "faults left | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for name, its in document["families"].items():
        told = ", ".join(f"{count} {what}" for what, count in its["told"].items())
        mended, left = len(its["mended"]), len(its["faults"])
        lines.append(f"| {TITLES[name]} | {its['tried']} | {its['tried'] - mended - left} | {mended} | {left} "
                     f"| {told} |")
    for state, heading in (("faults", "Left"), ("mended", "Found and mended")):
        there = [(name, fault) for name, its in document["families"].items() for fault in its[state]]
        lines += ["", f"## {heading}", ""] if there else []
        lines += [f"- {name}, batch {fault['batch']}: {' '.join(fault['what'].split())}"
                  + (f" (right at {fault['commit']})" if state == "mended" else "") for name, fault in there]
    return "\n".join(lines) + "\n"


def seconds_of(text: str) -> float:
    """Of a budget such as 90s, 30m or 2h."""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A campaign of faults against the whole of the project.")
    parser.add_argument("--budget", type=seconds_of, default=os.environ.get("BUDGET") or "30m", help="such as 30m")
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=[*FAMILIES])
    parser.add_argument("--short", action="store_true", help="a few of each, of some stages, in less than a minute")
    parser.add_argument("--again", action="store_true", help="the batches that had faults, once more")
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmarks" / "faults.json")
    asked = parser.parse_args(arguments)
    targets = SHORT if asked.short else TARGETS
    if "small disk" in asked.only and not can_mount():
        print("small disk: not tried, no disk can be mounted here")
        asked.only.remove("small disk")
    if asked.short:
        global KILLS
        KILLS, mutants.BATCH = 4, SHORT["mutants"]
        victim.STAGES = {name: victim.STAGES[name] for name in SHORT_STAGES}
    if asked.again:
        document = run_again(asked.out)
    else:
        document = run({name: targets[name] for name in asked.only}, asked.budget, asked.out)
    asked.out.with_suffix(".md").write_text(page(document), encoding="utf-8")
    print(f"written: {shown(asked.out)}")


if __name__ == "__main__":
    main()
