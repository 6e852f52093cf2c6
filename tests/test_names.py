"""Names of classes and files are drawn and written as they are, whatever signs they hold."""

import re
import unicodedata
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import mistune
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.text import Text
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

import cards
import comparison
import metrics
import plots
import report
from conftest import moving_square, write_video
from files import read_predictions, write_csv
from names import FILE_NAME_BYTES, in_file_name, in_markdown
from studies import audit, filmstrips, interpretation

LONG = "a" * 184 + "ü" * 30
NAMES = ["$5 to $10_x", "Ba$$in", "price $ 1 vs $_1{.mp4", r"a_b^c\d{e}", r"\frac{1}{2} \(x\) $\alpha$",
         "<b>bold & co", "sit-ups & crunches, slow #1", "nan", "NA", "1", "01", "True", "_hidden", "__", "a|b",
         "*a* `b` ~~c~~", "[a](b)", "it's \"mine\"", "1. first", "- dash", "# head", "100%_%03d", "total", "\u00e9",
         "e\u0301", "two\nlines\t!", "http://a.b", "www.a.b", "@@0@@", "a_b_c"]
UNKNOWN = {"青蛙跳": "[9752][86D9][8DF3]", "🏃 run.mp4": "[1F3C3] run.mp4"}  # where no font has them
ANY = st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("$_*`\\|<>&[]()#+-=~.@:!{}\t\n 1a"),
              min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def style():
    """The notebooks' style, for the test only; what is drawn must not warn, nor be a formula."""
    shown = pd.get_option("display.html.use_mathjax")
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", mpl.MatplotlibDeprecationWarning)  # seaborn's box plots
        plots.set_style()
        yield
    pd.set_option("display.html.use_mathjax", shown)
    plt.close("all")


def texts(figure) -> list[str]:
    """What is written in a figure once it is drawn; nothing of it is a formula, and there is room for the data."""
    figure.canvas.draw()
    written = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert not any(text.get_parse_math() for text in written)
    assert all(min(ax.get_window_extent().size) > 60 for ax in figure.axes if ax.get_label() != "<colorbar>")
    return [text.get_text() for text in written]


def shown(names) -> set[str]:
    """Names as figures draw them: most are what they are."""
    return {plots.drawn(name) for name in names}


# ---------------------------------------------------------------- figures

def test_a_name_is_drawn_as_it_is():
    assert all(plots.drawn(name) == name for name in NAMES if "\n" not in name)
    assert plots.drawn("two\nlines\t!") == "two[000A]lines[0009]!"
    known = plots._drawable(tuple(plt.rcParams["font.family"]))
    for name, code in UNKNOWN.items():
        assert plots.drawn(name, 60) == (name if all(ord(sign) in known for sign in name) else code)
    assert plots.drawn("\ue123\udcff") == "[E123][DCFF]"  # one of no font, and a byte that is no text


@given(ANY, st.integers(3, 40))
def test_a_long_name_is_shortened_in_the_middle(name, longest):
    whole, short = plots.drawn(name, 1000), plots.drawn(name, longest)
    if short != whole:
        start, end = short.split("…", 1) if short.count("…") == 1 else short.rsplit("…", 1)
        assert plots.columns(whole) > longest >= plots.columns(short)
        assert whole.startswith(start) and whole.endswith(end)


def test_both_ends_of_a_long_name_are_kept():
    assert plots.drawn(LONG) == "a" * 16 + "…" + "ü" * 15
    assert plots.columns("a青é") == 4


def test_other_fonts_are_asked_for_missing_signs(monkeypatch):
    sign = "\u02ef"  # is in DejaVu Serif alone, of the fonts that come with Matplotlib
    monkeypatch.setattr(plots, "FONTS", ("No such font", "DejaVu Sans"))
    plots.set_style()
    if plots.drawn(sign) == sign:
        pytest.skip("the usual font has the sign here")
    monkeypatch.setattr(plots, "FONTS", ("No such font", "DejaVu Sans", "DejaVu Serif"))
    plots.set_style()
    figure = plt.figure()
    figure.suptitle(plots.drawn(sign))
    assert texts(figure) == [sign]


