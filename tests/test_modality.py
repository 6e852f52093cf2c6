"""Differences of frames, whole frames, two streams, and what stands between a frozen trunk and a classifier."""

import dataclasses

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import config
import experiment
from config import RGB_WEIGHT, get_recipe
from conftest import numbered_frames, write_csv, write_video
from data_loader import ClipViews, VideoDataset2D
from experiment import untrained
from modality import modality_scores
from models import (
    GridPool,
    Standardize,
    TemporalPool,
    TwoStream,
    build_model,
    preprocessing_of,
    recipe_preprocessing,
)
from sampling import FrameSampler
from transforms import DIFFERENCE_GAIN, denormalize, eval_transform, recipe_transform, train_transform
from videos.decoding import VideoInfo
from videos.library import open_data

SMALL = {"num_frames": 4, "stills": 2, "size": 64, "train_views": 2, "test_clips": 2, "precision": "float32"}
GAP = 1 / 15
PACKAGED = [("2d", "packaged", None), ("3d", "packaged", None)]
NETWORKS = [*PACKAGED, ("2d", "none", "resnet18"), ("3d", "none", "resnet3d")]
PRECISIONS = [(*its, "float32", 2e-3) for its in NETWORKS] + [(*its, "bfloat16", 0.06) for its in PACKAGED]


def small(kind, modality, **changes):
    return get_recipe("recommended", kind, **{**SMALL, "modality": modality, **changes})


def clip_of(path, class_map, recipe, fps=25.0, frames=None, train=False):
    """A data set of one clip of Punch, as a recipe samples and transforms it."""
    root = path / f"{fps:g}"
    write_video(root / "Punch" / "a.avi", frames, fps)
    csv = write_csv(root / "clips.csv", [("/Punch/a.avi", "Punch")])
    transform = recipe_transform(recipe, recipe_preprocessing(recipe, "efficientnet_lite0"), train)
    return VideoDataset2D(csv, root, class_map, transform=transform, train=train, **recipe.frames())


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return open_data(str(tiny_dataset), results=tmp_path / "results")


# ---------------------------------------------------------------- differences

@given(frames=st.integers(1, 300), fps=st.sampled_from([0.0, 10.0, 25.0, 29.97, 50.0]), stills=st.integers(1, 12),
       pairs=st.integers(12, 20), position=st.floats(0, 1),
       sampling=st.sampled_from(["window", "segments", "time"]))
def test_a_clip_is_stills_then_first_and_second_frames(frames, fps, stills, pairs, position, sampling):
    info, settings_ = VideoInfo(frames, fps, 8, 8), {"frame_rate": 15.0, "gap": GAP}
    both = FrameSampler(pairs, sampling, modality="rgb+diff", stills=stills, **settings_)
    indices = both(info, position)
    assert len(indices) == stills + 2 * pairs and indices.min() >= 0 and indices.max() < frames
    first, second = indices[stills:stills + pairs], indices[stills + pairs:]
    assert (second - first == min(max(round(GAP * (fps or 25)), 1), frames - 1)).all()
    rgb, diff = (FrameSampler(pairs, sampling, modality=name, stills=stills, **settings_) for name in ("rgb", "diff"))
    np.testing.assert_array_equal(np.concatenate([rgb(info, position), diff(info, position)]), indices)


def test_differences_have_the_known_values(tmp_path, class_map):
    """A frame's grey is 5 times its number: two frames later it is 10 higher, whatever the crop."""
    recipe = small("2d", "diff")
    clip, _ = clip_of(tmp_path, class_map, recipe, frames=numbered_frames(40))[0]
    prep = preprocessing_of("efficientnet_lite0")
    values = clip * torch.tensor(prep.std).view(3, 1, 1) + torch.tensor(prep.mean).view(3, 1, 1)
    assert clip.shape == (4, 3, 64, 64) and round(GAP * 25) == 2
    torch.testing.assert_close(values, torch.full_like(values, 0.5 + DIFFERENCE_GAIN * 10 / 255))


