"""Trained CNNs as folders to take elsewhere: the network, what it is fed with as data, a script, a card."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cards import card, texts
from comparison import load_results
from config import Recipe, title_of
from deployment.cnn import load_network
from deployment.graph import OPEN_SIZES, FrameGraph, traced
from deployment.trained import CNNS, saved_model, saved_recipe, temperature_of
from files import ModelFiles, file_hash, read_json, whole_folder, write_json
from models import VideoModel, build_model
from sampling import FrameSampler
from transforms import DIFFERENCE_GAIN
from videos.decoding import DEFAULT_RATE, MOST_PIXELS

ABOUT, CONFIG = "preprocessing.json", "config.json"
OPSET = 18  # of ONNX: what its exporter writes without converting
TOLERANCE = 1e-3  # by which logits may stray from those of the network as it was trained, or that share of the largest

# Which frames of a video are seen: the k-th of n, counted from 0, where the video has so many `frames`.
SPREAD = "; where the video is too short for that, round(k * (frames - 1) / (n - 1))"
FORMULAS = {
    "segments": "floor((k + position) * frames / n)",
    "time": "floor(position * (frames - 1 - (n - 1) * step) + k * step + 1/2), "
            "where step = fps * num_frames / (frame_rate * n)" + SPREAD,
    "window": "max(ceil(position * (frames - n + 1)) - 1, 0) + k" + SPREAD,
}
ORDER = ("so many stills; then the first frames of so many pairs, chosen among all but the video's last L frames; then "
         "their second ones, L later; L = min(max(round(gap_seconds * fps), 1), frames - 1)")


class NotExported(RuntimeError):
    """A model that can't be exported; the message says why, and what to do."""


# ---------------------------------------------------------------- formats

class Format(NamedTuple):
    """A format of networks.

    `file` is its name in the folder; `packages` must be there to write it, `runtime` to run it; `library` is what model
    hubs call that. `write` is given model, recipe and file; `open` the file, and gives what maps (V, F, H, W, 3) uint8
    frames to (V, K) float32 logits.
    """

    file: str
    packages: tuple[str, ...]
    runtime: str
    library: str
    write: Callable[[VideoModel, Recipe, Path], None]
    open: Callable[[Path], Callable[[np.ndarray], np.ndarray]]


def _traced(model: VideoModel, recipe: Recipe) -> torch.export.ExportedProgram:
    sampler = FrameSampler(**recipe.frames())
    return traced(FrameGraph(model, recipe), sampler.stills + 2 * sampler.pairs)


def _write_onnx(model: VideoModel, recipe: Recipe, path: Path) -> None:
    program = torch.onnx.export(_traced(model, recipe), dynamo=True, opset_version=OPSET, verbose=False,
                                input_names=["frames"], output_names=["logits"], dynamic_shapes=(OPEN_SIZES,))
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where it was traced
    program.save(path, external_data=False)


def _open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda frames: session.run(None, {"frames": frames})[0]


def _write_torch(model: VideoModel, recipe: Recipe, path: Path) -> None:
    torch.export.save(_traced(model, recipe), path)


