"""The web page, in a process of its own and in a real browser."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

import app
from config import ROOT, get_recipe
from conftest import moving_square, write_video
from deployment.answer import answer
from deployment.desk import MOST_GUESTS
from deployment.prepared import load_model
from experiment import load_or_train
from synthetic import write, write_fast, write_song
from videos.library import open_data

pytestmark = pytest.mark.slow

TINY = {"precision": "float32", "modality": "diff", "num_frames": 4, "size": 64, "train_views": 1, "epochs": 8,
        "test_clips": 1, "batch_size": 6, "grid": "1x1"}
MOST_MB, MOST_MINUTES = 1, 0.2
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A data set with a trained 2D-CNN, and its model card."""
    data = open_data(str(tiny_dataset), results=tmp_path_factory.mktemp("results"))
    load_or_train("2d", data, get_recipe("recommended", "2d", **TINY), "packaged", 0,
                  cache=tmp_path_factory.mktemp("cache"))
    cards = data.results / "model_cards"
    cards.mkdir()
    (cards / "2d-cnn.md").write_text("# Model card: 2D-CNN\n\n| fact | value |\n| --- | --- |\n| seed | 0 |\n")
    return data


@pytest.fixture(scope="module")
def model(trained):
    return load_model("2d", str(trained.root), trained.results)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Videos of several kinds, by name."""
    folder = tmp_path_factory.mktemp("clips")
    scenes = np.concatenate([np.resize(moving_square(label, 90 + label), (50, 96, 128, 3)) for label in (0, 1, 2)])
    for label, name in enumerate(("right", "down")):
        write_video(folder / f"{name}.avi", moving_square(label, 77), codec="XVID")
    write(folder / "long.mp4", len(scenes), draw=lambda number: scenes[number], size=(128, 96))
    write_fast(folder / "endless.mp4", 400)
    write_song(folder / "song.mp4")
    whole = (folder / "right.avi").read_bytes()
    (folder / "cut.avi").write_bytes(whole[:len(whole) * 2 // 3])
    (folder / "notes.mp4").write_text("no video " * 50)
    (folder / "huge.mp4").write_bytes(bytes(1_200_000))
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {folder / 'long.mp4'}\n")
    (folder / "list.ts").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{folder / 'long.mp4'}\n"
                                    "#EXT-X-ENDLIST\n")
    return {path.name: path for path in folder.iterdir()}


class Page:
    """A page that is served, the folder of what is sent to it, and what it printed."""

    def __init__(self, port: int, folder: Path, said: list[str]):
        self.port, self.folder, self.said, self.url = port, folder, said, f"http://127.0.0.1:{port}"

    def request(self, method: str, path: str, body=None, headers=None, **settings) -> tuple[int, dict, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers or {}, **settings)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, dict(response.getheaders()), text

    def ask(self, body, name="clip.avi", model="2d", kind="application/octet-stream") -> tuple[int, dict]:
        """Status, and the last line of what was answered."""
        status, _, text = self.request("POST", f"/ask?model={model}&name={quote(name)}", body, {"Content-Type": kind})
        return status, json.loads(text.splitlines()[-1])

    def left(self) -> list[Path]:
        """Files that were sent and are still there."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def page(trained, model, tmp_path_factory):
    """The page in a process of its own, ended by Ctrl-C; what killed ones left behind is there before it starts."""
    pytest.importorskip("starlette", reason="no starlette here: no page was served")
    pytest.importorskip("uvicorn", reason="no uvicorn here: no page was served")
    folder = tmp_path_factory.mktemp("sent")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / f"video-page-{ended.pid}-abandoned").mkdir()
    script = (f"import sys; sys.path[:0] = {sys.path!r}\nimport app\nfrom pathlib import Path\n"
              f"app.locate = lambda _: ('tiny', Path({str(trained.root)!r}), Path({str(trained.results)!r}))\n"
              f"app.main({['--dataset', str(trained.root), '--port', '0', '--most-mb', str(MOST_MB)]!r}"
              f" + ['--most-minutes', '{MOST_MINUTES}'])")
    with subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(folder)}, text=True,
                          stdout=subprocess.PIPE) as process:
        said = [process.stdout.readline(), process.stdout.readline()]
        port = int(re.search(r"http://127\.0\.0\.1:(\d+) ", said[1])[1])
        yield Page(port, folder, said)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stdout.read().endswith("closed\n")
    assert not list(folder.iterdir())


