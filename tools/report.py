"""The report of a data set: its executed notebooks as pages, an index of them, and a card for each model.

    python tools/report.py

DATASET is taken from the environment, as by the notebooks. Pages go to `report/` in the data set's results and open
from disk, with no network and no script; cards go to `model_cards/`, as Markdown. The text of pages stands in
`templates/`, that of cards in `src/templates/`.
"""

import argparse
import base64
import io
import os
import re
import sys
from pathlib import Path

import mistune
import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from cards import card, texts
from comparison import comparison_table, cost_table, load_results, provenance
from files import ClassicalFiles, ResultFiles, atomic_path, shown, whole_folder
from run_notebooks import NOTEBOOKS
from videos.places import locate

TEMPLATES = Path(__file__).with_name("templates")
PHONE = 360  # pixels: a wider picture scrolls in a box of its own where the screen is narrow
COLOURS = 10_000  # a picture with more is a photograph
NOTEBOOK_LINK = re.compile(r"^(?:[^:]*/)?([^:/]+)\.ipynb(?=#|$)")
HEADINGS = re.compile("^h[1-6]$")
FIGURES = ("performance_plots", "confusion_matrices", "dataset")  # those of single models are on the notebooks' pages
TEXTS = texts(TEMPLATES)


# ---------------------------------------------------------------- model cards

def write_cards(results: Path) -> list[Path]:
    """Writes `model_cards/<model>.md` for each model, from its statistics and predictions; the CNNs' come first.

    Raises:
        FileNotFoundError, ValueError: as `load_results`; or the predictions are not of the saved model.
    """
    cards = {}
    for title, stats in load_results(results).items():
        files = (ResultFiles(results, stats["recipe"]["kind"], stats["backbone"]) if "backbone" in stats
                 else ClassicalFiles(results, stats["model"]))
        cards[results / "model_cards" / f"{files.model_name}.md"] = card(title, stats, files)
    for path, content in cards.items():
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return list(cards)


# ---------------------------------------------------------------- pages

def build(results: Path, notebooks: Path) -> Path:
    """Writes a data set's cards and report, from its results and its folder of executed notebooks; gives the index.

    An earlier report is replaced once the new one is whole.

    Raises:
        FileNotFoundError, ValueError: results are missing, or a notebook is missing or not executed.
    """
    models = load_results(results)
    pages = {f"{name}.html": notebook for name, notebook in read_executed(notebooks).items()}
    cards = {f"card_{path.stem}.html": as_notebook(path.read_text(encoding="utf-8")) for path in write_cards(results)}
    index = as_notebook(index_text(results, models, pages, cards))
    menu = {"index.html": "Overview", **{name: opening(page)[0] for name, page in pages.items()},
            "index.html#Model-cards": "Model cards"}
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)], embed_images=True,
                            exclude_anchor_links=True, exclude_input_prompt=True, exclude_output_prompt=True)
    report = results / "report"
    with whole_folder(report) as new:
        for name, page in {"index.html": index, **pages, **cards}.items():
            about = {"metadata": {"path": str(notebooks if name in pages else results)}, "file": name, "menu": menu,
                     "title": opening(page)[0], "formatter": HtmlFormatter}
            html, _ = exporter.from_notebook_node(page, about)
            (new / name).write_text(finish(html), encoding="utf-8")
    return report / "index.html"


def read_executed(folder: Path) -> dict[str, NotebookNode]:
    """Name to notebook, of a folder's executed notebooks; each begins with its title.

    Raises:
        FileNotFoundError: there are none.
        ValueError: one has code cells that were not run.
    """
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in sorted(folder.glob("*.ipynb"))}
    if not notebooks:
        raise FileNotFoundError(f"{folder}: no notebooks there; execute them for this data set with make run")
    for name, notebook in notebooks.items():
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        if missing := counts.count(None):
            raise ValueError(f"{folder / name}.ipynb: {missing} of {len(counts)} code cells were not executed; "
                             "run make run")
    return notebooks