NAME_SETS = [NAMES[:4], NAMES[4:12], NAMES[12:20], NAMES[20:], [LONG, LONG[1:], *UNKNOWN], [LONG, "b"]]


@pytest.mark.parametrize("names", NAME_SETS, ids=range(len(NAME_SETS)))
def test_classes_in_figures(names, tmp_path):
    counts = pd.DataFrame(1, [*names, "total"], ["train", "test", "total"])
    figure, ax = plt.subplots(figsize=(9, 0.8 + 0.55 * len(names)))
    plots.class_counts(counts, ax)
    assert shown(names) <= set(texts(figure))

    figure, ax = plt.subplots(figsize=(5, 4.2))
    plots.confusion_heatmap(np.eye(len(names), dtype=int), names, "matrix", ax)
    written = texts(figure)
    assert all(written.count(name) >= 2 for name in shown(names))

    rows = pd.DataFrame({"label": np.repeat(names, 3), "duration": np.arange(3.0 * len(names)), "motion": 1.0})
    figure, axes = plt.subplots(1, 2, figsize=(12, 1.2 + 0.75 * len(names)), sharey=True)
    plots.by_class(rows, "duration", "duration [s]", axes[0])
    plots.by_class(rows, "motion", "motion", axes[1])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [plots.drawn(name) for name in sorted(names)]
    assert shown(names) <= set(texts(figure))
    plots.show(figure, tmp_path / "by_class.png")
    with Image.open(tmp_path / "by_class.png") as picture:
        assert picture.width < 2000

    rows = rows.assign(x=0.0, y=rows["duration"], part=["train", "val", "test"] * len(names))
    figure, ax = plt.subplots(figsize=(8, 4.5))
    plots.embedding(rows, "features", ax)
    figure.canvas.draw()
    assert shown(names) <= {text.get_text() for text in ax.get_legend().get_texts()}

    figure, ax = plt.subplots(figsize=(3.6, 2.2))
    plots.probability_lines(pd.DataFrame(np.zeros((2, len(names))), columns=names), ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [plots.drawn(name) for name in names]
    assert not any(text.get_parse_math() for text in figure.findobj(Text))


def test_each_colour_of_a_legend_has_its_name():
    rows = pd.DataFrame({"x": [0, 1], "y": [0, 1], "label": ["_b", "a"], "part": ["train", "train"]})
    _, ax = plt.subplots()
    plots.embedding(rows, "", ax)
    box = ax.get_legend()
    keys = {text.get_text(): handle for text, handle in zip(box.get_texts(), box.legend_handles, strict=True)}
    colours = dict(zip(rows["label"], ax.collections[0].get_facecolors(), strict=True))
    assert {*colours} <= {*keys}
    for name, colour in colours.items():
        np.testing.assert_allclose(mpl.colors.to_rgb(keys[name].get_color()), colour[:3])


@pytest.fixture(scope="module")
def named_clips(tmp_path_factory):
    """A clip of each name that a file can have, in a class of another such name."""
    root, rows = tmp_path_factory.mktemp("named"), []
    names = [name for name in [*NAMES, *UNKNOWN] if "/" not in name]
    for number, label in enumerate(names[::4]):
        path = f"/{label}/{names[-number]}.avi"
        try:
            write_video(root / path[1:], moving_square(0, number, 4), codec="XVID")
        except (AssertionError, OSError):  # no name of a file on this system
            continue
        rows.append({"clip_path": path, "label": label, "group": names[-number]})
    return pd.DataFrame(rows), root


def test_clips_in_figures(named_clips):
    table, root = named_clips
    written = texts(filmstrips.sample_strips(table, root, 2))
    assert {plots.drawn(f"{row.label}   {row.clip_path}", 140) for row in table.itertuples()} <= set(written)

    said = table.assign(predicted=table["label"].iloc[0], probability=0.5)
    written = texts(filmstrips.prediction_strips(said, root, 2))
    for row in said.itertuples():
        verdict = filmstrips.verdict(row, lambda name: plots.drawn(name, 40))
        assert plots.drawn(verdict, 140) in written

    for label in table["label"]:
        written = texts(filmstrips.contact_sheet(table, root, label))
        assert any(text.startswith(f"{plots.drawn(label)}: 1 of 1 clips") for text in written)
        assert plots.drawn(table.set_index("label").loc[label, "group"], 22) in written

    frames, maps = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8))
    figure, axes = plt.subplots(2, 2, figsize=(12, 4))
    plots.cam_strip(frames, maps, f"2D-CNN, {NAMES[0]}: {LONG}", axes)
    assert plots.drawn(f"2D-CNN, {NAMES[0]}: {LONG}", 140) in texts(figure)
    assert NAMES[2] in texts(plots.batch_strips(frames[None], [NAMES[2]]))