@contextmanager
def opened(browser, page, width=1280):
    """The page in a browser without internet, in a session of its own; and all that it asked for or complained of."""
    with browser.new_context(viewport={"width": width, "height": 900}) as session:
        told = []
        session.route(lambda url: not url.startswith((page.url, "data:", "blob:")),
                      lambda route: (told.append(route.request.url), route.abort()))
        tab = session.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.goto(page.url)
        yield tab, told


def ask(tab, file: Path) -> None:
    tab.get_by_label("choose a file").set_input_files(file)
    tab.get_by_label("Model", exact=True).select_option("2D-CNN")
    tab.get_by_role("button", name="Ask").click()


def wait_until(true) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


# ---------------------------------------------------------------- what is answered

def test_a_clip_is_answered_as_on_the_command_line(browser, page, clips, model):
    expected = answer(clips["right.avi"], model)
    with opened(browser, page) as (tab, told):
        ask(tab, clips["right.avi"])
        assert tab.locator("#said").inner_text() == expected.predicted
        order = expected.probabilities.argsort()[::-1]
        assert tab.locator(".bars .name").all_inner_texts() == [expected.classes[i] for i in order]
        assert tab.locator(".bars .share").all_inner_texts() == [percent(expected.probabilities[i]) for i in order]
        assert f"{expected.unfamiliarity:.2f}" in tab.locator("#familiarity").inner_text()
        assert tab.locator(".strip img").count() == TINY["num_frames"] and not tab.locator(".chart").count()
        assert tab.locator(".strip rect.heat[width='100.0']").count() == 1
        near = tab.locator(".nearest li")
        assert near.locator("strong").all_inner_texts() == [its["label"] for its in expected.nearest]
        assert near.locator("img").count() == 3
        tab.get_by_text("Model card of the 2D-CNN").click()
        assert tab.locator(".card td").all_inner_texts() == ["seed", "0"]
        images = "Promise.all([...document.images].map(image => image.decode())).then(all => all.length)"
        assert tab.evaluate(images) == TINY["num_frames"] + 3
        assert "can't play it" in tab.locator("#chosen").inner_text()  # XviD
        assert tab.locator(".time:enabled").count() == 0
        assert told == []
    assert page.left() == []


def test_a_long_video_is_told_over_time_on_any_screen(browser, page, clips, model):
    expected = answer(clips["long.mp4"], model)
    with opened(browser, page, width=390) as (tab, told):
        ask(tab, clips["long.mp4"])
        tab.locator("#segments").wait_for()
        rows = [row.locator("td").all_inner_texts() for row in tab.locator("#segments tbody tr").all()]
        segments = expected.segments()
        assert [(row[2], row[3]) for row in rows] == [(its["class"], percent(its["probability"])) for its in segments]
        assert tab.locator(".chart").evaluate("image => image.naturalWidth") > 600
        tab.locator("details").evaluate("details => details.open = true")
        for width in (390, 1280):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        last = tab.locator(".strip .time").last
        last.click()
        moment = tab.locator("#player").evaluate("player => player.currentTime")
        assert moment == pytest.approx(float(last.get_attribute("data-seconds"))) and moment > 0
        assert told == []
    assert page.left() == []


def test_a_recording_of_the_camera_is_answered(browser, page):
    with opened(browser, page) as (tab, told):
        tab.get_by_role("button", name="Record with the camera").click()
        stop = tab.get_by_role("button", name="Stop the recording")
        stop.wait_for()
        tab.wait_for_timeout(1200)
        stop.click()
        tab.get_by_text(re.compile(r"recording\.\w+ \(0\.\d MB\)")).wait_for()
        tab.get_by_role("button", name="Ask").click()
        tab.locator("#said").wait_for()
        assert tab.locator(".strip img").count() == TINY["num_frames"] and told == []