@pytest.mark.parametrize("sampling", ["segments", "time"])
def test_differences_agree_at_twice_the_frame_rate(tmp_path, class_map, sampling):
    """The same motion, brighter by 50 grey levels a second, filmed at 25 and at 50 frames per second."""
    recipe = small("2d", "diff", sampling=sampling, frame_rate=12.5 if sampling == "time" else None, gap=0.08)
    films = [(fps, np.rint(50 / fps * np.arange(1.6 * fps)).astype(np.uint8)) for fps in (25.0, 50.0)]
    clips = [clip_of(tmp_path, class_map, recipe, fps, np.broadcast_to(greys[:, None, None, None],
                                                                       (len(greys), 48, 64, 3)))[0][0]
             for fps, greys in films]
    grey = clip_of(tmp_path / "still", class_map, recipe, frames=numbered_frames(1).repeat(40, axis=0))[0][0]
    torch.testing.assert_close(*clips)
    assert (clips[0] > grey).all()


@pytest.mark.parametrize("train", [False, True])
def test_a_still_clip_is_grey(tmp_path, class_map, train):
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for framing in ("whole", "preset"):
        recipe = small("2d", "diff", framing=framing)
        dataset = clip_of(tmp_path, class_map, recipe, frames=np.repeat(frame[None], 20, axis=0), train=train)
        clip, _ = dataset[0]
        grey = dataset.transform.normalize(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))[0, :, 0, 0]  # of two blacks
        assert torch.equal(clip, grey.view(1, 3, 1, 1).expand_as(clip))
        assert (denormalize(clip, preprocessing_of("efficientnet_lite0")) == 128).all()  # half of 255, rounded


def test_streams_of_both_are_those_of_each(tmp_path, class_map):
    """RGB and differences side by side are what each modality gives by itself."""
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    both, rgb, diff = (clip_of(tmp_path, class_map, small("2d", name), frames=frames)[0][0]
                       for name in ("rgb+diff", "rgb", "diff"))
    assert both.shape[0] == 2 + 4 and torch.equal(both, torch.cat([rgb, diff]))
    assert not torch.equal(rgb[0], diff[0])


def test_colour_is_left_alone_where_differences_are_all_that_is_seen():
    """Differences of pictures whose colours were changed are other differences."""
    prep = recipe_preprocessing(small("2d", "diff"), "efficientnet_lite0")
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8))
    plain = eval_transform(prep, 0)(clip)
    seen = [train_transform(prep, 0)(clip) for _ in range(6)]
    assert all(torch.equal(its, plain) or torch.equal(its, plain.flip(3)) for its in seen)
    coloured = [train_transform(prep, 2)(clip) for _ in range(3)]
    assert not any(torch.equal(its, eval_transform(prep, 2)(clip)) for its in coloured)


@pytest.mark.parametrize("train", [False, True])
def test_nothing_is_cut_away_of_the_whole_frame(tmp_path, class_map, train):
    """A marker in each corner of a wide picture is there after `whole`, and lost after `preset`."""
    frames = np.zeros((20, 90, 200, 3), np.uint8)
    for rows in (slice(0, 9), slice(-9, None)):
        for columns in (slice(0, 20), slice(-20, None)):
            frames[:, rows, columns] = 255
    lit = {}
    for framing in ("whole", "preset"):
        recipe = small("2d", "rgb", framing=framing)
        dataset = clip_of(tmp_path, class_map, recipe, frames=frames, train=train)
        torch.manual_seed(1)  # brightness and contrast can leave half of the white, and here leave more
        clip = denormalize(dataset[0][0], preprocessing_of("efficientnet_lite0"))
        lit[framing] = [clip[:, y, x].min() for y in (2, -3) for x in (2, -3)]
        if framing == "whole":
            assert clip.shape[1:3] == (64, 64) and (clip[:, 20:44, 20:44] < 40).all()
    assert min(lit["whole"]) > 150
    assert train or max(lit["preset"]) == 0