def test_a_clip_of_a_very_long_name_leaves_room_for_the_frames(tmp_path):
    name = f"{LONG[:200]}"
    write_video(tmp_path / "walk" / f"{name}.avi", moving_square(0, 0, 4), codec="XVID")
    table = pd.DataFrame({"clip_path": [f"/walk/{name}.avi"], "label": "walk", "group": name, "predicted": "run",
                          "probability": 0.5})
    written = texts(filmstrips.prediction_strips(table, tmp_path, 8))
    said = re.compile(r"/walk/a+…a*ü*\.avi: true walk, predicted run with probability 0\.50: WRONG")
    assert any(map(said.fullmatch, written))
    texts(filmstrips.contact_sheet(table, tmp_path, "walk"))


def test_numbers_of_logarithmic_axes_are_plain():
    figure, (wide, narrow, tall) = plt.subplots(1, 3, figsize=(14, 4))
    costs = {f"model {number}": {"time": 10.0**number} for number in range(-3, 6)}
    plots.cost_bars(costs, "time", "time [s]", wide)
    trials = pd.DataFrame({"trial": [0, 1, 2], "loss": [0.21, 0.3, 0.62], "setting": None,
                           "state": ["complete", "complete", "pruned"]})
    plots.search_history(trials, narrow)
    plots.search_history(trials.assign(loss=[0.2, 30, 4000]), tall)
    written = texts(figure)
    assert not any("$" in text or "mathdefault" in text for text in written)
    assert {"0.01", "100", "10000"} <= {label.get_text() for label in wide.get_xticklabels()}
    assert {"0.3", "0.6"} <= {label.get_text() for label in narrow.get_yticklabels(minor=True)}
    assert {"1", "100"} <= {label.get_text() for label in tall.get_yticklabels()}


def test_a_curve_is_named_by_its_folder():
    points = pd.DataFrame({"model": "SVM", "share": [0.5, 1], "clips": 9, "accuracy": 0.5, "low": 0.4, "high": 0.6})
    figure, ax = plt.subplots(figsize=(8, 4.2))
    plots.learning_curve(points, "_青蛙跳_" + "x" * 200, ax)
    assert ax.get_title() in texts(figure) and plots.columns(ax.get_title()) <= 72


# ---------------------------------------------------------------- Markdown and HTML

def as_text(html: str) -> str:
    """The text of a piece of HTML, in which white space counts as a browser counts it."""
    return " ".join(BeautifulSoup(html, "html.parser").get_text().split())


def nbconvert_markdown(text: str) -> str:
    """As nbconvert and the report render it, formulas included."""
    return MarkdownWithMath(renderer=IPythonRenderer(escape=False, exclude_anchor_links=True)).render(text)


@pytest.mark.parametrize("render", [nbconvert_markdown, mistune.html])
@given(name=ANY.filter(str.strip), other=ANY.filter(str.strip))
@example(name=NAMES[0], other=NAMES[1])
@example(name=NAMES[3], other=NAMES[4])
@example(name="1. first", other="# head")
def test_a_name_in_markdown_reads_as_it_is(render, name, other):
    a, b = map(in_markdown, (name, other))
    page = BeautifulSoup(render(f"x **{a}**, {b}: y\n\n- {a}\n- [{b}](c.html)\n\n# {a}\n\n{b}\n\n"
                                f"| a | b |\n| --- | --- |\n| {a} | {b} |\n"), "html.parser")
    first, *_, last = page("p")
    elements = [page.strong, first, *page("li"), page.h1, last, *page("td")]
    told = [name, f"x {name}, {other}: y", name, other, name, other, name, other]
    assert [as_text(str(element)) for element in elements] == [" ".join(text.split()) for text in told]
    assert page.a["href"] == "c.html" and not page(["em", "code", "del", "b", "img"])


