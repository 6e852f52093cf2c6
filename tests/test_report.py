"""Model cards hold what was measured and code that runs; pages open from disk on any screen."""

import base64
import io
import itertools
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import evaluation
import metrics
import plots
import report
from classical import classifiers
from comparison import load_results
from config import ROOT, get_recipe
from experiment import load_or_train
from files import ClassicalFiles, ResultFiles, read_json, read_predictions, update_json
from studies.filmstrips import animation
from videos.library import open_data
from videos.splits import clip_file

pytestmark = pytest.mark.slow

TINY = {"num_frames": 2, "train_views": 1, "epochs": 1, "test_clips": 2, "batch_size": 12, "precision": "float32"}
IGNORED = shutil.ignore_patterns("*.pth", "report", "model_cards")  # in copies of results
COLOURS = np.random.default_rng(0).integers(0, 256, (180, 640, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """Data, and results of two CNNs and a classical model that were trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    data = open_data(str(tiny_dataset), results=folder)
    for kind in ("3d", "2d"):
        recipe = get_recipe("recommended", kind, **TINY)
        run = load_or_train(kind, data, recipe, "packaged", 0, cache=folder / "cache")
        evaluation.evaluate(run)
    evaluation.measure_latency(run, repeats=0.05)
    model = classifiers.load_or_fit("knn", data, cache=folder / "cache")
    classifiers.evaluate(model)
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    plots.save_figure(figure, data.results / "performance_plots" / "comparison_metrics.png")
    return data


def png(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def shows(**data) -> nbformat.NotebookNode:
    return new_output("display_data", data={name.replace("_", "/"): value for name, value in data.items()})


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    """Two executed notebooks with what the real ones show, and with what pages must not keep."""
    folder = tmp_path_factory.mktemp("notebooks")
    wide = pd.DataFrame(np.arange(60).reshape(2, 30)).add_prefix("column ").rename_axis("name")
    outputs = [new_output("stream", text="epoch 1\n" + "word " * 80),
               shows(image_png=png(Image.fromarray(COLOURS))),
               shows(image_png=png(Image.new("RGB", (900, 60), "white"))),
               new_output("display_data", data={"image/png": png(Image.new("RGB", (900, 60), "grey"))},
                          metadata={"image/png": {"width": 600}}),
               shows(text_html=wide.to_html(), text_plain="wide"),
               shows(text_html=animation(COLOURS.reshape(3, 60, 640, 3), "a <clip> & 'more'")),
               shows(text_html='<script src="https://example.org/a.js"></script>'
                               '<iframe src="https://example.org"></iframe>'
                               '<link href="https://example.org/a.css">'),
               shows(text_markdown="### Deep\n\n**told** in [another](two.ipynb#Part)")]
    cells = [new_markdown_cell("# First & foremost\n\nWhat it is about."), new_markdown_cell("#### Too deep"),
             new_code_cell(f"x = '{'long ' * 60}'  # {'comment ' * 20}\n@decorated\ndef f(): return 1.5",
                           outputs=outputs, execution_count=1),
             new_markdown_cell("## Twice"), new_markdown_cell("## Twice")]
    nbformat.write(new_notebook(cells=cells), folder / "one.ipynb")
    cells = [new_markdown_cell(f"# two\n\nNo space, {'oneword' * 20}.\n\n## Part")]
    nbformat.write(new_notebook(cells=cells), folder / "two.ipynb")
    return folder


@pytest.fixture(scope="module")
def built(trained, notebooks) -> Path:
    return report.build(trained.results, notebooks).parent


@pytest.fixture(scope="module")
def pages(built) -> dict[str, BeautifulSoup]:
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(built.iterdir())}
    return {name: BeautifulSoup(text, "html.parser") for name, text in texts.items()}


def test_the_report_needs_no_torch():
    script = f"import sys; sys.path[:0] = {sys.path!r}; import report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# ---------------------------------------------------------------- model cards

def code_of(card: str) -> str:
    return re.search(r"```python\n(.*)```", card, re.DOTALL)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2d-cnn", "3d-cnn", "knn"])
def test_the_code_on_a_card_gives_the_tested_probabilities(trained, name, monkeypatch, tmp_path):
    cards = {path.stem: path.read_text(encoding="utf-8") for path in report.write_cards(trained.results)}
    assert list(cards) == ["2d-cnn", "3d-cnn", "knn"]
    expected = read_predictions(trained.results / "predictions" / f"{name}.csv").iloc[-1]
    clip = clip_file(trained.root, expected["clip_path"])
    code = code_of(cards[name])
    assert code.count('"clip.avi"') == 1 and (name != "knn" or '".cache"' in code)
    code = code.replace('"clip.avi"', repr(str(clip))).replace('".cache"', repr(str(tmp_path)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    names = {}
    exec(code, names)
    for label, p in names["probabilities"].items():
        assert p == pytest.approx(expected[f"p_{label}"], abs=2e-3)  # activations are kept in float16


def card_with(trained, wrong: int, groups: int = 1) -> tuple[str, pd.DataFrame]:
    """The 2D-CNN's card, as if its last `wrong` test videos had been taken for PullUps, a class in `groups` groups."""
    stats = load_results(trained.results)["2D-CNN"]
    table = stats["predictions"].assign(predicted=stats["predictions"]["label"])
    if groups > 1:
        table["group"] = [f"g{i % groups}" for i in range(len(table))]
    table.loc[len(table) - wrong:, "predicted"] = "PullUps"
    others = (1 - np.linspace(0.6, 0.9, len(table))) / 2
    for name in stats["classes"]:
        table[f"p_{name}"] = np.where(table["predicted"] == name, 1 - 2 * others, others)
    stats |= {**metrics.classification_metrics(table), "predictions": table}
    return report.card("2D-CNN", stats, ResultFiles(trained.results, "2d", stats["backbone"])), table


def test_a_card_tells_the_statistics_and_the_weak_spots(trained):
    card, table = card_with(trained, wrong=2)
    stats = read_json(ResultFiles(trained.results, "2d", "").stats)
    clustered = metrics.group_bootstrap(table)
    for text in (*(f"| {fact} | {value} |" for fact, value in stats["facts"].items()), stats["split"]["sha256"],
                 f"{stats['latency']['model'] * 1e3:.1f} ms",
                 f"{metrics.accuracy_interval(table).low:.3f} to",
                 f"{clustered.low:.3f} to {clustered.high:.3f}",
                 f"{stats['train_memory_mb']['peak']:.0f} MiB",
                 f"| torch | {stats['environment']['torch']} |", "Misclassified: 2 of", "Lowest recall: PushUps",
                 "PushUps taken for PullUps, 2 of 2", "The worst groups",
                 f"expected calibration error {metrics.expected_calibration_error(table):.3f}"):
        assert text in card, text
    last = table.iloc[-1]
    assert f"| PushUps | {last['group']} |" in card
    fine, _ = card_with(trained, wrong=0)
    assert "No class and no group stands out" in fine and "The worst groups" not in fine
    assert "so says nothing" in fine


@pytest.mark.parametrize("weights, says", [("none", "No pretrained weights"), ("timm", "Pretrained weights: timm"),
                                           ("own", "Pretrained weights: own")])
def test_a_card_says_what_the_weights_were(trained, weights, says):
    stats = {**load_results(trained.results)["2D-CNN"], "weights": weights}
    assert says in report.card("2D-CNN", stats, ResultFiles(trained.results, "2d", stats["backbone"]))


def test_a_card_says_when_resampling_says_nothing(trained):
    says = {(wrong, groups): "so says nothing" in card_with(trained, wrong, groups)[0]
            for wrong in (0, 1) for groups in (1, 2)}
    assert says == {(0, 1): True, (0, 2): True, (1, 1): True, (1, 2): False}


def test_a_classical_card_tells_its_statistics(trained):
    stats = read_json(ClassicalFiles(trained.results, "knn").stats)
    card = report.write_cards(trained.results)[-1].read_text(encoding="utf-8")
    for text in ("Model card: k-nearest neighbours", f"{stats['cv_mean']:.3f}", stats["cv_how"],
                 f"{stats['fit_time']:.1f} s", f"| scikit-learn | {stats['environment']['scikit-learn']} |"):
        assert text in card, text


def test_predictions_of_another_model_are_refused(trained, tmp_path):
    root = shutil.copytree(trained.results, tmp_path / "results", ignore=IGNORED)
    files = ResultFiles(root, "3d", "")
    update_json(files.stats, tables={"3d-cnn": "another"})
    with pytest.raises(ValueError, match=r"3d-cnn.csv: not of the model that .*best_3d-cnn.json"):
        report.write_cards(root)
    assert not (root / "model_cards").exists()
    files.predictions.unlink()
    assert [path.stem for path in report.write_cards(root)] == ["2d-cnn", "knn"]  # of the models that are there


# ---------------------------------------------------------------- pages

def test_pages_hold_all_they_show(built, pages):
    assert {"index.html", "one.html", "two.html", "card_2d-cnn.html", "card_knn.html"} < set(pages)
    assert sum(path.stat().st_size for path in built.iterdir()) < 2e6
    for name, page in pages.items():
        assert not page(["script", "iframe", "link", "object", "embed", "video"]), name
        assert all(image["src"].startswith("data:image/webp;base64,") for image in page("img")), name
        assert not re.search(r"url\(|@import", "".join(style.text for style in page("style"))), name
        assert "default-src 'none'" in page.find("meta", attrs={"http-equiv": True})["content"]
        for link in page("a"):
            file, _, part = link["href"].partition("#")
            target = pages[file or name]
            assert not part or target.find(id=part), (name, link)
    index = pages["index.html"].get_text()
    assert "2D-CNN" in index and "What it is about." in index and "k-nearest neighbours" in index


def test_pages_are_for_every_reader(pages):
    for name, page in pages.items():
        assert page.html["lang"] == "en" and len(page("h1")) == 1 and page.main["id"] == "content"
        assert page.find("a")["href"] == "#content"
        levels = [int(heading.name[1]) for heading in page(report.HEADINGS)]
        assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels)), (name, levels)
        ids = [element["id"] for element in page(id=True)]
        assert len(ids) == len(set(ids)), name
        assert all(image.get("alt") for image in page("img")), name
        for box in page(["pre", "table"]):
            box = box if box.name == "pre" else box.parent
            assert box["tabindex"] == "0" and box["aria-label"], name
    one = pages["one.html"]
    assert [image["alt"] for image in one("img")] == [
        "Figure 1: Too deep", "Figure 2: Too deep", "Figure 3: Too deep", "animation: a <clip> & 'more'"]
    assert one.find("details", open=True).img and not one.find("details", class_="code").has_attr("open")
    assert one.title.text == "First & foremost" and pages["two.html"].h1.text == "two"
    assert [cell["scope"] for cell in one.table("th")[:2]] == ["col", "col"]


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["a", "b c", "content"])), max_size=8))
def test_headings_are_put_in_order(headings):
    written = "".join(f"<h{level}>{text}</h{level}>" for level, text in headings)
    page = BeautifulSoup(report.finish(f'<main id="content"><h1>title</h1>{written}</main>'), "html.parser")
    found = page(report.HEADINGS)
    levels = [int(heading.name[1]) for heading in found]
    assert levels[0] == 1 == levels.count(1) and len({element["id"] for element in page(id=True)}) == len(found) + 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert [heading.get_text() for heading in found] == ["title", *(text for _, text in headings)]


