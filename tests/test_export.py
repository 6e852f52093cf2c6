"""Exported networks give the logits of those that were trained, and run alone: from files to classes."""

import ast
import dataclasses
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import evaluation
import export
from cards import texts
from config import ROOT, Preprocessing, get_recipe
from conftest import REAL_CLIPS, moving_square
from deployed import as_batch
from deployment import package as exporting
from deployment.graph import Fit, FrameGraph
from deployment.package import FORMATS, load_safetensors, open_network
from deployment.prepared import load_judge
from experiment import load_or_train
from files import read_json, read_predictions
from metrics import fit_temperature
from models import build_model
from sampling import FrameSampler
from transforms import apply_transform, eval_transform, recipe_transform, seed_transform
from videos import places
from videos.decoding import VideoInfo, read_frames
from videos.library import open_data

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxruntime", "onnxscript", "safetensors"):
    pytest.importorskip(package, reason=f"no {package} here (requirements-export.txt): exports were not tested")

REAL = REAL_CLIPS.with_name("ucf101-three")
CLOSE = 1e-3  # by which logits may differ
UNSATURATED = 0.99  # no class of a clip is more probable: where one is, large differences of logits change nothing
# Networks are cut short, since each layer takes time to export.
SMALL = {"precision": "float32", "num_frames": 4, "stills": 2, "size": 64, "depth": "stem", "train_views": 1,
         "epochs": 10, "test_clips": 2, "batch_size": 8}
# Family to kind of model, modality, weights and network.
FAMILIES = {"2D": ("2d", "diff", "packaged", None), "3D": ("3d", "diff", "packaged", None),
            "two streams": ("2d", "rgb+diff", "packaged", None), "R3D-18": ("3d", "rgb", "none", "resnet3d")}


def small_recipe(family, **changes):
    kind, modality, _, backbone = FAMILIES[family]
    others = {"depth": "layer1", "framing": "preset"} if backbone else {}
    return get_recipe("recommended", kind, **{**SMALL, **others, **changes, "modality": modality})


def frames_of(recipe, count=2) -> np.ndarray:
    """(count, F, 96, 128, 3) frames of as many clips, in the sampler's order."""
    info = VideoInfo(20, 25.0, 128, 96)
    chosen = FrameSampler(**recipe.frames())(info)
    return np.stack([moving_square(label % 3, label)[chosen] for label in range(count)])


def original_logits(model, recipe, frames) -> np.ndarray:
    """What the network as it was trained says of (V, F, H, W, 3) frames, as `data_loader` gives them to it."""
    transform = recipe_transform(recipe, model.preprocessing, train=False)
    with torch.inference_mode():
        return torch.cat([model(as_batch(model, apply_transform(view, transform))) for view in frames]).numpy()


def shares(logits) -> np.ndarray:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def networks():
    """Family to network and recipe, with heads drawn at random and flattened until nothing is certain."""
    made = {}
    for family, (_, _, weights, backbone) in FAMILIES.items():
        torch.manual_seed(1)
        recipe = small_recipe(family)
        model = build_model(recipe, 3, weights, backbone).eval()
        heads = [getattr(model, name)[-1] for name in ("classifier", "still_classifier") if hasattr(model, name)]
        for head in heads:
            nn.init.normal_(head.weight)
        while shares(original_logits(model, recipe, frames_of(recipe))).max() > 0.9:
            for head in heads:
                head.weight.data /= 2
        made[family] = model, recipe
    return made


# ---------------------------------------------------------------- the graph

@pytest.mark.parametrize("family, form", [*((family, "onnx") for family in FAMILIES), ("two streams", "torch")])
def test_the_logits_are_those_of_the_network_that_was_trained(networks, family, form, tmp_path):
    model, recipe = networks[family]
    path = tmp_path / FORMATS[form].file
    FORMATS[form].write(model, recipe, path)
    network = FORMATS[form].open(path)
    for count in (1, 3):  # views: any number
        frames = frames_of(recipe, count)
        expected = original_logits(model, recipe, frames)
        assert 0.4 < shares(expected).max() < UNSATURATED
        assert np.abs(network(frames) - expected).max() < CLOSE
    data = path.read_bytes()
    assert str(ROOT).encode() not in data and b".py" not in data  # where it was traced