def test_ordinary_names_stay_readable_in_markdown():
    for name in ("PullUps", "v_PullUps_g01_c02.avi", "jumping jack", "drinking (31).mp4", "青蛙跳", "01", "2.14.1+cu"):
        assert in_markdown(name) == name


@pytest.mark.parametrize("name", NAMES)
def test_mathjax_finds_no_formula(name):
    """It reads what lies between `$`, or after a backslash, within one element, unless a class tells it not to."""
    page = BeautifulSoup(mistune.html(f"{in_markdown(name)} and {in_markdown(name)}"), "html.parser")
    assert all(text == text[0] for text in page.find_all(string=re.compile(r"[$\\]")))
    for html in (filmstrips.animation(moving_square(0, 0, 2), name), pd.DataFrame({name: [name]})._repr_html_()):
        for text in BeautifulSoup(html, "html.parser").find_all(string=re.compile(r"[$\\]")):
            ignored = {its for parent in text.parents for its in parent.get("class", [])}
            assert {"tex2jax_ignore", "mathjax_ignore"} <= ignored


def test_captions_are_the_names(named_clips):
    table, root = named_clips
    page = BeautifulSoup(filmstrips.animated_samples(table, root), "html.parser")
    first = filmstrips.first_of_each_class(table)
    captions = [f"{row.label}: {row.clip_path}" for row in first.itertuples()]
    assert [caption.get_text() for caption in page("figcaption")] == captions
    assert [image["alt"] for image in page("img")] == [f"animation: {caption}" for caption in captions]


def results_of(names: list[str]) -> dict[str, dict]:
    stats = {"backbone": "resnet18", "network": "ResNet-18", "weights": "none", "recipe": {"name": "r"}, "seed": 0,
             "environment": {"cpu": "c", "cores": 2, "memory_gib": 4, "gpu": None, "system": "s", "python": "3",
                             "torch": "2", "date": "d"},
             "dataset": "_mine_", "classes": names, "test_clips": 3,
             "split": {"kind": "group", "sha256": "0" * 64, "shared_groups": 0}}
    return {"2D-CNN": stats}


def test_where_figures_come_from_names_the_classes():
    for start in range(0, len(NAMES), 15):
        some = NAMES[start:start + 15]
        said = as_text(mistune.html(comparison.provenance(results_of(some))))
        assert f"data set _mine_, classes {', '.join(' '.join(name.split()) for name in some)}" in said
    assert "data set _mine_, 101 classes" in as_text(mistune.html(comparison.provenance(results_of(["a"] * 101))))


def test_values_in_cards_are_names_or_numbers():
    assert cards.cell(0.12345) == "0.123" and cards.cell(3) == "3" and cards.cell("a|b") == r"a\|b"
    frame = pd.DataFrame({"class": NAMES, "recall": 0.5})
    table = report.TEXTS.from_string("{% from 'parts.md.j2' import table %}{{ table(frame) }}").render(frame=frame)
    cells = BeautifulSoup(mistune.html(table.strip()), "html.parser")("td")
    assert [as_text(str(it)) for it in cells] == [it for name in NAMES for it in (" ".join(name.split()), "0.500")]


# ---------------------------------------------------------------- names of files

def test_ordinary_names_are_names_of_files():
    for name in ("PullUps", "jumping jack", "sit-ups", "walk.v2.final", "drinking (31)", "青蛙跳", "\u00e9", "1", "_x"):
        assert in_file_name(name) == name


