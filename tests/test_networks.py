"""The networks by name: their weights, their own features, what they demand, and networks of one's own."""

import dataclasses
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from nbformat import read
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models as tv

import networks
import run_notebooks
import tune
from config import (
    DEFAULT_BACKBONE,
    NETWORKS,
    PACKAGED,
    ROOT,
    Network,
    Preprocessing,
    asked_backbone,
    get_recipe,
    register,
    title_of,
)
from deployed import FrozenTrunk
from experiment import load_or_train, prepare, untrained
from files import read_json
from models import WeightsError, build_model, choose_source, recipe_preprocessing, summary, weights_file
from networks import choose_backbone, weights_name
from studies.gradcam import class_maps
from transforms import apply_transform, eval_transform
from videos.library import open_data

pytestmark = pytest.mark.slow

LIBRARY = {  # torchvision's: name to function and weights
    "resnet50": ("resnet50", "ResNet50_Weights.IMAGENET1K_V2"),
    "efficientnet_b0": ("efficientnet_b0", "EfficientNet_B0_Weights.IMAGENET1K_V1"),
    "resnet3d": ("r3d_18", "R3D_18_Weights.KINETICS400_V1"), "mc3_18": ("mc3_18", "MC3_18_Weights.KINETICS400_V1"),
    "r2plus1d_18": ("r2plus1d_18", "R2Plus1D_18_Weights.KINETICS400_V1"), "s3d": ("s3d", "S3D_Weights.KINETICS400_V1"),
    "mvit_v2_s": ("mvit_v2_s", "MViT_V2_S_Weights.KINETICS400_V1"),
    "swin3d_t": ("swin3d_t", "Swin3D_T_Weights.KINETICS400_V1")}
VOLUMES = [name for name in LIBRARY if NETWORKS[name].kind == "3d"]
ENCODERS = {"convnext_tiny": "convnext_tiny.in12k_ft_in1k", "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
            "mobilenetv3_large": "mobilenetv3_large_100.ra_in1k"}
NEW = [*ENCODERS, "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t"]
SHAPES = dict.fromkeys(LIBRARY, (1, 3, 4, 48, 48)) | dict.fromkeys(
    ("resnet50", "efficientnet_b0", "convnext_tiny", "mobilenetv3_large"), (1, 1, 3, 64, 64)) | {
    "vit_small": (1, 1, 3, 160, 160), "s3d": (1, 3, 14, 224, 224), "mvit_v2_s": (1, 3, 16, 224, 224)}
BY_CLASS_TOKEN = ("mvit_v2_s", "vit_small")  # what the libraries' own classifiers see; ours see the patches' tokens
PLAIN = {"modality": "rgb", "stills": None, "grid": "1x1", "pooling": "avg", "standardize": False}
SMALL = {"num_frames": 5, "stills": 5, "size": 32, "train_views": 1}


@pytest.fixture(autouse=True)
def quick_initial_values(monkeypatch):
    """Those of torchvision's transformers, whose tails are cut off elsewhere, in a tenth of the time."""
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)


def recipe_for(name: str, **changes):
    """The recommended recipe, small where the network allows."""
    small = {} if name == "mvit_v2_s" else SMALL
    return get_recipe("recommended", NETWORKS[name].kind, **{**small, **changes}).resolved(name)


def clips_for(name: str, recipe, batch: int = 1) -> torch.Tensor:
    """A random batch as the model of a recipe takes it."""
    side = recipe_preprocessing(recipe, name).crop
    frames = recipe.stills_shown() + (recipe.num_frames if "diff" in recipe.modality else 0)
    return torch.randn(batch, frames, 3, side, side).movedim(1, 1 if recipe.kind == "2d" else 2)


# ---------------------------------------------------------------- the libraries' own networks, and their files

def genuine(name: str) -> nn.Module:
    """A library's own network with random weights, and nothing in it as it is at the start of a training."""
    torch.manual_seed(0)
    net = (tv.get_model(LIBRARY[name][0], weights=None) if name in LIBRARY else
           timm.create_model(ENCODERS[name], **({"dynamic_img_size": True} if name == "vit_small" else {})))
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    for key, parameter in net.named_parameters():
        if key.endswith("gamma"):  # ConvNeXt's blocks begin as next to nothing
            parameter.data.uniform_(0.5, 1)
    return net.eval()