def as_notebook(markdown: str) -> NotebookNode:
    """A notebook of one cell: what is exported like the others."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(markdown)])


def opening(notebook: NotebookNode) -> tuple[str, str]:
    """A notebook's title, and the paragraph that follows it or an empty string, as plain text."""
    first = BeautifulSoup(mistune.html(notebook.cells[0].source), "html.parser")
    following = first.h1.find_next_sibling()
    return first.h1.get_text(), following.get_text() if following and following.name == "p" else ""


def index_text(results: Path, models: dict[str, dict], pages: dict[str, NotebookNode],
               cards: dict[str, NotebookNode]) -> str:
    """The index page, in Markdown."""
    environments = pd.DataFrame({title: stats["environment"] for title, stats in models.items()}).T
    figures = [path.relative_to(results) for folder in FIGURES for path in sorted((results / folder).glob("*.png"))]
    return TEXTS.get_template("index.md.j2").render(
        dataset=next(iter(models.values()))["dataset"], scores=comparison_table(models), costs=cost_table(models),
        notebooks={name: opening(page) for name, page in pages.items()},
        cards={name: opening(page)[0] for name, page in cards.items()}, figures=figures,
        provenance=provenance(models), environments=environments.fillna("–"))


# ---------------------------------------------------------------- what the template can't reach

def finish(html: str) -> str:
    """Makes what notebooks show fit for any screen and reader, in a page whose `main` begins with its h1.

    Scripts, frames and linked files go. Headings are put in order and listed. Pictures get a text for those who can't
    see them, PNGs become WebP; what is wide scrolls in a box that the keyboard reaches.
    """
    page = BeautifulSoup(html, "html.parser")
    content = page.main
    for element in content(["script", "style", "iframe", "link"]):
        element.decompose()
    for link in content("a", href=NOTEBOOK_LINK):
        link["href"] = NOTEBOOK_LINK.sub(r"\1.html", link["href"])
    _order_headings(page, content)
    for number, image in enumerate(content.select('img[src^="data:image/"]'), 1):
        image["alt"] = image.get("alt") or f"Figure {number}: {_above(image)}"
        if image["src"].startswith("data:image/png"):
            image["src"], width, height = webp(image["src"])
            image["width"] = int(image.get("width") or width)
            image["height"] = round(height * image["width"] / width)
        if int(image.get("width", 0)) > PHONE:
            _reachable(image.wrap(page.new_tag("div", attrs={"class": "scroll"})), "Figure")
    for table in content("table"):
        for cell in table("th"):
            cell["scope"] = "row" if cell.find_parent("tbody") else "col"
            if not cell.get_text(strip=True):
                cell.name = "td"  # an empty header tells nothing
        _reachable(table.wrap(page.new_tag("div", attrs={"class": "scroll"})), "Table")
    for box in content("pre"):
        _reachable(box, "Code" if box.find_parent(class_="highlight") else "Output")
    return str(page)


def _order_headings(page: BeautifulSoup, content: Tag) -> None:
    """One h1, no level skipped, every id once; the h2 are listed in the template's `contents`."""
    level, seen = 0, {"content"}
    for heading in content(HEADINGS):
        level = min(max(int(heading.name[1]), 2), level + 1)
        heading.name = f"h{level}"
        heading["id"] = "-".join(heading.get_text().split())
        while heading["id"] in seen:
            heading["id"] += "-"
        seen.add(heading["id"])
    if contents := content.find(class_="contents"):
        for part in content("h2"):
            link = page.new_tag("a", href=f"#{part['id']}", string=part.get_text())
            contents.ul.append(link)
            link.wrap(page.new_tag("li"))
        if not contents.ul.li:
            contents.decompose()


def _above(element: Tag) -> str:
    """The heading that an element stands under."""
    return element.find_previous(HEADINGS).get_text()


def _reachable(box: Tag, what: str) -> None:
    box["tabindex"], box["role"], box["aria-label"] = "0", "group", f"{what}: {_above(box)}"


def webp(png: str) -> tuple[str, int, int]:
    """A PNG's data URL as that of a WebP, exact where there are few colours; and width and height in pixels."""
    data = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))) as picture:
        exact = picture.convert("RGBA").getcolors(COLOURS) is not None
        picture.save(data, "WEBP", lossless=exact, quality=80)
        return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}", *picture.size


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
