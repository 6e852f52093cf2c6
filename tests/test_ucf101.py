"""UCF-101: fetched from a real HTTP server on loopback, imported from every layout."""

import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from urllib3.util import Retry

import data
from files import HOST, NotWritten, atomic_path
from videos import ucf101
from videos.ucf101 import DataError, describe_missing, fetch, import_tree

TAIL = 64 * 1024  # bytes that are read first, at the archive's end


def clip_names(label: str) -> list[str]:
    return [f"v_{label}_g{group:02d}_c{clip:02d}.avi" for group in range(1, 26) for clip in range(1, 5)]


def zip_of(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"UCF101/{name}", content)
    return buffer.getvalue()


class ArchiveServer(ThreadingHTTPServer):
    """Serves one archive in ranges and counts; its attributes say how it misbehaves."""

    daemon_threads = True

    def __init__(self, archive: bytes):
        super().__init__(("127.0.0.1", 0), ArchiveHandler)
        self.archive, self.etag = archive, '"1"'
        self.ranged, self.status, self.delay = True, None, 0.0
        self.failures = []  # what to do instead, one per request: a status, "drop" in mid-body, or "empty" body
        self.lives = None  # requests until every later one is dropped
        self.before_request = lambda number: None
        self.starts, self.bytes_served, self.connections, self.lock = [], 0, 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/UCF101_videos.zip"

    def handle_error(self, request, client_address):
        """Clients that are killed are part of these tests."""


class ArchiveHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.connections += 1

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"]).groups()
            server.before_request(len(server.starts))
            size = len(server.archive)
            start = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            server.starts.append(start)
            failure = server.failures.pop(0) if server.failures else server.status
            if server.lives is not None and len(server.starts) > server.lives:
                failure = "drop"
            body = server.archive[start:end]
        time.sleep(server.delay)
        self.answer(body, start, size, failure)

    def answer(self, body, start, size, failure):
        self.send_response(failure if isinstance(failure, int) else 206 if self.server.ranged else 200)
        if isinstance(failure, int):
            body = b""
        elif self.server.ranged:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size}")
            self.send_header("ETag", self.server.etag)
        if failure == "empty":
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if failure == "drop":
            body, self.close_connection = body[:len(body) // 2], True
        self.wfile.write(body)
        with self.server.lock:
            self.server.bytes_served += len(body)


@pytest.fixture(scope="module")
def members():
    """100 clips of 40 kB of each of three classes, as random bytes, and files that are no clips."""
    noise = np.random.default_rng(0)
    names = [name for label in ("PullUps", "HandStandPushups", "YoYo") for name in clip_names(label)]
    others = {"readme.txt": b"no clip", "v_PullUps_g01_c01.txt": b"no clip"}
    return {**others, **{name: noise.bytes(40_000) for name in names}}


@pytest.fixture(scope="module")
def archive(members):
    return zip_of(members)


@pytest.fixture
def serve():
    """Starts servers, and stops them after the test."""
    started = []

    def start(content: bytes, context: ssl.SSLContext | None = None) -> ArchiveServer:
        server = ArchiveServer(content)
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses between tries, in seconds; they aren't waited for. The loopback server needs no proxy."""
    taken, backoff = [], Retry.get_backoff_time
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Retry, "get_backoff_time", lambda retry: taken.append(backoff(retry)) or 0)
    return taken


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def of_class(members: dict[str, bytes], label: str) -> dict[str, bytes]:
    return {name: members[name] for name in clip_names(label)}


def raising(error: Exception):
    def function(*_, **__):
        raise error

    return function


def fetch_command(server: ArchiveServer, root: Path) -> list:
    return [sys.executable, data.__file__, "fetch", "--classes", "PullUps", "--url", server.url, "--root", root]


# ---------------------------------------------------------------- fetching

@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_fetch_reads_only_the_wanted_members(tmp_path, serve, members, compression):
    server = serve(zip_of(members, compression))
    paths = fetch(["pullups", "HandStandPushups"], tmp_path, server.url)
    wanted = of_class(members, "PullUps") | of_class(members, "HandStandPushups")
    assert contents(tmp_path) == wanted and len(paths) == 200
    assert {path.parent.name for path in paths} == {"PullUps", "HandstandPushups"}
    directory = sum(46 + len(f"UCF101/{name}") for name in members)
    assert directory < TAIL
    needed = sum(map(len, wanted.values())) + 5 * TAIL  # the tail, with the directory: once, and once per worker
    ratio = server.bytes_served / needed
    print(f"{server.bytes_served:,} bytes served in {server.connections} connections, ratio {ratio:.4f}")
    assert ratio <= 1.02 and server.connections <= 5
    assert len(server.archive) > 1.4 * server.bytes_served


