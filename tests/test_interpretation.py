import base64
import dataclasses
import io
import os
import re
from collections import OrderedDict

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import comparison
import plots
from config import Preprocessing, get_recipe
from conftest import REAL_CLIPS, moving_square, write_video
from experiment import Experiment, pooled_features
from files import ResultFiles, read_json, write_json
from models import Frames, PerFrame, VideoModel, build_model
from sampling import segment_indices
from studies import filmstrips, interpretation
from studies.interpretation import (
    VARIANTS,
    gallery,
    grad_cam,
    hardest_clips,
    motion_probe,
    motion_reading,
    nearest_training_clips,
    probabilities_over_time,
    still_background,
    trunk_embedding,
    variant_orders,
)
from videos.decoding import read_frames
from videos.demo import render_clip
from videos.library import open_data

CLASSES = ["PullUps", "Punch", "PushUps"]  # of conftest's squares: they go right, down, nowhere
WHOLE = Preprocessing(resize=(96, 128), crop=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Picked(nn.Module):
    """(B, T, F) to (B, F): what `choose` makes of the frames."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose

    def forward(self, x):
        return self.choose(x)


class Place(nn.Module):
    """(N, 3, H, W) to (N, 2): across and down, where what is bright lies, in shares of the picture."""

    def forward(self, x):
        bright = (x.amax(dim=1) - 0.5).relu()  # (N, H, W)
        down, across = (torch.linspace(0, 1, n) for n in bright.shape[1:])
        total = bright.sum(dim=(1, 2)).clamp(min=1e-6)
        sums = [(bright * ramp).sum(dim=(1, 2)) / total for ramp in (across, down[:, None])]
        return torch.stack(sums, dim=1)


def hand_made(stages, pool, weight, bias=(0.0, 0.0, 0.0), trained="all"):
    """A model with a given linear classifier, three logits."""
    model = VideoModel(OrderedDict(stages), len(weight[0]), 3, trained, dropout=0.5)
    model.pool = Picked(pool)
    model.backbone, model.source, model.preprocessing = "resnet18", "none", WHOLE
    with torch.no_grad():
        model.classifier[1].weight.copy_(torch.tensor(weight))
        model.classifier[1].bias.copy_(torch.tensor(bias))
    return model


def by_place(pool, kind="2d"):
    stages = [("frames", Frames())] if kind == "3d" else []
    stages += [("conv", PerFrame(nn.Identity())), ("pool", PerFrame(Place()))]
    return hand_made(stages, pool, [[100.0, 0.0], [0.0, 100.0], [0.0, 0.0]], (0.0, 0.0, 5.0))


@pytest.fixture
def experiment(tiny_dataset, tmp_path):
    """Of a hand-made model, with a sidecar, as if it had been trained."""
    data = open_data(str(tiny_dataset), results=tmp_path / "results")

    def make(model, kind="2d", **changes):
        recipe = get_recipe("recommended", kind, **{"modality": "rgb", "stills": None, "num_frames": 5, "cache": "none",
                                                    "sampling": "segments", "frame_rate": None, "batch_size": 6,
                                                    **changes})
        files = ResultFiles(data.results, kind, model.backbone)
        write_json(files.sidecar, {"sha256": "one"})
        return Experiment(data, recipe, model.eval(), files, torch.device("cpu"), 0, tmp_path / "cache")

    return make


def built(kind, backbone, size=64, source="none", **changes):
    torch.manual_seed(0)
    plain = {"modality": "rgb", "stills": None, "framing": "preset", "grid": "1x1", "pooling": "avg",
             "standardize": False}
    model = build_model(get_recipe("recommended", kind, **{**plain, **changes}), 3, source, backbone)
    model.preprocessing = dataclasses.replace(model.preprocessing, resize=size, crop=size)
    return model


# ---------------------------------------------------------------- motion

def test_a_model_that_goes_by_direction_fails_on_reversed_frames(experiment):
    run = experiment(by_place(lambda x: x[:, -1] - x[:, 0]))
    table = motion_probe(run).set_index("variant")
    still = (run.data.table("test")["label"] == "PushUps").mean()  # what one who sees no motion gets right
    assert list(table.index) == list(VARIANTS) and (table["clips"] == len(run.data.table("test"))).all()
    assert table.loc["as it is", "accuracy"] == 1 and table.loc["as it is", "changed"] == 0
    for name in ("one frozen frame", "frames reversed", "background only"):
        assert table.loc[name, "accuracy"] == pytest.approx(still), name
        assert table.loc[name, "changed"] == round((1 - still) * table.loc[name, "clips"])
        assert table.loc[name, "low"] < still < table.loc[name, "high"]
        assert table.loc[name, "probability"] < table.loc["as it is", "probability"]
    assert "uses the order of frames" in motion_reading(table.reset_index(), "2D-CNN")


def test_a_model_that_sees_the_middle_frame_loses_nothing_when_it_is_frozen(experiment):
    run = experiment(by_place(lambda x: x[:, 2]))
    table = motion_probe(run).set_index("variant")
    assert table.loc[["one frozen frame", "frames reversed"], "shift"].max() == 0  # the middle stays
    assert table.loc["frames shuffled", "shift"] > 0 and table.loc["background only", "shift"] > 0


@pytest.mark.parametrize("pooling, exact", [("avg", True), ("max", True), ("conv", False)])
def test_order_is_lost_on_poolings_without_one(experiment, pooling, exact):
    model = built("2d", "resnet18", pooling=pooling)
    if pooling == "conv":
        nn.init.normal_(model.pool.up.weight)
    table = motion_probe(experiment(model)).set_index("variant")
    shift = table.loc[["frames shuffled", "frames reversed"], "shift"].max()
    assert (shift < interpretation.ROUNDING) == exact


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_variants_equal_the_model_run_on_edited_clips(experiment, kind):
    model = built(kind, "resnet18" if kind == "2d" else "resnet3d", size=32, trained="stage")
    run = experiment(model, kind, num_frames=3)
    table, dataset = motion_probe(run).set_index("variant"), run.dataset("test")
    time = 1 if kind == "2d" else 2
    clips = torch.stack([dataset[i][0] for i in range(len(dataset))])
    labels = [dataset.label(i) for i in range(len(dataset))]
    middle = clips.select(time, 1).unsqueeze(time).expand_as(clips)
    by_name = {"as it is": clips, "frames reversed": clips.flip(time), "one frozen frame": middle}
    for name, edited in by_name.items():
        with torch.inference_mode():
            direct = run.model(edited).double().softmax(dim=1)[range(len(labels)), labels].mean()
        assert table.loc[name, "probability"] == pytest.approx(float(direct), abs=1e-4)


def test_results_are_kept_for_this_checkpoint_only(experiment, monkeypatch):
    run = experiment(by_place(lambda x: x[:, -1] - x[:, 0], "3d"), "3d")
    first = motion_probe(run)
    kept = read_json(run.data.results / "behaviour" / "3d-cnn.json")
    assert kept["of"] == "one" and len(kept["motion"]) == len(VARIANTS)
    seen = []
    monkeypatch.setattr(interpretation, "variant_orders", lambda *asked: seen.append(asked) or variant_orders(*asked))
    pd.testing.assert_frame_equal(motion_probe(run), first, check_exact=True)
    assert not seen
    write_json(run.files.sidecar, {"sha256": "two"})
    assert len(motion_probe(run)) == len(VARIANTS) and len(seen) == len(run.data.table("test"))
    assert read_json(run.data.results / "behaviour" / "3d-cnn.json")["of"] == "two"


def test_the_same_model_with_other_test_clips_is_probed_anew(experiment, tmp_path):
    """A test clip is taken away: training gives the same checkpoint, to the bit."""
    run = experiment(by_place(lambda x: x[:, -1] - x[:, 0], "3d"), "3d")
    write_json(run.files.sidecar, {"sha256": "one", "split": run.data.split["sha256"]})
    before, clips = pooled_features(run, "test"), motion_probe(run)["clips"].max()
    fewer = run.data.table("test").iloc[1:]
    fewer.to_csv(tmp_path / "test.csv", index=False)
    run.data = dataclasses.replace(run.data, splits={**run.data.splits, "test": tmp_path / "test.csv"})
    write_json(run.files.sidecar, {"sha256": "one", "split": "one clip fewer"})
    np.testing.assert_array_equal(pooled_features(run, "test"), before[1:])
    assert motion_probe(run)["clips"].max() == clips - 1


@given(stills=st.integers(0, 32), pairs=st.integers(0, 32), name=st.text(min_size=1))
def test_orders_show_every_frame_where_they_should(stills, pairs, name):
    assume(stills + pairs)
    orders = dict(zip(VARIANTS, variant_orders(stills, pairs, name), strict=True))
    frames = stills + 2 * pairs
    whole, rgb = list(range(frames)), list(range(stills))
    first, second = whole[stills:stills + pairs], whole[stills + pairs:]
    assert orders["as it is"].tolist() == whole
    assert orders["frames reversed"].tolist() == rgb[::-1] + second[::-1] + first[::-1]  # a difference changes its sign
    shuffled = orders["frames shuffled"]
    assert sorted(shuffled[:stills]) == rgb and sorted(shuffled[stills:stills + pairs]) == first
    assert (shuffled[stills + pairs:] - shuffled[stills:stills + pairs] == pairs).all()  # pairs stay together
    assert len(set(orders["one frozen frame"])) == 1 and set(orders["one frozen frame"]) < {*whole, frames}
    assert orders["one frozen frame"][0] == (stills // 2 if stills else pairs // 2)
    assert set(orders["background only"]) == {frames}
    np.testing.assert_array_equal(shuffled, variant_orders(stills, pairs, name)[2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_differences_of_a_frozen_frame_or_of_a_background_are_grey(experiment, kind):
    """A model of differences answers alike whatever frozen clip it is shown; reversed, their signs are turned round."""
    model = built(kind, "efficientnet_lite0" if kind == "2d" else "efficientnet_lite0_3d", modality="diff")
    run = experiment(model, kind, num_frames=3, modality="diff")
    table, dataset = motion_probe(run).set_index("variant"), run.dataset("test")
    grey = (0.5 - torch.tensor(model.preprocessing.mean)) / torch.tensor(model.preprocessing.std)
    still = dataset.layout(grey.view(1, 3, 1, 1).expand(3, 3, 64, 64))
    clips = torch.stack([dataset[i][0] for i in range(len(dataset))])
    around = dataset.layout(grey.view(1, 3, 1, 1))
    turned = (2 * around - clips).flip(1 if kind == "2d" else 2)
    labels = [dataset.label(i) for i in range(len(dataset))]
    edited = {"as it is": clips, "one frozen frame": still.expand_as(clips), "frames reversed": turned,
              "background only": still.expand_as(clips)}
    for name, its in edited.items():
        with torch.inference_mode():
            direct = model(its.contiguous()).double().softmax(dim=1)[range(len(labels)), labels].mean()
        assert table.loc[name, "probability"] == pytest.approx(float(direct), abs=1e-4), name


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), height=st.integers(16, 90), width=st.integers(16, 120))
def test_the_background_of_a_still_clip_is_its_picture(seed, height, width):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    background, moved = still_background(np.repeat(picture[None], 5, 0))
    np.testing.assert_array_equal(background, picture)
    assert not moved.any()


def test_what_moves_is_painted_over_and_a_shaking_camera_is_not(monkeypatch):
    rng, frames = np.random.default_rng(0), moving_square(0, 0, 25)
    frames = np.concatenate([frames[:1].repeat(15, 0), frames[-10:]])  # its first place is in the median
    background, moved = still_background(frames)
    assert background.max() < 80 < np.median(frames, axis=0).max()  # the noise alone goes to 60
    assert 0.1 < moved.mean() < 0.7
    scene = cv2.GaussianBlur(rng.integers(0, 256, (246, 326, 3), dtype=np.uint8), (0, 0), 6)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX)
    shaken = np.stack([scene[y:y + 240, x:x + 320] for y, x in rng.integers(0, 7, (25, 2))])
    assert (np.ptp(shaken, axis=0).max(axis=2) > 2 * interpretation.MOVED).mean() > 0.3  # a third changes
    assert still_background(shaken)[1].mean() < 0.05
    monkeypatch.setattr(interpretation, "SHAKE", 0)
    assert still_background(shaken)[1].mean() > 0.5


def test_little_of_a_rendered_clip_is_painted_over():
    frames = render_clip("PushUps", group=4, clip=1)
    background, moved = still_background(frames[segment_indices(len(frames), 25)])
    assert background.shape == frames.shape[1:] and 0.01 < moved.mean() < 0.4


@pytest.mark.skipif(not any(REAL_CLIPS.rglob("*.avi")), reason="no real clips beside the repository")
def test_a_travelling_camera_is_told():
    path = REAL_CLIPS / "Punch" / "v_Punch_g01_c01.avi"
    frames, _ = read_frames(path, lambda info: segment_indices(info.frames, 25))
    assert still_background(frames)[1].mean() > interpretation.UNTELLING


def reading(changed=(0,) * 4, shift=(0.0,) * 4, accuracy=(1.0, 1.0, 1.0, 1.0, 0.5), painted=0.2):
    table = pd.DataFrame({"variant": VARIANTS, "clips": 18, "accuracy": accuracy, "changed": [0, *changed],
                          "shift": [0.0, *shift], "painted": [0.0] * 4 + [painted], "chance": 1 / 3})
    table = table.assign(low=table["accuracy"] - 0.2, high=table["accuracy"] + 0.2)
    return motion_reading(table, "2D-CNN")


def test_reading_says_what_the_numbers_say():
    said = reading()
    assert "does not use their order" in said
    assert "on 18 of 18 test videos, from one frozen frame on 18" in said
    assert "no answer changes" in said and "(20% of the picture) on 9." in said
    little = reading(shift=(0.0, 0.004, 0.0, 0.0))
    assert "hardly matters" in little and "more than 0.004." in little
    used = reading((4, 2, 1, 9), accuracy=(1.0, 14 / 18, 16 / 18, 17 / 18, 0.5))
    assert "2 change when frames are shuffled and 1 when they are reversed; 16 and 17 are right then" in used
    assert "on 14 (4 answers change)" in used and "tells little" not in used
    assert "tells little of the background" in reading(painted=0.9)
    for frozen, words in ((1.0, "does not need motion"), (6 / 18, "It needs motion"), (0.0, "mislead")):
        assert words in reading(accuracy=(1.0, frozen, 1.0, 1.0, 0.5))


# ---------------------------------------------------------------- where it looks

def coloured(run, red_until):
    """The clip_path of red in the upper left corner, until a frame, and green in the lower right one."""
    frames = np.zeros((20, 96, 128, 3), np.uint8)
    frames[:red_until, 8:40, 24:56, 0] = 255
    frames[:, 56:88, 72:104, 1] = 255
    path = write_video(run.data.results / "coloured.avi", frames)
    return f"/{os.path.relpath(path, run.data.root)}"


def by_colour(kind):
    """Red speaks for the first class, green for the second and against the first."""
    if kind == "2d":
        conv = nn.Conv2d(3, 3, 8, stride=8, bias=False)
        stages = [("conv", PerFrame(conv)), ("pool", PerFrame(nn.AdaptiveAvgPool2d(1), nn.Flatten()))]
    else:
        conv = nn.Conv3d(3, 3, (5, 8, 8), stride=(5, 8, 8), bias=False)
        average = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Unflatten(1, (1, -1)))
        stages = [("conv", nn.Sequential(conv)), ("pool", average)]
    nn.init.zeros_(conv.weight)
    for channel in range(3):
        nn.init.ones_(conv.weight[channel, channel])
    model = hand_made(stages, lambda x: x.mean(dim=1), [[4.0, -0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    model.time, model.frame_wise = (1, True) if kind == "2d" else (2, False)
    return model


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_grad_cam_lights_what_the_model_looks_at(experiment, kind):
    run = experiment(by_colour(kind), kind, num_frames=20)
    cam = grad_cam(run, coloured(run, red_until=14), frames=10)
    assert cam.maps.shape == (10, 96, 96) and cam.frames.shape == (10, 96, 96, 3)
    assert cam.predicted == "PullUps" and 0.5 < cam.probability <= 1
    assert cam.maps.min() >= 0 and cam.maps.max() == pytest.approx(1, abs=1e-5)
    early = cam.maps[cam.times < 0.35]
    assert early[:, :48, :48].sum() > 0.95 * early.sum() > 0
    assert cam.maps[cam.times > 0.75].max() < 0.05  # the red is gone, the green doesn't count
    assert cam.frames[0, 24, 24].tolist() == [255, 0, 0]
    np.testing.assert_allclose(cam.times, segment_indices(20, 10) / 25)


@pytest.mark.slow
@pytest.mark.parametrize("kind, backbone", [("2d", "resnet18"), ("2d", "efficientnet_lite0"),
                                            ("3d", "resnet3d"), ("3d", "efficientnet_lite0_3d")])
def test_grad_cam_of_averaged_features_is_the_class_activation_map(experiment, kind, backbone):
    """Where a linear layer follows an average, Grad-CAM is CAM (Zhou et al. 2016) up to a factor."""
    model = built(kind, backbone, source="none" if backbone in ("resnet18", "resnet3d") else "packaged")
    run = experiment(model, kind, num_frames=4)
    path = run.data.table("test")["clip_path"].iloc[0]
    cam = grad_cam(run, path, frames=4)
    with torch.inference_mode():
        pooled = list(dict(model.stages.named_children())).index("pool")
        maps = model.stages[:pooled](run.dataset("test")[0][0][None])[0]
        maps = maps.transpose(0, 1) if backbone != "resnet3d" else maps  # (F, T', h, w)
        weight = model.classifier[1].weight[run.data.class_map[cam.predicted]]
        expected = torch.einsum("f,fthw->thw", weight, maps).relu()
        expected = nn.functional.interpolate(expected[None, None], (4, 64, 64), mode="trilinear")[0, 0]
    assert expected.max() > 0
    np.testing.assert_allclose(cam.maps, expected / expected.max(), atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_strip_has_a_row_of_frames_and_one_of_responses():
    figure, axes = plt.subplots(2, 3)
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    maps = np.linspace(0, 1, 192).reshape(3, 8, 8)
    plots.cam_strip(frames, maps, "Punch with probability 0.81", axes, np.arange(3.0))
    assert axes[0, 0].texts[0].get_text() == "Punch with probability 0.81"
    assert [len(ax.images) for ax in axes.flat] == [1, 1, 1, 2, 2, 2]
    overlay = axes[1, 0].images[1]
    assert overlay.get_clim() == (0, 1) and overlay.get_cmap().name == "viridis"
    plt.close(figure)


# ---------------------------------------------------------------- what it holds alike

@pytest.mark.slow
@pytest.mark.parametrize("kept", ["none", "activations"])
def test_embedding_has_every_clip_once_and_is_kept(experiment, monkeypatch, kept):
    run = experiment(built("2d", "resnet18", trained="head"), num_frames=2, cache=kept, precision="float32")
    table = trunk_embedding(run)
    assert list(table) == ["x", "y", "label", "part", "clip_path"] and len(table) == 36
    assert table["clip_path"].is_unique and np.isfinite(table[["x", "y"]]).all(axis=None)
    for part in ("train", "val", "test"):
        its = table.loc[table["part"] == part, "clip_path"]
        assert its.tolist() == run.data.table(part)["clip_path"].tolist()
    with torch.inference_mode():
        direct = run.model.pool(run.model.stages(run.dataset("val")[0][0][None]))[0]
    features = pooled_features(run, "val")
    assert np.linalg.norm(features[0] - direct.numpy()) < 1e-3 * direct.norm()
    monkeypatch.setattr(Experiment, "loader", None)  # nothing is computed again
    pd.testing.assert_frame_equal(trunk_embedding(run), table)
    ax = plt.figure().gca()
    plots.embedding(table, "features", ax)
    assert {*CLASSES, "train", "val", "test"} <= {text.get_text() for text in ax.get_legend().get_texts()}
    plt.close()


@pytest.mark.slow
def test_nearest_training_clips_equal_sorting_all_cosines(experiment):
    run = experiment(built("2d", "resnet18"), num_frames=2)
    train = run.data.table("train")
    paths = [*run.data.table("test")["clip_path"][:2], train["clip_path"].iloc[3]]
    table = nearest_training_clips(run, paths, count=3)
    known = pooled_features(run, "train")
    asked = np.stack([*pooled_features(run, "test")[:2], known[3]])
    cosines = asked @ known.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(known, axis=1)
    cosines[2, 3] = -1  # not its own neighbour
    for path, row in zip(paths, cosines, strict=True):
        own, best = table[table["clip_path"] == path], np.argsort(-row)[:3]
        assert own["neighbour"].tolist() == train["clip_path"].iloc[best].tolist()
        assert own["rank"].tolist() == [1, 2, 3]
        assert own["label"].tolist() == train["label"].iloc[best].tolist()
        np.testing.assert_allclose(own["similarity"], row[best], atol=1e-5)
    with pytest.raises(ValueError, match=r"/nowhere\.avi"):
        nearest_training_clips(run, ["/nowhere.avi"])


# ---------------------------------------------------------------- where it errs

@pytest.mark.parametrize("kind, sampling", [("2d", "segments"), ("3d", "window"), ("3d", "time")])
def test_probabilities_follow_the_clip(experiment, kind, sampling):
    """Red and green up to half of it, then green alone."""
    changes = {"sampling": sampling, "frame_rate": 25.0 if sampling == "time" else None}
    run = experiment(by_colour(kind), kind, num_frames=20 if kind == "2d" else 5, **changes)
    table = probabilities_over_time(run, coloured(run, red_until=10), views=4)
    assert list(table) == CLASSES and len(table) == 4 and table.index.is_monotonic_increasing
    np.testing.assert_allclose(table.sum(axis=1), 1)
    assert table["PullUps"].iloc[0] > 0.5 > table["PullUps"].iloc[-1] and table["Punch"].iloc[-1] > 0.5
    assert 0 <= table.index[0] < 0.15 and 0.6 < table.index[-1] < 0.8


def predictions(run, wrong):
    """Of the test set, with the first few wrong and certainty that falls with each row."""
    table = run.data.table("test")[["clip_path", "group", "label"]]
    other = {"PullUps": "Punch", "Punch": "PushUps", "PushUps": "PullUps"}
    table["predicted"] = [other[label] if i < wrong else label for i, label in enumerate(table["label"])]
    sure = np.linspace(0.9, 0.5, len(table))
    for name in CLASSES:
        table[f"p_{name}"] = np.where(table["predicted"] == name, sure, (1 - sure) / 2)
    return table


def test_gallery_shows_what_is_wrong_then_what_is_uncertain(experiment):
    run = experiment(by_place(lambda x: x[:, -1] - x[:, 0]))
    table, figures = predictions(run, wrong=2), plt.get_fignums()
    page = gallery(run, table, count=3)
    shown = re.findall(r"<figcaption>(\S+): true", page)
    assert shown == [*table["clip_path"][:2], table["clip_path"].iloc[-1]]  # the most certain mistake first
    assert page.count("WRONG</figcaption>") == 2 and page.count("correct</figcaption>") == 1
    pictures = re.findall(r'<img alt="([^"]+)"[^>]* src="data:image/(webp|png);base64,([^"]+)">', page)
    assert len(pictures) == page.count("<img") == 6
    drawn = [words for words, kind, _ in pictures if kind == "png"]
    assert all(words.startswith("class probabilities over time: PullUps 0.") for words in drawn)
    moving = Image.open(io.BytesIO(base64.b64decode(pictures[0][2])))
    assert moving.n_frames == interpretation.GALLERY_FRAMES
    moving.load()  # a WebP tells how long a frame lasts once it is decoded
    assert moving.info["duration"] == pytest.approx(1000 * 20 / 25 / interpretation.GALLERY_FRAMES, abs=6)
    assert plt.get_fignums() == figures  # its own are closed


def test_hardest_clips_come_from_both_models_in_turn(experiment):
    run = experiment(by_place(lambda x: x[:, 0]))
    wrong, right = predictions(run, wrong=2), predictions(run, wrong=0)
    mistakes, unsure = wrong["clip_path"], right["clip_path"].iloc[::-1].tolist()
    assert hardest_clips([wrong, right]) == [mistakes[0], unsure[0], mistakes[1]]
    assert hardest_clips([wrong, wrong], count=2) == mistakes[:2].tolist()  # each once


def test_gallery_shows_all_mistakes_or_the_least_certain(experiment):
    run = experiment(by_place(lambda x: x[:, -1] - x[:, 0]))
    assert gallery(run, predictions(run, wrong=2), count=1).count("WRONG") == 2 * 2  # caption and its text
    page = gallery(run, predictions(run, wrong=0), count=1)
    assert page.count("<figure") == 1 and "WRONG" not in page
    assert page.count('src="data:') == page.count("src=")
    with pytest.raises(ValueError, match="no clips"):
        gallery(run, predictions(run, wrong=0).head(0))


def test_comparison_of_kept_probes_with_rules(tmp_path):
    for name, accuracy in (("2d-cnn", 0.9), ("3d-cnn", 0.8)):
        rows = [{"variant": variant, "accuracy": accuracy - 0.1 * i} for i, variant in enumerate(VARIANTS)]
        write_json(tmp_path / "behaviour" / f"{name}.json", {"of": "x", "motion": rows})
    table = comparison.motion_comparison(tmp_path)
    assert list(table) == ["2D-CNN", "3D-CNN"] and table.loc["one frozen frame", "3D-CNN"] == "0.700"
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "shortcuts.csv").write_text("rule,accuracy\nduration,0.5\nmost frequent class,0.4\n")
    table = comparison.motion_comparison(tmp_path)
    assert table.loc["duration", "rule without a model"] == "0.500" and table.loc["duration", "2D-CNN"] == "–"


# ---------------------------------------------------------------- filmstrips and how they are shown

def test_animation_plays_every_frame_at_its_speed_and_is_small():
    frames = moving_square(0, 0, 12)
    page = filmstrips.animation(frames, 'a <clip> & "more"', fps=5, height=60)
    assert 'alt="animation: a &lt;clip&gt; &amp; &quot;more&quot;"' in page and 'width="80" height="60"' in page
    data = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", page).group(1))
    moving = Image.open(io.BytesIO(data))
    assert moving.n_frames == 12 and moving.size == (80, 60)
    for i in range(12):
        moving.seek(i)
        moving.load()
        small = np.asarray(Image.fromarray(frames[i]).resize((80, 60)), dtype=int)
        assert moving.info["duration"] == 200 and np.abs(np.asarray(moving.convert("RGB")) - small).mean() < 25
    gif = io.BytesIO()
    first, *others = (Image.fromarray(frame).resize((80, 60)) for frame in frames)
    first.save(gif, "GIF", save_all=True, append_images=others)
    assert len(data) < len(gif.getvalue()) / 2


def test_strips_name_each_clip_and_show_it(tiny_dataset):
    table = pd.read_csv(tiny_dataset / "splits" / "test.csv", dtype=str)
    samples = filmstrips.sample_strips(table, tiny_dataset, count=3)
    assert [len(ax.images) for ax in samples.axes] == [1] * 9
    told = table.head(2).assign(predicted=["Punch", table["label"].iloc[1]], probability=[0.9, 0.4])
    figure = filmstrips.prediction_strips(told, tiny_dataset, count=4)
    titles = [text.get_text() for ax in figure.axes for text in ax.texts]
    first = told["clip_path"].iloc[0]
    assert titles[0] == f"{first}: true PullUps, predicted Punch with probability 0.90: WRONG"
    assert titles[1].endswith("0.40: correct")
    plt.close("all")


def test_figures_with_photographs_are_shown_as_jpeg_and_saved_as_png(tmp_path, monkeypatch):
    displayed = []
    monkeypatch.setattr(plots, "display", displayed.append)
    figure, axes = plt.subplots(1, 3)
    plots.clip_strip(moving_square(0, 0, 3), "Punch", axes)
    plots.show(figure, tmp_path / "strip.png")
    assert [Image.open(io.BytesIO(picture.data)).format for picture in displayed] == ["JPEG"]
    assert Image.open(tmp_path / "strip.png").format == "PNG"
    figure, ax = plt.subplots()
    plots.confusion_heatmap(np.eye(2, dtype=int), ["a", "b"], "", ax)
    plots.show(figure, tmp_path / "matrix.png")
    drawing = Image.open(io.BytesIO(displayed[1].data))
    assert len(displayed) == 2 and not plt.get_fignums()
    assert drawing.format == "PNG" and displayed[1].data == (tmp_path / "matrix.png").read_bytes()
    assert drawing.width == pytest.approx(plots.FINER * displayed[1].width, abs=1)


def test_of_many_classes_those_that_are_confused_lie_beside_each_other():
    classes = [f"class{number:02d}" for number in range(40)]
    matrix = 10 * np.eye(40, dtype=int)
    for first, second in ((0, 39), (5, 20), (11, 30)):
        matrix[first, second] = matrix[second, first] = 8
    figure, ax = plots.matrix_axes(len(classes))
    plots.confusion_heatmap(matrix, classes, "Test", ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    drawn = ax.images[0].get_array()
    assert sorted(names) == classes and drawn.trace() == 400 and drawn.sum() == matrix.sum()
    for first, second in ((0, 39), (5, 20), (11, 30)):
        assert abs(names.index(classes[first]) - names.index(classes[second])) == 1
    plt.close(figure)
    _, ax = plt.subplots(figsize=(3, 2))  # no room for names
    plots.confusion_heatmap(matrix, classes, "Test", ax)
    assert {label.get_text() for label in ax.get_yticklabels()} == {""}
    _, ax = plots.matrix_axes(3)
    plots.confusion_heatmap(np.diag([3, 2, 1]), ["A", "B", "C"], "Test", ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B", "C"] and ax.get_title() == "Test"
    plt.close("all")
