"""The committed notebooks: executed in order, clean, thin; and a runner that loses nothing."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import run_notebooks
from config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"01_dataset", "02_classical_ml", "03_2d_cnn", "04_3d_cnn", "05_comparison"}


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
    assert str(ROOT) not in json.dumps(outputs)


def notebook_with(source: str, path: Path) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, path)
    return path


def test_runner_writes_whole_notebooks_and_keeps_the_old_one_on_failure(tmp_path, capsys):
    good = notebook_with("print('a\\rb')", tmp_path / "good.ipynb")
    run_notebooks.execute(good, good, tmp_path / "failed", 0.0)
    cell = nbformat.read(good, as_version=4).cells[0]
    assert cell.outputs[0].text == "b\n" and cell.execution_count == 1 and "execution" not in cell.metadata
    assert "good  cell 1/1" in capsys.readouterr().out
    bad = notebook_with("raise ValueError('told')", tmp_path / "bad.ipynb")
    before = bad.read_bytes()
    with pytest.raises(SystemExit, match="bad.ipynb failed: ValueError: told"):
        run_notebooks.execute(bad, bad, tmp_path / "failed", 0.0)
    assert bad.read_bytes() == before and (tmp_path / "failed" / "bad.ipynb").is_file()


def test_runner_leaves_the_memory_to_the_notebooks():
    code = "import sys; sys.path.insert(0, 'src'); import run_notebooks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_runner_names_a_missing_data_set(monkeypatch):
    monkeypatch.setenv("DATASET", "no/such/folder")
    with pytest.raises(SystemExit, match="error: DATASET=no/such/folder"):
        run_notebooks.main([])