@pytest.mark.parametrize("workers", [1, 4])
def test_a_directory_longer_than_the_tail_is_read_once_and_once_per_worker(tmp_path, serve, members, workers):
    others = {name: b"" for number in range(40) for name in clip_names(f"Other{number}")}
    server = serve(zip_of(members | others))
    fetch(["PullUps"], tmp_path, server.url, workers)
    directory = sum(46 + len(f"UCF101/{name}") for name in members | others)
    assert directory > 4 * TAIL
    assert server.bytes_served <= 1.02 * (100 * 40_000 + (1 + workers) * (directory + TAIL))


def test_fetch_again_reads_only_the_directory(tmp_path, serve, archive):
    server = serve(archive)
    first = fetch(["PullUps"], tmp_path, server.url)
    server.starts.clear()
    times = [path.stat().st_mtime_ns for path in first]
    assert fetch(["PullUps"], tmp_path, server.url) == first
    assert len(server.starts) == 1 and [path.stat().st_mtime_ns for path in first] == times


def test_a_run_killed_half_way_is_completed_by_the_next(tmp_path, serve, archive, members):
    server = serve(archive)
    server.delay = 0.05
    process = subprocess.Popen(fetch_command(server, tmp_path), stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("PullUps/v_*"))) < 30:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = contents_of_finished(tmp_path)
    assert 30 <= len(finished) < 100
    assert finished.items() <= of_class(members, "PullUps").items()
    (tmp_path / "PullUps" / f".v_PullUps_g25_c04-{HOST}-{process.pid}-1.avi").write_bytes(b"half")
    server.starts.clear()
    server.delay = 0
    result = subprocess.run(fetch_command(server, tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "100 clips in" in result.stdout and "B/s" in result.stderr
    assert contents(tmp_path) == of_class(members, "PullUps")  # nothing left over, either
    assert_not_fetched(finished, server)
    print(f"killed after {len(finished)} clips; the second run made {len(server.starts)} requests")


def contents_of_finished(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*/v_*")}


def assert_not_fetched(names, server: ArchiveServer):
    with zipfile.ZipFile(io.BytesIO(server.archive)) as archive:
        starts = {info.header_offset: Path(info.filename).name for info in archive.infolist()}
    assert not set(names) & {starts.get(start) for start in server.starts}


def test_a_server_that_dies_and_comes_back(tmp_path, serve, archive, members, pauses):
    server = serve(archive)
    server.lives = 40
    with pytest.raises(DataError, match=r"v_PullUps_g\d\d_c\d\d.avi: no connection .*run again"):
        fetch(["PullUps"], tmp_path, server.url)
    finished = contents(tmp_path)
    assert 30 <= len(finished) < 45 and finished.items() <= of_class(members, "PullUps").items()
    assert pauses.count(8.0) >= 1
    server.lives = None
    server.starts.clear()
    fetch(["PullUps"], tmp_path, server.url)
    assert contents(tmp_path) == of_class(members, "PullUps")
    assert_not_fetched(finished, server)


def test_passing_failures_are_tried_again_after_growing_pauses(tmp_path, serve, archive, members, pauses):
    server = serve(archive)
    directory, first_clip = [503, 429, None], ["drop", 500, None, "drop", None, "empty"]
    server.failures = directory + first_clip
    fetch(["PullUps"], tmp_path, server.url, workers=1)
    assert contents(tmp_path) == of_class(members, "PullUps")
    assert pauses == [0, 2, 0, 0, 2, 4]  # the 500 is the session's own first, in between


def test_no_network(tmp_path, serve, archive, monkeypatch):
    server = serve(archive)
    server.server_close()
    with pytest.raises(DataError, match=r"no connection .*check network and proxy.*local copy"):
        fetch(["PullUps"], tmp_path, server.url)
    monkeypatch.setattr(socket, "getaddrinfo", raising(socket.gaierror(-2, "Name or service not known")))
    with pytest.raises(DataError, match="no connection"):
        fetch(["PullUps"], tmp_path, "http://somewhere.invalid/UCF101_videos.zip")
    assert not contents(tmp_path)


def test_server_without_ranges_is_not_read_to_its_end(tmp_path, serve, archive):
    server = serve(archive)
    server.ranged = False
    with pytest.raises(DataError, match=r"doesn't serve ranges.*--url"):
        fetch(["PullUps"], tmp_path, server.url)
    assert len(server.starts) == 1


@pytest.mark.parametrize("status, words, tries", [(404, "answers 404 Not Found.*--url", 1),
                                                  (403, "answers 403 Forbidden", 1),
                                                  (503, "answers 503 .*run again later", 5)])
def test_server_that_refuses(tmp_path, serve, archive, status, words, tries):
    server = serve(archive)
    server.status = status
    with pytest.raises(DataError, match=words):
        fetch(["PullUps"], tmp_path, server.url)
    assert len(server.starts) == tries


def test_not_a_zip(tmp_path, serve):
    with pytest.raises(DataError, match=r"File is not a zip file.*--url"):
        fetch(["PullUps"], tmp_path, serve(b"<html>sign in</html>" * 100).url)
    with pytest.raises(DataError, match="has no clips"):
        fetch(["PullUps"], tmp_path, serve(zip_of({"readme.txt": b""})).url)


def test_missing_class(tmp_path, serve, archive):
    with pytest.raises(DataError, match=r"no class PullUp: did you mean PullUps?"):
        fetch(["PullUp"], tmp_path, serve(archive).url)
    assert not contents(tmp_path)


def test_missing_members_are_named_and_the_others_fetched(tmp_path, serve, members):
    lacking = {name: content for name, content in members.items()
               if "PullUps_g07" not in name and name != "v_PullUps_g03_c02.avi"}
    with pytest.raises(DataError, match=r"PullUps has 95 of 100 clips, lacks g07 g03_c02$"):
        fetch(["PullUps"], tmp_path, serve(zip_of(lacking)).url)
    assert len(contents(tmp_path)) == 95


def test_all_classes_of_an_archive_that_lacks_some(tmp_path, serve, archive, members):
    with pytest.raises(DataError, match=r"fetched 300 clips, but .*: ApplyEyeMakeup .* lacks all"):
        fetch(None, tmp_path, serve(archive).url)
    assert len(contents(tmp_path)) == 300


@pytest.mark.parametrize("change", [{"etag": '"2"'}, {"archive": b"x" * 20_000_000}, {"archive": b"x" * 100}])
def test_archive_that_changes_half_way(tmp_path, serve, archive, members, change):
    server = serve(archive)
    server.before_request = lambda number: number == 20 and vars(server).update(change)
    with pytest.raises(DataError, match="changed while it was read: run again"):
        fetch(["PullUps"], tmp_path, server.url)
    assert 10 <= len(contents(tmp_path)) <= 20
    assert contents(tmp_path).items() <= of_class(members, "PullUps").items()


def test_archive_that_changes_unseen_by_size_and_tag(tmp_path, serve, archive, members):
    server = serve(archive)
    moved = archive[100:] + archive[:100]
    server.before_request = lambda number: number == 20 and setattr(server, "archive", moved)
    with pytest.raises(DataError, match=r"g.._c...avi: .*: the archive is damaged or has changed"):
        fetch(["PullUps"], tmp_path, server.url)
    assert contents(tmp_path).items() <= of_class(members, "PullUps").items()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_wrong_crc(tmp_path, serve, members, compression):
    damaged = bytearray(zip_of(members, compression))
    place = damaged.index(b"v_PullUps_g02_c01.avi") + 20_000
    damaged[place] ^= 1
    with pytest.raises(DataError, match=r"v_PullUps_g02_c01.avi: .*CRC.* the archive is damaged"):
        fetch(["PullUps"], tmp_path, serve(bytes(damaged)).url)
    assert "v_PullUps_g02_c01.avi" not in contents(tmp_path)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_disk_that_fills_up(tmp_path, serve, archive, members, monkeypatch):
    @contextmanager
    def full_at_one_clip(path):
        with atomic_path(path) as temporary:
            if path.name == "v_PullUps_g05_c01.avi":
                temporary.symlink_to("/dev/full")
            yield temporary

    monkeypatch.setattr(ucf101, "atomic_path", full_at_one_clip)
    with pytest.raises(NotWritten, match=r"v_PullUps_g05_c01.avi: not written, the disk is full: make room there"):
        fetch(["PullUps"], tmp_path, serve(archive).url)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert contents(tmp_path).items() <= of_class(members, "PullUps").items()


def test_another_file_at_a_clips_place_is_kept(tmp_path, serve, archive):
    path = tmp_path / "PullUps" / "v_PullUps_g01_c01.avi"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"another file than in http.* \(4 bytes, not 40000\): move it away"):
        fetch(["PullUps"], tmp_path, serve(archive).url)
    assert contents(tmp_path) == {path.name: b"mine"}


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes the certificate, is not here")
def test_a_certificate_that_cannot_be_verified(tmp_path, serve, archive):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve(archive, context)
    url = server.url.replace("http:", "https:")
    with pytest.raises(DataError, match=r"certificate can't be verified: .*REQUESTS_CA_BUNDLE"):
        fetch(["PullUps"], tmp_path / "out", url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert len(fetch(["PullUps"], tmp_path / "out", url)) == 100


def test_command_line_error_is_one_line(tmp_path, serve, archive):
    server = serve(archive)
    server.ranged = False
    result = subprocess.run(fetch_command(server, tmp_path), capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: http://127.0.0.1") and result.stderr.count("\n") == 1


# ---------------------------------------------------------------- importing

def lay_out(root: Path, members: dict[str, bytes], layout: str) -> Path:
    """Writes the clips as one of the copies that people have; the folder to name is returned."""
    for number, (name, content) in enumerate(sorted(members.items())):
        label = ucf101.canonical_class(name.split("_")[1])
        folder = {"tree": f"UCF-101/{label}", "flat": "UCF101", "here": ".",
                  "kaggle": f"{('train', 'val', 'test')[number % 3]}/{label}"}[layout]
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(content)
    if layout == "kaggle":
        (root / "train.csv").write_text("clip_name,clip_path,label\n")
    return root


@pytest.fixture(scope="module")
def small_members():
    names = clip_names("PullUps") + clip_names("HandStandPushups")
    return {name: f"{name} ".encode() * 50 for name in names}


@pytest.mark.parametrize("layout", ["tree", "flat", "here", "kaggle"])
@pytest.mark.parametrize("mode", ["link", "copy", "reference"])
def test_import_of_every_layout(tmp_path, small_members, layout, mode):
    src, out = lay_out(tmp_path / "src", small_members, layout), tmp_path / "out"
    paths = import_tree(src, out, ["PullUps", "handstandpushups"], mode)
    assert len(paths) == 200 and contents(out) == small_members
    assert sorted(path.name for path in out.iterdir()) == ["HandstandPushups", "PullUps"]
    source = next(src.rglob(paths[0].name))
    assert paths[0].samefile(source) == (mode != "copy") and paths[0].is_symlink() == (mode == "reference")
    assert import_tree(src, out, None, mode) == paths
    assert len(list(out.rglob("*"))) == 202 and describe_missing(out, ["PullUps", "HandstandPushups"]) == []


def test_import_of_other_videos(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    names = "cooking/a.mp4 cooking/B.MOV train/walking/c.webm walking/.tmp-1-d.avi stray.mkv val/e.avi"
    for name in names.split():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(name)
    paths = [path.relative_to(out).as_posix() for path in import_tree(src, out, None)]
    assert paths == ["cooking/B.MOV", "cooking/a.mp4", "walking/c.webm"]
    assert sorted(contents(out)) == ["B.MOV", "a.mp4", "c.webm"]
    assert describe_missing(out, ["cooking", "walking"]) == []


def test_import_says_what_is_missing_by_class_and_clip(tmp_path, small_members, capsys):
    names = [name for name in small_members if not re.search("_g04_|g05_c03", name)]
    partial = {name: small_members[name] for name in names}
    src, out = lay_out(tmp_path / "src", partial, "flat"), tmp_path / "out"
    data.main(["import", "--from", str(src), "--copy", "--classes", "all", "--root", str(out)])
    assert capsys.readouterr().out.splitlines()[1:] == ["HandstandPushups has 95 clips, lacks g04 g05_c03",
                                                        "PullUps has 95 of 100 clips, lacks g04 g05_c03"]


def test_import_errors_name_the_file_and_the_cure(tmp_path, small_members, monkeypatch):
    src, out = lay_out(tmp_path / "src", small_members, "flat"), tmp_path / "out"
    (src / "empty").mkdir()
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        import_tree(tmp_path / "nowhere", out, None)
    with pytest.raises(DataError, match="no class Punch: there are CLASSES='HandstandPushups PullUps'"):
        import_tree(src, out, ["Punch"])
    with pytest.raises(DataError, match="has no clips"):
        import_tree(src / "empty", out, None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", raising(OSError(18, "Invalid cross-device link")))
        with pytest.raises(DataError, match=r"can't link .*Invalid cross-device link.*--copy"):
            import_tree(src, out, ["PullUps"])
    assert not contents(out)


def test_import_overwrites_nothing(tmp_path, small_members):
    src = lay_out(tmp_path / "src", small_members, "flat")
    mine = tmp_path / "out" / "PullUps" / "v_PullUps_g01_c02.avi"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"another file than in .*move it away"):
        import_tree(src, tmp_path / "out", ["PullUps"], "copy")
    assert mine.read_bytes() == b"mine"
    (src / "PullUps").mkdir()
    (src / "PullUps" / "v_PullUps_g09_c01.avi").write_bytes(b"differs")
    with pytest.raises(DataError, match="two clips of one class and name: rename one"):
        import_tree(src, tmp_path / "other", ["PullUps"], "copy")