PRESETS = {"bicubic": (Preprocessing((96, 96), 96, interpolation="bicubic"), 0),
           "bilinear": (Preprocessing((96, 96), 96), 1e-3),
           "without antialiasing": (Preprocessing((96, 96), 96, antialias=False), 5e-3),
           "resized and cropped": (Preprocessing(72, 64), 1e-3),
           "as R3D-18": (Preprocessing((80, 107), 70, antialias=False), 1e-3)}


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (131, 97), (60, 50)])
@pytest.mark.parametrize("name", PRESETS)
def test_frames_are_fitted_as_the_transform_fits_them(name, size):
    """To the last bit in whole numbers; where floats are rounded, a grey level may differ where it lies between two."""
    prep, share = PRESETS[name]
    frames = torch.from_numpy(picture_noise(size))
    off = (Fit(prep)(frames) - eval_transform(prep).steps(frames)).abs()
    assert off.max() <= (1 if share else 0) and (off > 0).float().mean() <= share


@pytest.mark.parametrize("size", [(240, 320), (300, 260), (131, 97)])
def test_frames_are_fitted_as_by_pillow(size):
    """The seed's transform, to the last bit."""
    frames = picture_noise(size)
    resize, crop = seed_transform(train=False).transforms[1:3]
    from torchvision.transforms.functional import to_pil_image

    expected = [np.array(crop(resize(to_pil_image(frame.transpose(1, 2, 0))))) for frame in frames]
    fitted = Fit(Preprocessing(), by_pillow=True)(torch.from_numpy(frames))
    assert np.array_equal(fitted.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


def picture_noise(size) -> np.ndarray:
    """(2, 3, H, W) uint8 with large and small differences."""
    rng = np.random.default_rng(size)
    blocks = np.kron(rng.integers(0, 200, (2, 3, 8, 8)), np.ones((40, 40), int))[..., :size[0], :size[1]]
    return (blocks + rng.integers(0, 56, (2, 3, *size))).astype(np.uint8)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="bicubic interpolation, antialias=False"):
        Fit(Preprocessing(interpolation="bicubic", antialias=False))


def test_the_seeds_recipe_is_followed():
    recipe = get_recipe("seed", "2d", num_frames=2)
    model = build_model(recipe, 3, "none").eval()
    frames = frames_of(recipe)
    with torch.inference_mode():
        logits = FrameGraph(model, recipe)(torch.from_numpy(frames)).numpy()
    assert np.abs(logits - original_logits(model, recipe, frames)).max() < CLOSE


# ---------------------------------------------------------------- the folder

@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A tested 2D-CNN of a data set of moving squares."""
    data = open_data(str(tiny_dataset), results=tmp_path_factory.mktemp("results"))
    return train(data, small_recipe("2D"), tmp_path_factory.mktemp("cache"))


def train(data, recipe, cache):
    run = load_or_train(recipe.kind, data, recipe, "packaged", 0, cache=cache)
    evaluation.evaluate(run)
    evaluation.predict_validation(run)
    return run


def exported(monkeypatch, data, *arguments) -> None:
    """Runs the command line for a data set, whose results lie elsewhere."""
    monkeypatch.setattr(places, "locate", lambda dataset: (dataset, data.root, data.results))
    export.main(["--dataset", str(data.root), *map(str, arguments)])


@pytest.fixture(scope="module")
def folders(trained) -> dict[str, Path]:
    """Format to folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for form in FORMATS:
            exported(monkeypatch, trained.data, "--format", form)
    return {form: trained.data.results / "exported" / f"2d-{form}" for form in FORMATS}


def run(folder: Path, *videos, cwd="/") -> subprocess.CompletedProcess:
    """Runs a folder's script where no code of the project can be imported."""
    return subprocess.run([sys.executable, "-I", str(folder / "run.py"), *map(str, videos)], cwd=cwd,
                          capture_output=True, text=True)


def said(finished: subprocess.CompletedProcess) -> dict[str, dict[str, float]]:
    """Video to class to probability, the most probable first."""
    assert finished.returncode == 0, finished.stderr
    lines = [line.split("  ") for line in finished.stdout.splitlines()]
    return {path: {name: float(share) for name, share in (its.rsplit(" ", 1) for its in classes)}
            for path, *classes in lines}


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_the_script_says_what_the_project_says(trained, folders, form, tmp_path):
    table = read_predictions(trained.files.predictions)
    temperature = fit_temperature(read_predictions(trained.files.validation))
    folder = shutil.copytree(folders[form], tmp_path / "elsewhere")
    answers = said(run(folder, *(trained.data.root / path.lstrip("/") for path in table["clip_path"]), cwd=tmp_path))
    assert read_json(folder / "preprocessing.json")["temperature"] == temperature != 1
    for row, answer in zip(table.itertuples(), answers.values(), strict=True):
        expected = np.array([getattr(row, f"p_{name}") for name in trained.data.classes]) ** (1 / temperature)
        assert next(iter(answer)) == row.predicted and sum(answer.values()) == pytest.approx(1, abs=2e-3)
        found = [answer[name] for name in trained.data.classes]
        np.testing.assert_allclose(found, expected / expected.sum(), atol=0.01)  # kept activations are in float16