@pytest.mark.parametrize("backbone", config.NETWORKS)
def test_preset_is_the_weights_own_framing_and_whole_keeps_its_statistics(backbone):
    own, kind = preprocessing_of(backbone), config.NETWORKS[backbone].kind
    assert recipe_preprocessing(small(kind, "rgb", framing="preset"), backbone) == own
    whole = recipe_preprocessing(small(kind, "rgb", size=None), backbone)
    assert whole == dataclasses.replace(own, resize=(own.crop, own.crop))
    assert recipe_preprocessing(small(kind, "rgb", size=96), backbone).crop == 96


def test_unknown_modality_and_framing_are_told():
    with pytest.raises(ValueError, match="unknown modality 'flow'"):
        FrameSampler(4, modality="flow")
    with pytest.raises(ValueError, match="unknown framing 'some'"):
        recipe_preprocessing(small("2d", "rgb", framing="some"), "resnet18")


# ---------------------------------------------------------------- pooling and standardisation

@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_statistics_over_time(frames):
    x = torch.randn(2, frames, 5)
    pool = TemporalPool("stats", 5)
    pooled = pool(x)
    assert pooled.shape == (2, pool.out_features) == (2, 25) and torch.isfinite(pooled).all()
    mean, thirds, deviation = pooled.split([5, 15, 5], dim=1)
    torch.testing.assert_close(mean, x.mean(dim=1))
    torch.testing.assert_close(deviation, torch.from_numpy(x.numpy().std(axis=1)), atol=1e-6, rtol=1e-5)
    third = -(-frames // 3)  # the first and the last third, rounded up
    first, _, last = thirds.reshape(2, 3, 5).unbind(dim=1)
    torch.testing.assert_close(first, x[:, :third].mean(dim=1))
    torch.testing.assert_close(last, x[:, -third:].mean(dim=1))


def test_the_beginning_is_told_from_the_end():
    x = torch.randn(1, 7, 5)
    assert not torch.allclose(TemporalPool("stats", 5)(x), TemporalPool("stats", 5)(x.flip(1)))


@settings(max_examples=30)
@given(st.sampled_from(["1x1", "2x3", "3x1"]), st.integers(1, 9), st.integers(1, 9))
def test_cells_of_the_grid_keep_their_place(grid, height, width):
    rows, columns = map(int, grid.split("x"))
    x = torch.randn(2, 4, height * rows, width * columns)  # cells of height x width
    cells = GridPool(grid)(x).view(2, 4, rows, columns)
    for row in range(rows):
        for column in range(columns):
            cell = x[:, :, row * height:(row + 1) * height, column * width:(column + 1) * width]
            torch.testing.assert_close(cells[:, :, row, column], cell.mean(dim=(2, 3)))


def test_a_batch_is_standardised_and_one_clip_passes():
    layer, x = Standardize(6), 3 + 5 * torch.randn(40, 6)
    out = layer(x)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(dim=0, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    assert not list(layer.parameters())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    alone = layer.train()(x[:1])
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())  # no variance in one
    torch.testing.assert_close(alone, layer.eval()(x[:1]))


@pytest.mark.slow
def test_a_last_batch_of_one_clip_is_trained_on():
    model = build_model(small("2d", "rgb"), 3, "packaged")
    kept = torch.randn(1, 2, model.stages[:model.cut](torch.zeros(1, 1, 3, 64, 64)).shape[2])
    head = model.head.train()
    nn.functional.cross_entropy(head(kept), torch.tensor([1])).backward()
    assert torch.isfinite(model.classifier[1].weight.grad).all() and model.classifier[1].weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- two streams

def test_two_streams_join_their_log_probabilities():
    rgb, diff, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(6, 5, 4)
    model = TwoStream(lambda its: (its[:, 0], its[:, 1]), rgb, diff).eval()
    by_rgb, by_diff = rgb(x[:, 0]).log_softmax(dim=1), diff(x[:, 1]).log_softmax(dim=1)
    torch.testing.assert_close(model(x), (RGB_WEIGHT * by_rgb + by_diff) / (RGB_WEIGHT + 1))


def test_in_training_a_clip_is_judged_by_one_stream():
    torch.manual_seed(0)
    rgb, diff, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(60, 2, 4)
    logits = TwoStream(lambda its: (its[:, 0], its[:, 1]), rgb, diff).train()(x)
    alone = [net(part).log_softmax(dim=1) for net, part in ((rgb, x[:, 0]), (diff, x[:, 1]))]
    by = [torch.isclose(logits, its).all(dim=1) for its in alone]
    assert (by[0] ^ by[1]).all() and 10 < by[0].sum() < 50


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["diff", "rgb+diff"])
@pytest.mark.parametrize("kind, weights, backbone", NETWORKS)
def test_every_network_takes_every_modality(kind, weights, backbone, modality):
    """With a grid of cells, whole frames and a frozen trunk; the trained part learns, the trunk doesn't."""
    recipe = small(kind, modality, grid="2x3")
    model = build_model(recipe, 3, weights, backbone)
    frames = recipe.num_frames + recipe.stills_shown()
    shape = (2, frames, 3, 64, 64) if kind == "2d" else (2, 3, frames, 64, 64)
    assert model.preprocessing.crop == 64 and model.preprocessing.resize == (64, 64)
    x, before = torch.randn(shape), {name: value.clone() for name, value in model.trunk.state_dict().items()}
    logits = model.train()(x)
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.trunk.state_dict().items())
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    with torch.inference_mode():
        model.eval()
        kept = model.joined(model.trunk, x)
        torch.testing.assert_close(model.head(kept), model(x), atol=1e-5, rtol=1e-4)
        assert model.embed(kept).shape[1] == model.classifier[1].in_features * (1 + (modality == "rgb+diff"))
        cells = {"resnet18": 512, "resnet3d": 512, None: 192}[backbone] * 6
        assert kept.shape[2] == cells and model(x).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind, weights, backbone, precision, tolerance", PRECISIONS)