def _open_torch(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return _of_arrays(torch.export.load(path).module())


def _write_safetensors(model: VideoModel, recipe: Recipe, path: Path) -> None:
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    path.write_bytes(save(state, {"format": "pt"}))
    write_json(path.with_name(CONFIG), {"backbone": model.backbone, "weights": model.source, "recipe": recipe.to_dict(),
                                        "num_classes": model.classifier[-1].out_features})


def _open_safetensors(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return _of_arrays(FrameGraph(*load_safetensors(path.parent)).eval())


def _of_arrays(network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return torch.inference_mode()(lambda frames: network(torch.from_numpy(frames)).numpy())


FORMATS = {
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), "onnxruntime", "onnx", _write_onnx, _open_onnx),
    "torch": Format("model.pt2", (), "torch", "pytorch", _write_torch, _open_torch),
    "safetensors": Format("model.safetensors", ("safetensors",), "torch", "pytorch", _write_safetensors,
                          _open_safetensors),
}


# ---------------------------------------------------------------- reading a folder

def open_network(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """An exported network: (V, F, H, W, 3) uint8 RGB frames to (V, K) float32 logits. Of what `export_model` wrote,
    nothing is unpickled.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its file is not the one that the folder describes.
    """
    about = _about(folder)
    return FORMATS[about["format"]].open(folder / about["file"])


def load_safetensors(folder: str | Path) -> tuple[VideoModel, Recipe]:
    """The network of a folder in the format `safetensors`, as it was trained, in evaluation mode; and its recipe.

    Raises:
        ValueError, FileNotFoundError: as `open_network`.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    about, config = _about(folder), read_json(folder / CONFIG)
    recipe = Recipe(**config["recipe"])
    model = build_model(recipe, config["num_classes"], "none", config["backbone"])
    model.load_state_dict(load_file(folder / about["file"]))
    model.source = config["weights"]
    return model.eval(), recipe


def _about(folder: Path) -> dict:
    """What a folder says of its network, whose file is that which it describes."""
    about = read_json(folder / ABOUT)
    if not about:
        raise FileNotFoundError(f"{folder}: no export there")
    path = folder / about["file"]
    if file_hash(path) != about["sha256"]:
        raise ValueError(f"{path}: damaged, or not the file that {ABOUT} describes (another sha256); export it again")
    return about


# ---------------------------------------------------------------- writing a folder

def export_model(name: str, form: str, results: Path, folder: Path) -> None:
    """Writes a trained CNN of a data set's results as a folder; an earlier export there is replaced by a whole one.

    Args:
        name: `2d` or `3d`.
        form: one of FORMATS.

    Raises:
        NotExported: a package is missing, it is no CNN, the folder holds something else, or the network does not give
            the same logits any more.
        NotTrained, WeightsError: it can't be loaded.
        FileNotFoundError, ValueError: it was not tested, so that there is no card.
    """
    kind = FORMATS[form]
    if name not in CNNS:
        raise NotExported(f"{name}: only the CNNs are exported, 2d and 3d; a classical model is its .skops file, with "
                          "the code in src/classical that computes what it sees")
    if missing := [package for package in kind.packages if not find_spec(package)]:
        raise NotExported(f"the format {form} needs {', '.join(missing)}: "
                          "pip install -r requirements-export.txt -c constraints.txt")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / ABOUT).is_file())):
        raise NotExported(f"{folder}: holds something else than an export; choose another folder with --out")
    files, saved = saved_model(name, results)
    recipe, title = saved_recipe(saved), f"{name.upper()}-CNN"
    stats = load_results(results).get(title)
    if not stats:
        raise ValueError(f"{title}: not tested yet; run its notebook")
    told = card(title, stats, files)
    with whole_folder(folder) as new:
        model = load_network(files, saved)
        with warnings.catch_warnings():  # torch's, of its own code
            warnings.simplefilter("ignore")
            kind.write(model, recipe, new / kind.file)
        about = _described(form, model, recipe, files, saved) | {"sha256": file_hash(new / kind.file)}
        write_json(new / ABOUT, about)
        _compare(open_network(new), FrameGraph(model, recipe).eval(), about["input"]["shape"][1], model)
        if form != "safetensors":
            _write(new / "run.py", "run.py.j2", about=about, runtime=kind.runtime)
        _write(new / "README.md", "package.md.j2", card=told, about=about, stats=stats, title=title, format=form,
               kind=kind)


def _described(form: str, model: VideoModel, recipe: Recipe, files: ModelFiles, saved: dict) -> dict:
    """What a user of the network needs to know, as data."""
    sampler, prep = FrameSampler(**recipe.frames()), model.preprocessing
    frames, views = sampler.stills + 2 * sampler.pairs, recipe.test_clips
    packages = ("torch", *FORMATS[form].packages)
    return {
        "format": form, "file": FORMATS[form].file, "model": files.model_name, "network": title_of(model.backbone),
        "classes": saved["classes"], "temperature": temperature_of(files),
        "input": {"name": "frames", "type": "uint8", "shape": ["views", frames, "height", "width", 3],
                  "meaning": "RGB frames as they are decoded, in the order of the sampling"},
        "output": {"name": "logits", "type": "float32", "shape": ["views", len(saved["classes"])],
                   "meaning": "softmax of each view; their mean to the power of 1 / temperature, made to sum to 1"},
        "sampling": {"kind": recipe.sampling, "num_frames": recipe.num_frames, "frame_rate": recipe.frame_rate,
                     "stills": sampler.stills, "pairs": sampler.pairs, "gap_seconds": recipe.gap,
                     "positions": [(view + 0.5) / views for view in range(views)], "formula": FORMULAS[recipe.sampling],
                     "order": ORDER, "fps_if_unknown": DEFAULT_RATE, "most_pixels": MOST_PIXELS},
        "in_the_graph": {"modality": recipe.modality, "resize": prep.resize, "size": prep.crop,
                         "interpolation": prep.interpolation, "antialias": prep.antialias, "mean": prep.mean,
                         "std": prep.std, "difference": f"0.5 + {DIFFERENCE_GAIN:g} (second - first)",
                         "difference_gain": DIFFERENCE_GAIN},
        "opset": OPSET if form == "onnx" else None,
        "checkpoint": {"file": files.checkpoint.name, "sha256": files.sha256},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _compare(exported: Callable[[np.ndarray], np.ndarray], graph: FrameGraph, count: int, model: VideoModel) -> None:
    """Compares an exported network with the one that was trained, on frames whose size is the network's."""
    rng, side = np.random.default_rng(0), model.preprocessing.crop
    frames = rng.integers(0, 256, (1, count, side, side, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(graph.prepared(torch.from_numpy(frames))).numpy()
    stray = float(np.abs(exported(frames) - expected).max())
    if not stray < TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise NotExported(f"the exported network's logits stray by {stray:.2g}: with this torch "
                          f"({torch.__version__}) it can't be exported; another format may do")


def _write(path: Path, template: str, **values) -> None:
    text = texts().get_template(template).render(about_file=ABOUT, **values)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