def test_the_script_is_short_and_needs_little(folders):
    tree = ast.parse((folders["onnx"] / "run.py").read_text(encoding="utf-8"))
    imported = {(node.names[0].name if isinstance(node, ast.Import) else node.module)
                for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert imported == {"json", "sys", "pathlib", "cv2", "numpy", "onnxruntime"}
    assert len({node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}) < 32


@given(st.sampled_from(["segments", "time", "window"]), st.integers(1, 400), st.floats(1, 120), st.integers(1, 40),
       st.integers(1, 5))
def test_the_script_chooses_the_frames_that_the_project_chooses(sampling, total, fps, n, views):
    recipe = dataclasses.replace(get_recipe("recommended", "3d"), sampling=sampling, num_frames=n, modality="rgb",
                                 stills=(n + 1) // 2)
    sampler, positions = FrameSampler(**recipe.frames()), [(view + 0.5) / views for view in range(views)]
    about = {"sampling": {"kind": sampling, "num_frames": n, "frame_rate": 15.0, "stills": sampler.stills, "pairs": 0,
                          "fps_if_unknown": 25.0}, "input": {"shape": [0, n]}}
    script = texts().get_template("run.py.j2").render(about=about, runtime="onnxruntime", about_file="")
    names = {"np": np, "positions": np.array(positions)[:, None]}
    exec(re.search(r"^def chosen.*?\n\n\n", script, re.DOTALL | re.MULTILINE)[0], names)
    chosen = names["chosen"](total, sampler.stills, fps)
    expected = [sampler(VideoInfo(total, fps, 0, 0), position) for position in positions]
    assert np.array_equal(chosen, expected)


def test_the_data_describe_the_network(trained, folders):
    import onnxruntime

    for form, folder in folders.items():
        about = read_json(folder / "preprocessing.json")
        assert about["classes"] == trained.data.classes and about["format"] == form
        assert about["checkpoint"]["sha256"] == trained.files.sha256 and about["model"] == "2d-cnn"
        seen = about["sampling"]
        assert (seen["stills"], seen["pairs"], about["input"]["shape"][1]) == (0, 4, 8)
        assert about["in_the_graph"]["size"] == 64 and about["in_the_graph"]["modality"] == "diff"
        assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    about = read_json(folders["onnx"] / "preprocessing.json")
    session = onnxruntime.InferenceSession(folders["onnx"] / about["file"])
    (given_,), (output,) = session.get_inputs(), session.get_outputs()
    assert [given_.name, given_.shape] == [about["input"]["name"], about["input"]["shape"]]
    assert [output.name, output.shape] == [about["output"]["name"], about["output"]["shape"]]


def test_the_card_has_the_header_that_model_hubs_read(trained, folders):
    hub = pytest.importorskip("huggingface_hub", reason="no huggingface_hub here: the header was not read back")
    stats = read_json(trained.files.stats)
    for form, folder in folders.items():
        its = hub.ModelCard.load(folder / "README.md")
        assert its.data.pipeline_tag == "video-classification" and form in its.data.tags
        results = {result.metric_type: result for result in its.data.eval_results}
        assert {name: result.metric_value for name, result in results.items()} == {
            name: stats[name] for name in ("accuracy", "f1", "precision", "recall")}
        assert results["accuracy"].dataset_type == trained.data.name
        assert results["accuracy"].dataset_split == "test"
        assert its.text.count("\n# ") + its.text.startswith("# ") == 1
        assert its.text.index("## This folder") < its.text.index("## Test metrics")


def test_the_weights_are_rebuilt_by_the_project(trained, folders):
    model, recipe = load_safetensors(folders["safetensors"])
    saved = torch.load(trained.files.checkpoint, map_location="cpu", weights_only=True)
    assert recipe == dataclasses.replace(trained.recipe, lr=recipe.lr, depth=recipe.depth) and not model.training
    assert model.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_the_code_on_the_card_runs(trained, folders, monkeypatch):
    row = next(read_predictions(trained.files.predictions).itertuples())
    text = (folders["safetensors"] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    code = code.replace('"this folder"', repr(str(folders["safetensors"])))
    code = code.replace('"clip.avi"', repr(str(trained.data.root / row.clip_path.lstrip("/"))))
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {}
    exec(code, names)
    expected = [getattr(row, f"p_{name}") for name in trained.data.classes]
    np.testing.assert_allclose(names["logits"].softmax(dim=1).mean(dim=0), expected, atol=0.01)


# ---------------------------------------------------------------- what may go wrong

def test_loading_never_unpickles(folders, monkeypatch):
    def poisoned(*_, **__):
        raise AssertionError("something was unpickled")

    for owner, names in ((pickle, ("load", "loads", "Unpickler")), (torch, ("load",))):
        for name in names:
            monkeypatch.setattr(owner, name, poisoned)
    frames = np.zeros((1, 8, 40, 40, 3), np.uint8)
    first, *others = [open_network(folder)(frames) for folder in folders.values()]
    assert all(np.abs(other - first).max() < CLOSE for other in others)


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_file_is_named(folders, form, tmp_path):
    folder = shutil.copytree(folders[form], tmp_path / form)
    file = folder / FORMATS[form].file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file.name}: damaged"):
        open_network(folder)
    with pytest.raises(FileNotFoundError, match="no export there"):
        open_network(tmp_path)
    file.write_bytes(data[:len(data) // 2])
    if form != "safetensors":
        finished = run(folder, "no.avi")
        assert finished.returncode and str(file) in finished.stderr


def test_what_can_not_be_read_is_named(folders, tmp_path):
    (tmp_path / "no.avi").write_text("no video")
    finished = run(folders["onnx"], tmp_path / "no.avi")
    assert finished.returncode and f"{tmp_path / 'no.avi'}: no video that OpenCV can read" in finished.stderr


def test_an_earlier_export_stays_until_the_new_one_is_whole(trained, folders, monkeypatch):
    folder = folders["safetensors"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(path, template, **values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(exporting, "_write", interrupted)
        exported(patched, trained.data, "--format", "safetensors")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "stale").touch()
    exported(monkeypatch, trained.data, "--format", "safetensors")
    assert {path.name for path in folder.iterdir()} == before.keys()
    assert {path.name for path in folder.parent.iterdir()} == {its.name for its in folders.values()}


def test_a_network_that_strays_is_not_exported(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "open_network", lambda folder: lambda frames: np.ones((1, 3), np.float32))
    with pytest.raises(SystemExit, match=r"error: the exported network's logits stray by"):
        exported(monkeypatch, trained.data, "--format", "safetensors", "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_told(trained, folders, monkeypatch, tmp_path):
    def refused(why, *arguments):
        with monkeypatch.context() as patched, pytest.raises(SystemExit, match=f"^error: .*{why}"):
            exported(patched, trained.data, *arguments, "--out", tmp_path / "out")

    refused(r"no trained model '3d' in .*: there are 2d", "--model", "3d")
    refused(r"knn: only the CNNs are exported, 2d and 3d; a classical model is its \.skops file", "--model", "knn")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    refused("out: holds something else than an export")
    (tmp_path / "out" / "mine.txt").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else 1)
        refused("the format onnx needs onnxscript: pip install -r requirements-export.txt -c constraints.txt")
    assert not list((tmp_path / "out").iterdir())


# ---------------------------------------------------------------- real clips

@pytest.fixture(scope="module")
def real_data(tmp_path_factory):
    """Real clips of three classes: 24 to train on, 6 to validate, 20 to test, of other groups."""
    if not REAL.is_dir():
        pytest.skip(f"the real clips of {REAL} are not here: no export was compared on them")
    root = tmp_path_factory.mktemp("real")
    for name, tested in (("PushUps", 7), ("Punch", 6), ("YoYo", 7)):
        clips = sorted((REAL / name).glob("*.avi"))
        chosen = clips[::len(clips) // (10 + tested)][:10 + tested]
        for n, clip in enumerate(chosen):
            part = "train" if n < 8 else "val" if n < 10 else "test"
            (root / part / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, root / part / name)
    return open_data(str(root), results=tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("family", ["2D", "3D", "two streams"])
def test_real_clips(real_data, family, tmp_path, monkeypatch):
    its = train(real_data, small_recipe(family, depth="block1"), tmp_path)
    kind = its.recipe.kind
    exported(monkeypatch, real_data, "--model", kind, "--out", tmp_path / "out")
    table = read_predictions(its.files.predictions)
    clips = [real_data.root / path.lstrip("/") for path in table["clip_path"]]
    judge, network = load_judge(kind, real_data.results, "cpu"), open_network(tmp_path / "out")
    assert len(clips) == 20 and table.filter(regex="^p_").to_numpy().max() < UNSATURATED
    for clip in clips:
        frames, _ = read_frames(clip, judge.sampler)
        strayed = network(frames[None]) - original_logits(judge.model, judge.recipe, frames[None])
        assert np.abs(strayed).max() < CLOSE
    answers = said(run(tmp_path / "out", *clips))
    assert [next(iter(answers[str(clip)])) for clip in clips] == table["predicted"].tolist()