def planted(name: str, net: nn.Module, caches: Path) -> Path:
    """The network's weights, written as and where its library keeps them."""
    if name in LIBRARY:
        url = tv.get_weight(LIBRARY[name][1]).url
        path = caches / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), path)
        return path
    folder, commit = caches / f"models--timm--{ENCODERS[name]}", 4 * "0123456789"
    path = folder / "snapshots" / commit / "model.safetensors"
    for parent in (path.parent, folder / "refs"):
        parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    safetensors.torch.save_file(net.state_dict(), path)
    return path


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """An empty folder as the caches of torch and of Hugging Face; nothing can be fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    real = networks.weights_url
    monkeypatch.setattr(networks, "weights_url", lambda name: f"http://127.0.0.1:9/{real(name).rsplit('/', 1)[1]}")
    return tmp_path


def own_features(name: str, net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library's network itself computes: (B, F) features, those of the patches' tokens averaged where it
    classifies by a class token, and (B, classes) logits."""
    if name in ENCODERS:
        maps = net.forward_features(x[:, 0])
        features = maps[:, 1:].mean(dim=1) if name in BY_CLASS_TOKEN else net.forward_head(maps, pre_logits=True)
        return features, net.forward_head(maps)
    seen = []
    layer = net.norm if name in BY_CLASS_TOKEN else net.avgpool
    layer.register_forward_hook(lambda _, given, result: seen.append(result))
    logits = net(x if name in VOLUMES else x[:, 0])
    return seen[0][:, 1:].mean(dim=1) if name in BY_CLASS_TOKEN else seen[0].flatten(1), logits