def as_webp(picture: bytes) -> tuple[Image.Image, int]:
    """A PNG as the report shows it, and its bytes."""
    url, *size = report.webp(f"data:image/png;base64,{base64.b64encode(picture).decode()}")
    data = base64.b64decode(url.removeprefix("data:image/webp;base64,"))
    kept = Image.open(io.BytesIO(data))
    assert kept.format == "WEBP" and list(kept.size) == size
    return kept.convert("RGB"), len(data)


def test_pictures_keep_what_they_show():
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    data = io.BytesIO()
    figure.savefig(data)
    plt.close(figure)
    with Image.open(data) as diagram:
        assert np.array_equal(as_webp(data.getvalue())[0], diagram.convert("RGB"))
    y, x = np.mgrid[:1:300j, :1:400j]
    photo = Image.fromarray((np.stack([x, y, (x + y) / 2], axis=-1) * 255).astype(np.uint8))
    assert photo.getcolors(report.COLOURS) is None
    data = base64.b64decode(png(photo))
    kept, size = as_webp(data)
    assert size < len(data) and np.abs(np.asarray(kept, float) - np.asarray(photo)).mean() < 3
    moving = BeautifulSoup(animation(COLOURS.reshape(3, 60, 640, 3), ""), "html.parser").img["src"]
    page = BeautifulSoup(report.finish(f'<main><h1>title</h1><img src="{moving}"></main>'), "html.parser")
    assert page.img["src"] == moving