def test_two_sessions_at_once_get_their_own_answers(browser, page, clips, model):
    expected = [answer(clips[name], model).predicted for name in ("right.avi", "down.avi")]
    assert expected[0] != expected[1]
    with opened(browser, page) as (one, _), opened(browser, page) as (other, _):
        for _ in range(2):
            ask(one, clips["right.avi"])
            ask(other, clips["down.avi"])
            assert [tab.locator("#said").inner_text() for tab in (one, other)] == expected
            assert [tab.locator(".lead .file").inner_text() for tab in (one, other)] == ["right.avi", "down.avi"]
    assert page.left() == []


# ---------------------------------------------------------------- what is refused

def test_what_is_refused_is_told_why(browser, page, clips):
    refused = {"notes.mp4": "notes.mp4: is no video, or of a kind that isn't known here (450 bytes).",
               "cut.avi": "cut.avi: breaks off after frame",
               "song.mp4": "song.mp4: holds no moving picture",
               "endless.mp4": "endless.mp4: lasts 0.22 minutes, longer than 0.2, the most that is taken.",
               "huge.mp4": "huge.mp4 is larger than 1 MB, the most that is taken."}
    with opened(browser, page) as (tab, told):
        reason = tab.get_by_role("alert")
        for name, words in refused.items():
            ask(tab, clips[name])
            reason.get_by_text(words).wait_for()
            assert str(page.folder) not in tab.content() and "SKIP_BROKEN" not in tab.content()
        assert all("422" in line for line in told)  # the browser's own word on what was refused
        ask(tab, clips["right.avi"])
        tab.locator("#said").wait_for()
        assert reason.is_hidden()
    assert page.left() == []


def test_no_more_is_received_than_is_allowed(page):
    def endless():
        for _ in range(1000):
            sent.append(100_000)
            yield bytes(100_000)

    sent = []
    with pytest.raises(OSError):  # the server hangs up
        page.ask(endless())
    assert sum(sent) < 50e6
    with socket.create_connection(("127.0.0.1", page.port)) as line:  # told by the header, before anything is sent
        line.sendall(b"POST /ask?model=2d HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
                     b"Content-Length: 1000001\r\n\r\n")
        said = line.makefile("rb").read().decode()
    assert said.startswith("HTTP/1.1 413") and "larger than 1 MB" in said
    assert page.left() == []


@pytest.mark.parametrize("name", ["list.mp4", "list.ts"])
def test_a_list_of_other_files_is_no_video(page, clips, name):
    status, said = page.ask(clips[name].read_bytes(), name)
    assert status == 422 and "is no video" in said["error"]


def test_names_lead_nowhere_and_are_only_text(page, clips):
    name = "../../x/<img src=x onerror=alert(1)>.avi"
    status, said = page.ask(clips["right.avi"].read_bytes(), name)
    assert status == 200 and "&lt;img src=x onerror=alert(1)&gt;.avi" in said["answer"]
    assert "onerror=alert(1)>" not in said["answer"] and page.left() == []


def test_other_questions_are_refused(page):
    assert page.ask(b"x", model="3d") == (400, {"error": "There is no such model here."})
    assert page.ask(b"x", kind="text/plain")[0] == 415  # what pages of others can send unasked
    assert page.ask(b"")[0] == 422


@pytest.mark.parametrize("path", [
    "/etc/passwd", "/file=/etc/passwd", "/../../../etc/passwd", "/static/", "/static//etc/passwd",
    "/static/../page.html.j2", "/static/%2e%2e/page.html.j2", "/static/..%2fpage.html.j2"])
def test_no_other_file_is_served(page, path):
    status, _, text = page.request("GET", path)
    assert status == 404 and text == "Not Found"