@given(st.lists(st.text(max_size=300) | st.text(st.sampled_from("aA.~- $\u00e9e\u0301"), max_size=4), unique=True))
@example([*NAMES, *UNKNOWN, LONG, LONG + "!", "", ".", "..", " a", "a.", "a?", "nul", "Nul.txt", "com1", "\udc80"])
def test_different_names_give_different_files_everywhere(names):
    parts = [in_file_name(name) for name in names]
    assert len(set(parts)) == len({unicodedata.normalize("NFD", part) for part in parts}) == len(names)
    for name, part in zip(names, parts, strict=True):
        assert 0 < len(part.encode()) <= FILE_NAME_BYTES and part == part.strip(" .")
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f#%&$]', part)
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part)
        assert in_file_name(part) == part or part != name  # what is made is not made of an ordinary name


def test_files_of_such_names_can_be_written(tmp_path):
    names = [*NAMES, *UNKNOWN, LONG]
    for name in names:
        figure = plt.figure(figsize=(1, 1))
        plots.save_figure(figure, tmp_path / f"contact_{in_file_name(name)}.png")
    assert len(list(tmp_path.iterdir())) == len(names)


# ---------------------------------------------------------------- tables

def predictions_of(names: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(len(names)), 4 * len(names))
    table = pd.DataFrame({"clip_path": [f"/{name}/{i}.avi" for i in range(4) for name in names], "group": [*names] * 4,
                          "label": [*names] * 4, "predicted": np.array(names, object)[p.argmax(1)]})
    return table.join(pd.DataFrame(p, columns=[f"p_{name}" for name in names]))


@pytest.mark.parametrize("names", [["nan", "NA", "None"], ["1", "01", "1.0"], ["True", "False"], NAMES],
                         ids=["missing", "numbers", "truth", "all"])
def test_names_stay_text_in_tables_that_are_read_back(names, tmp_path):
    table = predictions_of(names)
    write_csv(tmp_path / "table.csv", table)
    again = read_predictions(tmp_path / "table.csv")
    assert list(again) == list(table)
    for column in ("clip_path", "group", "label", "predicted"):
        assert again[column].tolist() == table[column].tolist()
    assert metrics.class_probabilities(again)[0] == sorted(names)
    assert metrics.classification_metrics(again) == metrics.classification_metrics(table)
    assert metrics.negative_log_likelihood(again) == pytest.approx(metrics.negative_log_likelihood(table))
    assert metrics.brier(again) == pytest.approx(metrics.brier(table))
    assert metrics.per_class(again, sorted(names))["support"].eq(4).all()
    fused = metrics.fuse([again, again], metrics.fusion_weights([again, again]))
    assert set(fused["predicted"]) <= set(names)
    assert metrics.pairwise({"a": again, "b": fused})["clips"].eq(len(table)).all()


def test_rules_and_leakage_take_any_names():
    names = ["nan", "NA", "1", "01", "True", "_x"]
    rng, rows = np.random.default_rng(0), []
    for label in names:
        for number in range(12):
            rows.append({"clip_path": f"/{label}/{number}.avi", "clip_name": f"{number}.avi", "label": label,
                         "group": f"{label}{number}", "part": ("train", "val", "test")[number % 3], "status": "ok",
                         **dict.fromkeys(("duration", "fps", "width", "height"), number), "kbit_per_second": 1.0,
                         "motion": rng.random(), "mean_l": 1.0, "mean_a": 1.0, "mean_b": 1.0})
    clips = pd.DataFrame(rows)
    told = audit.shortcut_scores(clips)
    assert all(set(table["predicted"]) <= set(names) for table in told.values())
    lab = audit.leakage_lab(clips, {"x": rng.random((len(clips), 3))}, repeats=2)
    assert len(lab) == 4


def test_probabilities_over_time_of_a_class_named_seconds(monkeypatch, tmp_path):
    names = ["seconds", "nan"]

    class Data:
        root, classes = tmp_path, names

    class Run:
        data, cache = Data, tmp_path

        class files:
            sha256 = "0"

    (tmp_path / "a.avi").write_bytes(b"a")
    monkeypatch.setattr(interpretation, "_over_time", lambda *_: np.array([[0.5, 0.2, 0.8]]))
    table = interpretation.probabilities_over_time(Run, "/a.avi")
    assert list(table) == names and table.index.tolist() == [0.5]