def test_kept_streams_equal_the_clip_as_a_whole(data, tmp_path, kind, weights, backbone, precision, tolerance):
    """Activations kept per stream, and the logits from them, against the trunk on the whole clip: in shares of the
    norm, float16 storage, and a bfloat16 trunk besides."""
    recipe = small(kind, "rgb+diff", test_clips=1, precision=precision)
    run = untrained(data, recipe, weights, 0, backbone, "cpu", tmp_path)
    dataset, model = run.dataset("val"), run.model.eval()
    for classifier in (model.classifier[1], model.still_classifier[1]):
        nn.init.normal_(classifier.weight, std=0.01)
    kept = run.activations(dataset)
    assert len(kept.files[0]) == 2 and len({path for files in kept.files for path in files}) == 2 * len(dataset)
    (views, label), (centre, _) = kept[0], run.activations(dataset, view=0)[0]
    assert torch.equal(views[0], centre) and label == dataset.label(0)
    with torch.inference_mode():
        clip = ClipViews(dataset, 1)[0][0]
        direct, logits = model.joined(model.trunk, clip), model(clip)
        assert views.shape == direct.shape
        assert (views - direct).norm() < tolerance * direct.norm()
        assert (model.head(views) - logits).abs().max() < 20 * tolerance * max(float(logits.abs().max()), 1)
        torch.testing.assert_close(run.deployed()(clip), model.head(views), atol=20 * tolerance, rtol=0.05)


@pytest.mark.slow
def test_training_views_of_both_streams_are_of_the_same_draws(data, tmp_path):
    """One of the streams alone has the very files of the two together: RGB and differences are computed once."""
    its = {name: untrained(data, small("2d", name), "packaged", 0, cache=tmp_path) for name in ("rgb+diff", "diff")}
    both, diff = (run.activations(run.dataset("val")) for run in its.values())
    assert [files[1] for files in both.files] == [files[0] for files in diff.files]


# ---------------------------------------------------------------- the choice of modality