def test_an_earlier_report_stays_until_the_new_one_is_whole(trained, notebooks, tmp_path, monkeypatch):
    results = shutil.copytree(trained.results, tmp_path / "results", ignore=IGNORED)
    (results / "report").mkdir()
    (results / "report" / "index.html").write_text("old")

    write = Path.write_text

    def fails(path, *content, **how):
        if path.name == "two.html":
            raise OSError("disk full")
        return write(path, *content, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", fails)
        with pytest.raises(OSError, match="disk full"):
            report.build(results, notebooks)
    assert [path.read_text(encoding="utf-8") for path in (results / "report").iterdir()] == ["old"]
    assert not list(results.glob(".report*"))
    index = report.build(results, notebooks)
    assert index == results / "report" / "index.html" and "Headline table" in index.read_text(encoding="utf-8")
    assert not list(results.glob(".report*"))


def test_what_is_missing_is_told(trained, notebooks, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no notebooks there; .*make run"):
        report.build(trained.results, tmp_path)
    cells = [new_code_cell("1", execution_count=1), new_code_cell("2"), new_code_cell("")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "half.ipynb")
    with pytest.raises(ValueError, match=r"half\.ipynb: 1 of 2 code cells were not executed; run make run"):
        report.build(trained.results, tmp_path)
    monkeypatch.setenv("DATASET", "nowhere")
    with pytest.raises(SystemExit, match="error: DATASET=nowhere"):
        report.main([])


def test_command_line(trained, notebooks, tmp_path, monkeypatch, capsys):
    results = shutil.copytree(trained.results, tmp_path / "results", ignore=IGNORED)
    shutil.copytree(notebooks, results / "notebooks")
    monkeypatch.setattr(report, "locate", lambda dataset: (dataset, trained.root, results))
    monkeypatch.setenv("DATASET", "mine")
    report.main([])
    said = capsys.readouterr().out
    assert re.search(r"report: 6 pages, \d\.\d MB: .*report/index.html\nmodel cards: ", said)


# ---------------------------------------------------------------- in a browser

@contextmanager
def opened(browser, path: Path, width: int, scheme: str):
    """A page with all that can be unfolded, and what it told: console messages, errors, other requests than files."""
    told = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or told.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield page, told
    page.close()


# Lowest contrast of text to the ground behind it (WCAG 2.2, 1.4.3), with the text.
CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length == 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    if (!node.textContent.trim() || !node.parentElement.checkVisibility()) continue;
    const colour = parse(getComputedStyle(node.parentElement).color);
    const pair = [light(colour), light(ground(node.parentElement))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < worst[0]) worst = [contrast, node.textContent];
  }
  return worst;
})()"""
BROKEN = ("Promise.all([...document.images].map(i => i.decode().then(() => 0, () => i.alt)))"
          ".then(all => [document.images.length, all.filter(x => x)])")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_in_a_browser(built, pages, browser, width, scheme):
    for path in sorted(built.iterdir()):
        with opened(browser, path, width, scheme) as (page, told):
            assert page.evaluate("innerWidth") == width
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
            contrast, text = page.evaluate(CONTRAST)
            assert contrast >= 4.5, (path.name, contrast, text)
            images, broken = page.evaluate(BROKEN)
            assert not broken and images == len(pages[path.name]("img")), path.name
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
            assert told == [], path.name


def test_a_picture_is_as_wide_as_the_notebook_says(pages):
    sizes = [(image.get("width"), image.get("height")) for image in pages["one.html"]("img")]
    assert ("900", "60") in sizes and ("600", "40") in sizes


def test_what_is_wide_scrolls_in_its_own_box(built, browser):
    with opened(browser, built / "one.html", 390, "light") as (page, _):
        boxes = page.evaluate("[...document.querySelectorAll('pre, .scroll')].map(b => "
                              "[b.scrollWidth > b.clientWidth, getComputedStyle(b).overflowX, b.tabIndex])")
    assert boxes and {tuple(box) for box in boxes} == {(True, "auto", 0)}


def test_the_keyboard_skips_to_the_content_and_scrolls_what_is_wide(built, browser):
    with opened(browser, built / "one.html", 390, "light") as (page, _):
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        box = page.locator(".scroll:has(table)")
        box.focus()
        box.evaluate("box => { box.moved = new Promise(done => { box.onscroll = done; setTimeout(done, 10000); }); }")
        page.keyboard.press("ArrowRight")
        box.evaluate("box => box.moved")
        assert box.evaluate("box => box.scrollLeft") > 0