@pytest.mark.parametrize("name", SHAPES)
def test_planted_weights_give_the_librarys_own_features_and_logits(name, caches):
    net, kind = genuine(name), NETWORKS[name].kind
    path, source = planted(name, net, caches), choose_source(kind, "auto", name)
    assert weights_file(name) == path and source == ("timm" if name in ENCODERS else "torchvision")
    model = build_model(get_recipe("recommended", kind, **PLAIN), 1000 if kind == "2d" else 400, source, name).eval()
    assert (model.source, model.backbone) == (source, name)
    own = next(its for its in reversed(list(net.modules())) if isinstance(its, (nn.Linear, nn.Conv3d)))
    model.classifier[1].weight.data, model.classifier[1].bias.data = own.weight.data.flatten(1), own.bias.data
    pooled, x = [], torch.randn(SHAPES[name])
    model.stages[-1].register_forward_hook(lambda _, given, result: pooled.append(result))
    with torch.inference_mode():
        features, logits = own_features(name, net, x)
        ours = model(x)
        assert torch.equal(model.head(pooled[0]), ours)  # which is the trunk's end
        torch.testing.assert_close(pooled[0][:, 0], features, rtol=1e-3, atol=1e-4 * float(features.abs().max()))
        if name not in BY_CLASS_TOKEN:
            torch.testing.assert_close(ours, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("name", ENCODERS)
def test_timm_itself_reads_what_was_planted(name, caches, monkeypatch):
    net = genuine(name)
    planted(name, net, caches)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = timm.create_model(ENCODERS[name], pretrained=True).state_dict()
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(value, loaded[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", VOLUMES)
def test_a_clip_is_prepared_as_by_the_weights_own_transform(name):
    frames = np.random.default_rng(0).integers(0, 256, (3, 240, 320, 3), dtype=np.uint8)
    preset = tv.get_weight(LIBRARY[name][1]).transforms()
    ours = eval_transform(recipe_preprocessing(get_recipe("recommended", "3d", framing="preset"), name))
    theirs = preset(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1)
    assert torch.equal(apply_transform(frames, ours), theirs)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_frame_is_prepared_as_by_timms_transform(name):
    """To the last bit where timm is given a tensor. Pillow rounds between its two passes: a level's difference at most
    where that cuts nothing off."""
    frame = np.random.default_rng(0).integers(80, 176, (240, 320, 3), dtype=np.uint8)
    asked = timm.get_pretrained_cfg(ENCODERS[name]).to_dict()
    theirs = create_transform(**resolve_data_config(pretrained_cfg=asked))
    prep = recipe_preprocessing(get_recipe("recommended", "2d", framing="preset"), name)
    ours, pixels = eval_transform(prep), torch.from_numpy(frame).permute(2, 0, 1)[None]
    assert torch.equal(ours.steps(pixels), theirs.transforms[1](theirs.transforms[0](pixels)))
    ours, theirs = apply_transform(frame[None], ours)[0], theirs(Image.fromarray(frame))
    assert ours.shape == theirs.shape == (3, 224, 224)
    assert ((ours - theirs) * torch.tensor(prep.std)[:, None, None]).abs().max() * 255 < 1.01


# ---------------------------------------------------------------- weights that can't be had

@pytest.mark.parametrize("name", ["mc3_18", "mobilenetv3_large"])
def test_a_file_of_something_else_is_named(name, caches):
    path = planted(name, nn.Linear(2, 2), caches)
    recipe, source = recipe_for(name, modality="rgb"), NETWORKS[name].source
    for content in (None, b"half a file", safetensors.torch.save({"x": torch.zeros(1)})):
        if content:
            path.write_bytes(content)
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            build_model(recipe, 3, source, name)


def test_no_object_is_unpickled(caches):
    path = planted("mc3_18", nn.Linear(2, 2), caches)
    torch.save(tv.video.mc3_18(weights=None), path)  # the network itself, not its weights
    with pytest.raises(WeightsError, match="UnpicklingError"):
        build_model(recipe_for("mc3_18", modality="rgb"), 3, "torchvision", "mc3_18")


@pytest.mark.parametrize("name", ["swin3d_t", "convnext_tiny"])
def test_without_internet_one_error_says_what_to_do(name, caches):
    started = time.monotonic()
    with pytest.raises(WeightsError, match="can't fetch") as error:
        choose_source(NETWORKS[name].kind, "auto", name)
    for words in (weights_name(name), networks.weights_url(name), str(weights_file(name).parent), "BACKBONE",
                  "weights=None"):
        assert words in str(error.value)
    assert time.monotonic() - started < 5 and not list(caches.iterdir())
    path = weights_file(name)  # where the message says
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert choose_source(NETWORKS[name].kind, "auto", name) == NETWORKS[name].source


def test_a_silent_host_fails_in_time(caches, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        monkeypatch.setattr(networks, "FETCH_TIMEOUT", 1)
        monkeypatch.setattr(networks, "weights_url", lambda _: f"http://127.0.0.1:{server.getsockname()[1]}/x")
        started = time.monotonic()
        with pytest.raises(WeightsError, match="can't fetch"):
            choose_source("2d", "auto", "vit_small")
    assert time.monotonic() - started < 10


def test_whatever_the_hubs_client_raises_is_one_error(caches, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken off")

    monkeypatch.setattr("requests.head", lambda *_, **__: SimpleNamespace(raise_for_status=lambda: None))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(WeightsError, match=r"can't fetch .*broken off"):
        choose_source("2d", "auto", "vit_small")


# ---------------------------------------------------------------- as models

@pytest.mark.parametrize("name", NEW)
def test_the_recommended_recipe_takes_every_network(name):
    """Two streams, a grid and a frozen trunk with its BatchNorm folded; MViT, which can't be small, by shapes alone."""
    recipe, device = recipe_for(name, modality="rgb+diff"), "meta" if name == "mvit_v2_s" else "cpu"
    with torch.device(device):
        model, x = build_model(recipe, 3, "none", name).eval(), clips_for(name, recipe)
    text = summary(model, x)
    assert all(f"({stage})" in text for stage, _ in model.stages.named_children())
    with torch.inference_mode():
        kept, logits = model.joined(model.trunk, x), model(x)
        features = {"mvit_v2_s": 768, "swin3d_t": 768, "s3d": 1024, "convnext_tiny": 768, "vit_small": 384,
                    "mobilenetv3_large": 1280}.get(name, 512)
        assert kept.shape == (1, 10 if NETWORKS[name].kind == "2d" else 2, 6 * features) and logits.shape == (1, 3)
        if device == "cpu":
            assert (model.joined(FrozenTrunk(model, "cpu", "float32").run, x) - kept).norm() < 1e-4 * kept.norm()
            torch.testing.assert_close(model.head(kept), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NEW)
def test_a_training_step_leaves_the_frozen_part_as_it_was(name):
    recipe = recipe_for(name, modality="diff", trained="stage")
    model = build_model(recipe, 3, "none", name).train()
    nn.init.normal_(model.classifier[1].weight, std=0.01)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if name == "mvit_v2_s":  # of which two clips take half a minute
        logits = model.head(torch.randn(2, 1 + 8 * 7 * 7, 768))
    else:
        logits = model(clips_for(name, recipe, batch=2))
    cross_entropy(logits, torch.tensor([0, 1])).backward()
    torch.optim.SGD([its for its in model.parameters() if its.requires_grad], lr=1.0).step()
    frozen = {f"stages.{key}" for key in model.trunk.state_dict()}
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert frozen and not changed & frozen
    assert any(key.startswith("stages.") for key in changed) and "classifier.1.weight" in changed


@pytest.mark.parametrize("name", ["swin3d_t", "s3d", "vit_small", "convnext_tiny"])
def test_grad_cam_finds_their_feature_maps(name):
    torch.manual_seed(0)
    recipe = recipe_for(name, modality="diff", size=64)
    model = build_model(recipe, 3, "none", name).eval()
    nn.init.normal_(model.classifier[1].weight)
    maps, _ = class_maps(model, clips_for(name, recipe)[0].movedim(model.time - 1, 0))
    assert maps.shape == (5, 64, 64) and np.isfinite(maps).all() and maps.max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name, depth", [("swin3d_t", "stage3"), ("vit_small", "block8"), ("convnext_tiny", "stage2"),
                                         ("s3d", "mixed4")])
def test_a_part_of_a_network_ends_with_feature_maps_too(name, depth):
    recipe = recipe_for(name, modality="rgb", depth=depth)
    model = build_model(recipe, 3, "none", name).eval()
    with torch.inference_mode():
        assert model(clips_for(name, recipe)).shape == (1, 3) and list(dict(model.stages.named_children()))[-2] == depth


# ---------------------------------------------------------------- what a network demands

@pytest.mark.parametrize("name, followed", [
    ("mvit_v2_s", (224, 16, 16)), ("s3d", (160, 16, 5)), ("swin3d_t", (160, 16, 4)), ("vit_small", (160, 20, 8))])
def test_the_named_recipe_follows_what_a_network_demands(name, followed):
    recipe = get_recipe("recommended", NETWORKS[name].kind).resolved(name)
    assert (recipe.size, recipe.num_frames, recipe.stills) == followed and recipe.resolved(name) == recipe


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_the_seeds_recipe(name):
    recipe = get_recipe("seed", NETWORKS[name].kind)
    assert recipe.resolved(name).frames() == recipe.frames()
    assert recipe_preprocessing(recipe, name).crop in NETWORKS[name].sides


@pytest.mark.parametrize("name, changes, words", [
    ("mvit_v2_s", {"size": 128}, "MViTv2-S takes size = 224, not 128"),
    ("mvit_v2_s", {"num_frames": 8}, "num_frames = 16, not 8"),
    ("s3d", {"stills": 3}, "S3D takes stills = 5 or more, not 3"),
    ("vit_small", {"size": 100}, "size = 16 or more, in steps of 16, not 100")])
def test_what_a_network_does_not_take_is_told_before_it_is_built(name, changes, words):
    recipe = get_recipe("recommended", NETWORKS[name].kind, **changes)
    with pytest.raises(ValueError, match=words):
        build_model(recipe, 3, "none", name)
    unread = {"size": {"framing": "preset"}, "stills": {"modality": "diff"}}.get(next(iter(changes)))
    if unread:
        dataclasses.replace(recipe, **unread).resolved(name)


@pytest.mark.parametrize("name, frames, side, fits", [
    ("s3d", 5, 17, True), ("s3d", 4, 17, False), ("s3d", 5, 16, False), ("mvit_v2_s", 16, 224, True),
    ("mvit_v2_s", 15, 224, False), ("mvit_v2_s", 16, 208, False), ("vit_small", 1, 16, True),
    ("vit_small", 1, 24, False), ("convnext_tiny", 1, 32, True), ("convnext_tiny", 1, 31, False),
    ("swin3d_t", 1, 8, True), ("r2plus1d_18", 1, 8, True), ("mobilenetv3_large", 1, 8, True)])
def test_demands_are_the_networks_own(name, frames, side, fits):
    network = NETWORKS[name]
    assert (frames in network.frames and side in network.sides) == fits
    with torch.device("meta" if name == "mvit_v2_s" else "cpu"):
        model = build_model(recipe_for(name, **PLAIN), 3, "none", name).eval().to("meta")
    clip = torch.zeros(1, frames, 3, side, side, device="meta").movedim(1, model.time)
    try:
        assert model(clip).shape == (1, 3) and fits
    except (RuntimeError, AssertionError) as error:
        assert not fits, error


# ---------------------------------------------------------------- asked for by the environment

@pytest.mark.parametrize("text, flat, solid", [
    ("", None, None), ("swin3d_t", None, "swin3d_t"), ("convnext_tiny", "convnext_tiny", None),
    ("s3d vit_small", "vit_small", "s3d")])
def test_a_name_replaces_the_default_of_its_kind(text, flat, solid, monkeypatch):
    monkeypatch.setenv("BACKBONE", text)
    assert (asked_backbone("2d"), asked_backbone("3d")) == (flat, solid)


@pytest.mark.parametrize("text", ["vgg", "swin3d_t s3d", "convnext_tiny vgg", "vit_small vit_small"])
def test_a_wrong_name_is_told_with_what_there_is_before_anything_runs(text, monkeypatch):
    monkeypatch.setenv("BACKBONE", text)
    monkeypatch.setenv("DATASET", "no/such/folder")
    for command in (lambda: run_notebooks.main([]), lambda: tune.main(["--kind", "2d"])):
        with pytest.raises(SystemExit, match=f"^error: BACKBONE={text}: .*2d: resnet18.*; 3d: resnet3d"):
            command()


@pytest.mark.parametrize("notebook", ["03_2d_cnn", "04_3d_cnn", "05_tuning", "06_interpretation"])
def test_the_notebooks_read_it(notebook):
    cells = [cell for cell in read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells if cell.cell_type == "code"]
    assert "asked_backbone(" in cells[1].source and any("BACKBONE" in cell.source for cell in cells[2:])


@pytest.mark.parametrize("name", ["mobilenetv3_large", "s3d"])
def test_a_network_asked_for_is_trained_and_reloaded_and_the_default_is_another(name, caches, tiny_dataset, capsys):
    planted(name, genuine(name), caches)
    kind, data, cache = NETWORKS[name].kind, open_data(str(tiny_dataset), results=caches / "results"), caches / "cache"
    recipe = get_recipe("recommended", kind, **SMALL, epochs=1, test_clips=1)
    first, again = (load_or_train(kind, data, recipe, backbone=name, cache=cache) for _ in range(2))
    saved, words = read_json(first.files.sidecar), first.describe()["pretrained weights"]
    assert (saved["backbone"], saved["weights"]) == (name, NETWORKS[name].source)
    assert saved["weights_file"] == weights_name(name) and saved["weights_file"] in words
    assert not first.reloaded and again.reloaded and again.title == NETWORKS[name].title
    capsys.readouterr()
    recipe = dataclasses.replace(recipe, modality="rgb")
    assert prepare(kind, data, recipe, cache=cache).files.backbone == PACKAGED[kind]
    assert f"backbone is {DEFAULT_BACKBONE[kind]}, was {name}" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="can't fetch"):  # never silently others
        prepare(kind, data, recipe, backbone=DEFAULT_BACKBONE[kind], cache=cache)


@pytest.mark.parametrize("kind, source, name", [("2d", "timm", None), ("3d", "packaged", "swin3d_t"),
                                                ("2d", "torchvision", "vit_small"), ("3d", "none", "vit_small")])
def test_weights_and_networks_that_do_not_go_together_are_told(kind, source, name):
    with pytest.raises(ValueError, match=name or "resnet18"):
        choose_backbone(kind, source, name)


# ---------------------------------------------------------------- what is imported

def test_models_and_the_packaged_networks_need_none_of_the_large_libraries():
    code = ("import sys; import models; from config import PACKAGED, get_recipe\n"
            "for kind, source in (('2d', 'packaged'), ('3d', 'none')):\n"
            "    models.build_model(get_recipe('recommended', kind, modality='rgb+diff'), 3, source, PACKAGED[kind])\n"
            "print({'torchvision', 'timm', 'torchinfo', 'requests', 'sklearn', 'huggingface_hub'} & set(sys.modules))")
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


# ---------------------------------------------------------------- one's own

@pytest.fixture
def registry():
    """The networks that are registered in a test go with it."""
    before = dict(NETWORKS)
    yield
    NETWORKS.clear()
    NETWORKS.update(before)


def own_volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 8, 3, stride=(1, 4, 4)), nn.BatchNorm3d(8), nn.ReLU())