def clips_of(groups=6, per_group=2):
    rows = [(f"/{label}/{group}_{clip}.avi", label, f"g{group:02d}")
            for label in ("a", "b", "c") for group in range(groups) for clip in range(per_group)]
    return pd.DataFrame(rows, columns=["clip_path", "label", "group"])


@pytest.mark.parametrize("informed", ["rgb", "diff"])
def test_the_stream_that_knows_the_class_is_put_first(informed):
    clips, rng = clips_of(), np.random.default_rng(0)
    streams = {name: rng.normal(size=(len(clips), 30)) for name in ("rgb", "diff")}
    streams[informed] += 2 * rng.normal(size=(3, 30))[clips["label"].map({"a": 0, "b": 1, "c": 2})]
    table = modality_scores(streams, clips, True, 0)
    assert set(table.index) == {"rgb", "diff", "rgb+diff"} and table.loc[informed, "accuracy"] > 0.9
    other = {"rgb": "diff", "diff": "rgb"}[informed]
    assert table["log_loss"].is_monotonic_increasing and table.index[-1] == other


def test_what_a_group_tells_of_its_own_clips_does_not_count():
    """Features that name the group, and so the class, of clips that are seen: held out with their group, they fail."""
    clips, rng = clips_of(groups=10, per_group=3), np.random.default_rng(0)
    names = (clips["label"] + clips["group"]).astype("category").cat.codes
    scenes = rng.normal(size=(names.max() + 1, 60))[names] + 0.01 * rng.normal(size=(len(clips), 60))
    streams = {"rgb": scenes, "diff": rng.normal(size=(len(clips), 60))}
    assert modality_scores(streams, clips, True, 0).loc["rgb", "accuracy"] < 0.6
    assert modality_scores(streams, clips, False, 0).loc["rgb", "accuracy"] > 0.8


@pytest.mark.slow
def test_the_choice_is_told_and_is_settled_before_the_model(data, tmp_path, capsys, monkeypatch):
    chosen = pd.DataFrame({"accuracy": [0.9, 0.8, 0.7], "log_loss": [0.3, 0.4, 0.5]}, index=["diff", "rgb+diff", "rgb"])
    asked = []
    monkeypatch.setattr(experiment, "modality_scores", lambda *given: asked.append(given) or chosen)
    run = untrained(data, small("2d", "auto"), "packaged", 0, cache=tmp_path)
    [(streams, clips, grouped, seed)] = asked
    assert clips["clip_path"].tolist() == data.table("train")["clip_path"].tolist() and grouped and seed == 0
    assert all(len(x) == len(clips) and np.isfinite(x).all() for x in streams.values())
    assert streams["diff"].shape[1] == run.model.classifier[1].in_features
    assert run.recipe == dataclasses.replace(small("2d", "diff").resolved("efficientnet_lite0"), modality="diff")
    assert "is diff 0.300 (0.900), rgb+diff 0.400" in capsys.readouterr().out
    assert run.feature_seconds > 0 and run.dataset("train").sampler.stills == 0


def test_moving_squares_are_told_by_differences(tmp_path, class_map):
    """What a picture hides, its differences show: squares of one look that go right, down or nowhere."""
    def square(step, seed):
        frames, rng = np.full((20, 64, 64, 3), 60, np.uint8), np.random.default_rng(seed)
        x, y = rng.integers(4, 20, 2)
        for i, frame in enumerate(frames):
            cv2.rectangle(frame, (int(x + step[0] * i), int(y + step[1] * i)),
                          (int(x + step[0] * i) + 14, int(y + step[1] * i) + 14), (230, 230, 230), -1)
        return frames

    means = {}
    for name, step in (("right", (1, 0)), ("still", (0, 0))):
        clip, _ = clip_of(tmp_path / name, class_map, small("2d", "diff"), frames=square(step, 0))[0]
        means[name] = clip.flatten(2).std(dim=2).mean()
    assert means["still"] == 0 < 0.1 < means["right"]
