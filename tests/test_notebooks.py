"""The committed notebooks: executed in order, clean, thin; and a runner that loses nothing."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import run_notebooks
from config import NUMBERS, ROOT, asked_number
from files import ArrayStore
from videos.library import open_data

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["01_dataset", "02_classical_ml", "03_2d_cnn", "04_3d_cnn", "05_tuning",
                                                 "06_interpretation", "07_comparison", "08_your_video"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_executed_clean_and_thin(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == [code[1]]
    assert not any(line.startswith(("class ", "def ")) for cell in code for line in cell.source.splitlines())
    assert str(ROOT) not in json.dumps(outputs) and path.stat().st_size < 3e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outside_the_repository_it_says_so_in_one_sentence(path: Path, tmp_path):
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    command = [sys.executable, "-c", first.source.replace("%matplotlib inline", "")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and len(ran.stderr.splitlines()) == 1 and "inside the repository" in ran.stderr


@pytest.mark.parametrize("name", ["03_2d_cnn", "04_3d_cnn"])
def test_the_page_shows_the_work(name):
    code = "\n".join(cell.source for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
                     if cell.cell_type == "code")
    dataset = f"VideoDataset{name[3].upper()}D("
    steps = ("recipe_transform(", dataset, "make_loader(", "build_model(", "CrossEntropyLoss(", "make_optimizer(",
             "make_scheduler(", "EarlyStopping(", "for epoch in training:", "train_one_epoch(",
             "eval_one_epoch(", "plots.curve(", "classification_report(", "confusion_matrix(")
    places = [code.rindex(step) for step in steps]
    assert places == sorted(places)  # in the seed's order


def notebook_with(source: str, path: Path) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, path)
    return path


def execute(path: Path, failed: Path) -> None:
    async def run():
        await run_notebooks.execute(path, path, failed, 0.0, await run_notebooks.start_kernel())

    asyncio.run(run())


@pytest.mark.slow
def test_runner_writes_whole_notebooks_and_keeps_the_old_one_on_failure(tmp_path, capsys):
    good = notebook_with("print('a\\rb')", tmp_path / "good.ipynb")
    execute(good, tmp_path / "failed")
    cell = nbformat.read(good, as_version=4).cells[0]
    assert cell.outputs[0].text == "b\n" and cell.execution_count == 1 and "execution" not in cell.metadata
    assert "good  cell 1/1" in capsys.readouterr().out
    bad = notebook_with("raise ValueError('told')", tmp_path / "bad.ipynb")
    before = bad.read_bytes()
    with pytest.raises(run_notebooks.Failed, match=r"bad\.ipynb failed: ValueError: told"):
        execute(bad, tmp_path / "failed")
    assert bad.read_bytes() == before and (tmp_path / "failed" / "bad.ipynb").is_file()


@pytest.mark.parametrize("names", [["no_such"], ["03_2d_cnn", "3d"], ["03_2d_cnn.ipynb"], [""]])
def test_runner_names_the_notebooks_there_are_before_anything_runs(names, monkeypatch):
    monkeypatch.setenv("DATASET", "no/such/folder")  # which isn't looked for
    with pytest.raises(SystemExit) as stopped:
        run_notebooks.main(names)
    assert stopped.value.code == f"error: no notebook {names[-1]}: there are {', '.join(p.stem for p in NOTEBOOKS)}"


def test_runner_of_one_notebook_ends_well_whatever_models_there_are(tmp_path, tiny_dataset, monkeypatch, capsys):
    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    monkeypatch.setattr(run_notebooks, "open_asked", lambda: data)
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    notebook_with("1", tmp_path / "03_2d_cnn.ipynb")
    run_notebooks.main(["03_2d_cnn"])
    assert "no headline table yet" in capsys.readouterr().out
    assert (data.results / "notebooks" / "03_2d_cnn.ipynb").is_file()


MEETS = """
import time
from pathlib import Path

Path("{own}").touch()
until = time.monotonic() + 120
while not Path("{other}").exists():  # it never comes where the other one waits for this one's end
    assert time.monotonic() < until
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_notebooks_run_side_by_side_but_after_those_that_they_read(tmp_path, tiny_dataset, monkeypatch, capsys):
    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    monkeypatch.setattr(run_notebooks, "open_asked", lambda: data)
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run_notebooks, "cores", lambda: 2)
    monkeypatch.setenv("SEED", "1")  # not that of another test's last run
    folder = "from pathlib import Path\n"
    notebook_with(f"{folder}assert not Path('5').exists(); Path('4').touch()", tmp_path / "04_3d_cnn.ipynb")
    for own, other, name in (("5", "6", "05_tuning"), ("6", "5", "06_interpretation")):
        notebook_with(MEETS.format(own=own, other=other), tmp_path / f"{name}.ipynb")
    notebook_with(f"{folder}assert all(Path(its).exists() for its in '456')", tmp_path / "07_comparison.ipynb")
    run_notebooks.main([])
    assert "side by side" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_only_reloads_has_no_order(tmp_path, tiny_dataset, monkeypatch, capsys):
    """What measures times runs alone, the second time beside others; not where another seed is asked for."""
    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    monkeypatch.setattr(run_notebooks, "open_asked", lambda: data)
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run_notebooks, "cores", lambda: 2)
    names = ("03_2d_cnn", "04_3d_cnn")
    for own, other in (names, names[::-1]):
        notebook_with(MEETS.format(own=own, other=other), tmp_path / f"{own}.ipynb")
    for seed, reloads in (("42", False), ("42", True), ("7", False)):
        monkeypatch.setenv("SEED", seed)
        for name in names:
            (tmp_path / name).unlink(missing_ok=True) if reloads else (tmp_path / name).touch()
        run_notebooks.main([])
        assert ("notebooks reload, side by side" in capsys.readouterr().out) == reloads


@pytest.mark.parametrize(("name", "text", "kind"), [
    ("SEED", "abc", "a whole number"), ("SEED", "-1", "a whole number"), ("SEED", "1.5", "a whole number"),
    ("SEED", "4294967296", "a whole number"), ("FOLDS", "five", "a whole number"), ("SEEDS", "0", "a whole number"),
    ("TRIALS", "0", "a whole number"), ("CACHE_GB", "much", "a number"), ("CACHE_GB", "nan", "a number")])
def test_runner_names_a_variable_that_is_no_number_before_anything_runs(name, text, kind, monkeypatch):
    monkeypatch.setenv("DATASET", "no/such/folder")
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit, match=f"^error: {name}={text}: not {kind} from "):
        run_notebooks.main([])


def test_numbers_are_those_of_the_environment_or_their_defaults(monkeypatch):
    for name, (default, _, _) in NUMBERS.items():
        monkeypatch.setenv(name, "")
        assert asked_number(name) == default
        monkeypatch.setenv(name, "7")
        assert asked_number(name) == 7 and type(asked_number(name)) is type(default)
    monkeypatch.setenv("CACHE_GB", "0.5")
    assert ArrayStore("no/such/folder").budget == 0.5e9


def test_runner_names_a_missing_data_set(monkeypatch):
    monkeypatch.setenv("DATASET", "no/such/folder")
    with pytest.raises(SystemExit, match="error: DATASET=no/such/folder"):
        run_notebooks.main([])