def test_headers_keep_others_out(page):
    status, headers, text = page.request("GET", "/", headers={"Origin": "http://example.org"})
    assert status == 200 and not any(name.lower().startswith("access-control") for name in headers)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and not re.search(r"(?:src|href)=\"(?:http|//)", text)
    status, headers, _ = page.request("GET", "/", headers={"Host": "rebound.example.org"})
    assert status == 400 and "content-security-policy" in headers


def test_a_crowd_is_asked_to_wait(page, clips):
    with ExitStack() as crowd:
        for _ in range(MOST_GUESTS):
            line = crowd.enter_context(socket.create_connection(("127.0.0.1", page.port)))
            line.sendall(b"POST /ask?model=2d HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
                         b"Content-Length: 1000\r\n\r\nbegun")
        wait_until(lambda: len(page.left()) == MOST_GUESTS)
        assert page.ask(clips["right.avi"].read_bytes())[0] == 503
    wait_until(lambda: page.left() == [])
    assert page.ask(clips["right.avi"].read_bytes())[0] == 200


def test_who_goes_away_leaves_nothing_behind(page, clips):
    body = clips["long.mp4"].read_bytes()
    for sent in (body, body[:2000]):  # while it is answered, and while it is sent
        with socket.create_connection(("127.0.0.1", page.port)) as line:
            line.sendall(b"POST /ask?model=2d HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
                         b"Content-Length: %d\r\n\r\n" % len(body) + sent)
            time.sleep(0.3)
    wait_until(lambda: page.left() == [])
    assert page.ask(clips["right.avi"].read_bytes())[0] == 200


# ---------------------------------------------------------------- the command

def test_it_says_where_it_is_and_what_can_be_asked(page):
    assert page.said == ["models of tiny: 2D-CNN\n", f"page: {page.url} (Ctrl-C ends it)\n"]
    assert [folder.name for folder in page.folder.iterdir() if folder.name.endswith("abandoned")] == []


def test_only_this_machine_reaches_it_unless_told_otherwise(monkeypatch, trained, capsys):
    pytest.importorskip("uvicorn")
    assert app._parser().parse_args([]).host == "127.0.0.1"
    ran = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: ran.append(server.config.app))
    monkeypatch.setattr("deployment.server.Desk", lambda *_: None)
    monkeypatch.setattr(app, "locate", lambda _: ("tiny", trained.root, trained.results))
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        app.main(["--host", host, "--port", "0"])
        assert ("there is no password" in capsys.readouterr().err) == warned
    assert len(ran) == 3


def test_without_its_packages_it_says_what_to_install(tmp_path):
    script = (f"import sys; sys.path[:0] = {sys.path!r}\nimport importlib.util as util\nfind = util.find_spec\n"
              "util.find_spec = lambda name: None if name == 'uvicorn' else find(name)\nimport app\napp.main([])")
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stdout == ""
    assert ran.stderr == "error: uvicorn missing: pip install -r requirements-app.txt -c constraints.txt\n"
    needed = (ROOT / "requirements-app.txt").read_text()
    assert all(re.search(f"^{name}>=", needed, re.MULTILINE) for name in app.NEEDED)


def test_a_port_in_use_and_a_missing_model_are_told(monkeypatch, trained, tmp_path):
    pytest.importorskip("uvicorn")
    with app.listen("127.0.0.1", 0) as taken, pytest.raises(SystemExit, match=r"^error: can't listen at 127.0.0.1, .*"
                                                            r"--port$"):
        app.main(["--port", str(taken.getsockname()[1])])
    with pytest.raises(SystemExit, match=r"error: can't listen at no\.such\.host\.invalid"):
        app.main(["--host", "no.such.host.invalid"])
    with pytest.raises(SystemExit, match="error: DATASET=nowhere"):
        app.main(["--dataset", "nowhere"])
    monkeypatch.setattr(app, "locate", lambda _: ("tiny", trained.root, tmp_path))
    with pytest.raises(SystemExit, match=r"no trained model there; run make run DATASET=demo"):
        app.main(["--port", "0"])