def test_the_readmes_own_network_and_recipe_run(registry, tiny_dataset, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "register(" in block]
    assert len(code.splitlines()) <= 15
    code = code.replace('"demo"', repr(str(tiny_dataset))).replace('"results/own"', repr(str(tmp_path)))
    names = {}
    exec(code, names)
    experiment = names["experiment"]
    assert experiment.title == names["network"].title and experiment.recipe.name == names["recipe"].name
    assert len(experiment.history["train_losses"]) == names["recipe"].epochs
    assert str(tmp_path) in str(experiment.files.checkpoint) and experiment.files.checkpoint.is_file()
    assert "none" in experiment.describe()["pretrained weights"]


def test_ones_own_network_of_volumes_with_weights_of_its_own(registry, tmp_path):
    net, path = own_volumes(), tmp_path / "own.pth"
    torch.save(net.state_dict(), path)
    network = register(Network("mine", "3d", "Mine", own_volumes, source="own", weights=path,
                               preprocessing=Preprocessing(resize=64, crop=48), sides=range(16, 100)))
    assert choose_source("3d", "auto", "mine") == "own"
    model = build_model(get_recipe("recommended", "3d", **{**SMALL, "modality": "rgb"}), 3, "own", "mine").eval()
    x = torch.randn(2, 3, 6, 64, 64)
    with torch.inference_mode():
        maps = nn.functional.adaptive_avg_pool3d(net.eval()(x), (1, 2, 3)).flatten(1)[:, None]
        torch.testing.assert_close(model.trunk(x), maps)
        assert torch.equal(model.head(model.trunk(x)), model(x))
    with pytest.raises(ValueError, match="Mine takes size"):
        get_recipe("recommended", "3d", size=128).resolved("mine")
    register(dataclasses.replace(network, weights=tmp_path / "gone.pth"))
    with pytest.raises(WeightsError, match=r"gone\.pth is missing"):
        choose_source("3d", "auto", "mine")


def test_a_process_that_gets_an_experiment_knows_its_network(registry, tiny_dataset, tmp_path):
    register(Network("mine", "3d", "Mine", own_volumes))
    data = open_data(str(tiny_dataset), results=tmp_path)
    recipe = get_recipe("recommended", "3d", **{**SMALL, "modality": "rgb"})
    experiment = dataclasses.replace(untrained(data, recipe, "none", 0, "mine", cache=tmp_path), model=None)
    sent = cloudpickle.dumps(experiment)
    del NETWORKS["mine"]
    assert title_of("mine") == "mine"
    assert cloudpickle.loads(sent).build().title == "Mine"


@pytest.mark.parametrize("name, kind", [("resnet18", "2d"), ("my net", "2d"), ("", "3d"), ("mine", "4d")])
def test_a_name_that_is_no_name_is_not_registered(registry, name, kind):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        register(Network(name, kind, "Mine", own_volumes))
    assert "mine" not in NETWORKS
