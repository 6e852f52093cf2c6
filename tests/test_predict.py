import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plots
import predict
import synthetic
from classical import classifiers
from config import ROOT, get_recipe
from conftest import moving_square, write_video
from deployment.answer import Answer, Model, answer, plan
from deployment.display import answers_table
from deployment.prepared import load_judge, load_model
from deployment.reference import Reference, make_reference, read_reference
from deployment.trained import NotTrained
from evaluation import predict_validation
from experiment import load_or_train
from experiment import predict as predict_part
from files import read_predictions
from metrics import apply_temperature, fit_temperature
from videos.decoding import VideoInfo, read_frames
from videos.library import open_data
from videos.splits import clip_file

pytestmark = pytest.mark.slow

TINY = {"precision": "float32", "stills": 2, "num_frames": 4, "size": 64, "train_views": 2, "epochs": 8,
        "test_clips": 3, "batch_size": 6, "grid": "1x1"}


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A data set with a 2D-CNN of differences, a 3D-CNN of two streams and a classical model."""
    cache = tmp_path_factory.mktemp("cache")
    data = open_data(str(tiny_dataset), results=tmp_path_factory.mktemp("results"))
    experiments = {}
    for kind, modality in (("2d", "diff"), ("3d", "rgb+diff")):
        recipe = get_recipe("recommended", kind, **{**TINY, "modality": modality})
        experiments[kind] = load_or_train(kind, data, recipe, "packaged", 0, cache=cache)
        predict_validation(experiments[kind])
    fitted = classifiers.load_or_fit("logistic_regression", data, cache=cache)
    return data, experiments, fitted


def load(trained, name) -> Model:
    data, *_ = trained
    return load_model(name, str(data.root), data.results, "cpu")


def long_video(path, labels, count=50):
    """Scenes of `moving_square`, one after another, of `count` frames each, at 25 per second."""
    scenes = [moving_square(label, 900 + n, 20) for n, label in enumerate(labels)]
    return write_video(path, np.concatenate([np.resize(scene, (count, *scene.shape[1:])) for scene in scenes]),
                       codec="XVID")


# ---------------------------------------------------------------- the whole video

@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_a_test_clip_gets_what_the_evaluation_gives_it(trained, kind):
    data, experiments, _ = trained
    model = load(trained, kind)
    temperature = fit_temperature(predict_validation(experiments[kind]))
    assert temperature != 1
    expected = apply_temperature(predict_part(experiments[kind]), temperature)
    for row in expected.head(3).itertuples():
        said = answer(clip_file(data.root, row.clip_path), model)
        assert said.predicted == row.predicted and said.classes == data.classes and not len(said.starts)
        # kept activations are in half precision
        np.testing.assert_allclose(said.probabilities, [getattr(row, f"p_{name}") for name in data.classes], atol=5e-3)
        assert said.seconds == pytest.approx(0.8) and said.segments()[0]["end"] == said.seconds


def test_a_classical_model_answers_as_it_is_evaluated(trained):
    data, _, fitted = trained
    model = load(trained, "logistic_regression")
    for row in classifiers.predict(fitted).head(3).itertuples():
        said = answer(clip_file(data.root, row.clip_path), model)
        np.testing.assert_allclose(said.probabilities, [getattr(row, f"p_{name}") for name in data.classes], atol=1e-6)


def test_a_fusion_is_the_weighted_sum_of_log_probabilities(trained):
    data, *_ = trained
    clip = clip_file(data.root, data.table("test")["clip_path"].iloc[0])
    fused = load(trained, "fusion")
    with np.errstate(divide="raise"):
        logits = sum(weight * np.log(answer(clip, Model("one", [judge], [reference], [1.0])).probabilities)
                     for weight, judge, reference in zip(fused.weights, fused.judges, fused.references, strict=True))
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(answer(clip, fused).probabilities, expected, atol=1e-9)
    assert all(weight >= 0 for weight in fused.weights)


# ---------------------------------------------------------------- over time

@pytest.mark.parametrize("name", ["2d", "3d", "logistic_regression"])
def test_a_window_is_judged_as_a_file_of_its_frames_would_be(trained, tmp_path, name):
    """Overlapping windows share what was computed of their frames; no window's answer may tell."""
    model, path = load(trained, name), long_video(tmp_path / "long.avi", (0, 1, 2), 25)
    said = answer(path, model)
    assert len(said.starts) > 8 and said.ends[-1] == said.seconds == 3 and (np.diff(said.starts) > 0).all()
    for n in (0, len(said.starts) // 2, len(said.starts) - 1):
        first, last = round(said.starts[n] * 25), round(said.ends[n] * 25)
        frames, _ = read_frames(path, lambda info, first=first, last=last: range(first, last))
        judge = load_judge(name, trained[0].results, "cpu")
        view = judge.view(VideoInfo(len(frames), 25.0, 128, 96), 0, len(frames))
        alone, _ = judge.judge([view], {i: judge.prepare(frame) for i, frame in enumerate(frames)}, 25.0, {})
        alone = Model("one", [judge], model.references, model.weights).join([alone])[0]
        np.testing.assert_allclose(said.course[n], alone, atol=1e-5)


def test_changes_of_what_is_done_are_found(trained, tmp_path):
    said = answer(long_video(tmp_path / "long.avi", (0, 1, 0)), load(trained, "2d"))
    found = said.segments()
    assert [its["class"] for its in found] == ["PullUps", "Punch", "PullUps"]
    np.testing.assert_allclose([its["start"] for its in found], [0, 2, 4], atol=0.5)
    assert found[-1]["end"] == said.seconds == 6


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 2**32 - 1), st.floats(0, 0.99))
def test_segments_cover_the_time_once(count, length, seed, odd):
    rng = np.random.default_rng(seed)
    starts = np.append(np.arange(count, dtype=float), count - 1 + odd)
    course = rng.dirichlet([0.5, 0.5, 0.5], len(starts))
    said = Answer("x", "model", count - 1 + odd + length, ["a", "b", "c"], course.mean(axis=0), 0.5, [], starts,
                  starts + length, course, np.ones(len(starts)))
    found = said.segments()
    assert found[0]["start"] == 0 and found[-1]["end"] == pytest.approx(said.seconds)
    for one, two in pairwise(found):
        assert one["end"] == two["start"] > one["start"] and one["class"] != two["class"]
    edges, shares = said.over_time()
    assert (np.diff(edges) > 0).all() and len(shares) == len(edges) - 1
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert json.loads(json.dumps(said.to_dict()))["segments"] == found


class Counting:
    """A judge that wants every frame of a stretch and notes how many it was handed at a time."""

    classes, most = ("a", "b"), 0

    def __init__(self):
        self.seen = {}

    def views(self, info):
        return [self.view(info, 0, info.frames)]

    def view(self, info, start, frames):
        return start + np.arange(frames)

    def prepare(self, picture):
        return picture.mean()

    def judge(self, views, pictures, fps, known):
        self.most = max(self.most, len(pictures))
        assert all(index in pictures for view in views for index in view)
        self.seen |= {index: pictures[index] for view in views for index in view.tolist()}
        return np.full((len(views), 2), 0.5), np.ones((len(views), 4))


def reference(**changes) -> Reference:
    rng = np.random.default_rng(0)
    made = make_reference("sha", rng.normal(size=(12, 4)), [f"/a/{n}.avi" for n in range(12)], ["a"] * 12,
                          [f"g{n // 2}" for n in range(12)], np.full(12, 0.4))
    return replace(made, **changes)


def test_frames_are_let_go_of(tmp_path):
    """However long a video is, only the frames of some windows are held."""
    judge, path = Counting(), long_video(tmp_path / "long.avi", (0, 1, 2, 0, 1, 2), 100)
    said = answer(path, Model("counting", [judge], [reference()], [1.0]))
    assert len(said.starts) > 150 and judge.most < 60


@pytest.mark.parametrize("lost", [slice(5, 7), slice(60, 62)])
def test_a_file_that_lost_frames_is_judged_by_those_it_has(tmp_path, lost):
    """Where the frames that come out are fewer than the packets, which shows in the middle, all begins anew."""
    path = synthetic.zeroed(synthetic.write(tmp_path / "whole.mp4", 80, options={"g": "1"}), tmp_path / "a.mp4", lost)
    shown = {}
    for index, frame in enumerate(read_frames(path, lambda info: range(info.frames))[0]):
        shown[index] = frame.mean()
    judge = Counting()
    for longest in (0.4, 10.0):
        judge.seen = {}
        said = answer(path, Model("counting", [judge], [reference(longest_seconds=longest)], [1.0]))
        assert said.seconds == pytest.approx(len(shown) / 25) and len(said.starts) == len(said.course) > 10
        assert judge.seen == pytest.approx(shown)


@settings(max_examples=200)
@given(st.integers(1, 5000), st.floats(0, 120), st.floats(0.05, 30), st.floats(0, 60))
def test_every_length_has_a_plan(frames, fps, median, more):
    known = reference(median_seconds=median, longest_seconds=median + more)
    its = plan(Model("counting", [Counting()], [known], [1.0]), VideoInfo(frames, fps, 64, 48))
    assert its.whole or len(its.windows)
    wanted = its.wanted()
    assert wanted.min() >= 0 and wanted.max() < frames
    if len(its.windows):
        assert its.windows[0, 0] == 0 and its.windows[-1, 1] == frames
        assert (np.diff(its.windows[:, 0]) > 0).all() and (its.windows[1:, 0] <= its.windows[:-1, 1]).all()


def test_an_answer_of_many_classes_is_shown_by_the_most_probable():
    shares = np.random.default_rng(0).dirichlet(np.ones(101), 3)
    names = [f"class {n}" for n in range(101)]
    said = Answer(Path("a.mp4"), "one", 3.0, names, shares.mean(axis=0), 0.5, [], np.arange(3.0), np.arange(1.0, 4),
                  shares, np.ones(3))
    row = answers_table([said]).iloc[0]
    best = np.sort(said.probabilities)[::-1]
    assert len(row) == 6 and row["predicted"] == said.predicted and row["next"] in names
    assert [row["probability"], row["its probability"]] == best[:2].tolist()
    figure, ax = plt.subplots()
    plots.probabilities_over_time(np.arange(4.0), shares, names, ax)
    drawn = [text.get_text() for text in ax.get_legend().get_texts()]
    assert drawn[-1] == "96 others" and {names[n] for n in shares.max(axis=0).argsort()[-5:]} == {*drawn[:-1]}
    assert max(path.vertices[:, 1].max() for its in ax.collections for path in its.get_paths()) == pytest.approx(1)
    plt.close(figure)


# ---------------------------------------------------------------- how far from the training

def test_what_lies_far_from_the_training_is_told():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 256)) + 4 * np.eye(256)[rng.integers(3, size=60)]
    known = make_reference("sha", features, [f"/{n}" for n in range(60)], ["a"] * 60, [f"g{n}" for n in range(60)],
                           np.ones(60))
    assert (known.unfamiliarity(rng.normal(size=(200, 256)) + 4 * np.eye(256)[0]) > 1).mean() < 0.2
    assert (known.unfamiliarity(3 * rng.normal(size=(50, 256))) > 1).all()
    nearest = known.nearest(features[7], 3)
    assert nearest[0]["clip_path"] == "/7" and nearest[0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_a_group_is_no_evidence_of_what_is_usual():
    """Clips of one scene are alike; how far those of other scenes lie is what counts."""
    rng = np.random.default_rng(2)
    scenes = np.repeat(rng.normal(size=(10, 64)), 4, axis=0)
    features, names = scenes + 1e-3 * rng.normal(size=scenes.shape), [f"/{n}" for n in range(40)]
    grouped = make_reference("", features, names, ["a"] * 40, [f"g{n // 4}" for n in range(40)], np.ones(40))
    single = make_reference("", features, names, ["a"] * 40, [f"g{n}" for n in range(40)], np.ones(40))
    new = rng.normal(size=(20, 64))
    assert (grouped.unfamiliarity(new) < 1.5).all() and (single.unfamiliarity(new) > 10).all()


def test_clips_of_one_group_are_held_out_one_by_one():
    features, names = np.random.default_rng(3).normal(size=(30, 16)), [f"/{n}" for n in range(30)]
    one, each = (make_reference("", features, names, ["a"] * 30, groups, np.ones(30))
                 for groups in (["raw"] * 30, names))
    assert one.limit == each.limit > 0


def test_answers_are_calibrated_as_soon_as_there_are_validation_predictions(trained):
    files = trained[1]["2d"].files
    away = files.validation.rename(files.validation.with_suffix(".away"))
    raw = load(trained, "2d").weights
    away.rename(files.validation)
    assert raw == [1.0] and load(trained, "2d").weights == [pytest.approx(1 / fit_temperature(
        read_predictions(files.validation)))] != [1.0]


def test_a_reference_belongs_to_one_saved_model(trained, monkeypatch):
    _, experiments, _ = trained
    files, first = experiments["2d"].files, load(trained, "2d").references[0]
    known = read_reference(files)
    assert known is not None and all(np.array_equal(getattr(known, name), getattr(first, name)) for name in vars(first))
    sidecar = files.sidecar.read_text()
    files.sidecar.write_text(sidecar.replace(files.sha256, "0" * 64))
    assert read_reference(files) is None
    with pytest.raises(NotTrained, match="another sha256"):
        load(trained, "2d")
    files.sidecar.write_text(sidecar)


# ---------------------------------------------------------------- the command

@pytest.fixture
def command(trained, monkeypatch, capsys):
    """Runs the command on the trained data set: exit status, and what it printed on both ways."""
    data, *_ = trained
    monkeypatch.setattr("videos.places.locate", lambda dataset: (data.name, data.root, data.results))

    def run(*arguments):
        status = 0
        try:
            predict.main([*map(str, arguments), "--dataset", str(data.root), "--device", "cpu"])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_the_command_answers_about_files_and_folders(trained, command, tmp_path):
    data, *_ = trained
    folder = clip_file(data.root, data.table("test")["clip_path"].iloc[0]).parent
    status, out, err = command(folder, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    clips = sorted(folder.glob("*.avi"))
    assert status == 0 and not err and all(str(clip) in out for clip in clips)
    said = json.loads((tmp_path / "a.json").read_text())["answers"]
    table = pd.read_csv(tmp_path / "a.csv")
    assert [its["file"] for its in said] == table["file"].tolist() == list(map(str, clips))
    assert table["predicted"].tolist() == [its["predicted"] for its in said]
    shares = [list(its["probabilities"].values()) for its in said]
    np.testing.assert_allclose(table.filter(regex="^p_"), shares, atol=1e-5)


def test_broken_files_are_named_and_the_others_answered(trained, command, tmp_path):
    data, *_ = trained
    clip = clip_file(data.root, data.table("test")["clip_path"].iloc[0])
    (tmp_path / "notes.avi").write_text("no video")
    (tmp_path / "cut.avi").write_bytes(clip.read_bytes()[:3000])
    status, out, err = command(tmp_path / "notes.avi", tmp_path / "cut.avi", clip, tmp_path / "nowhere.avi",
                               "--json", tmp_path / "a.json")
    assert status == 1 and len(err.splitlines()) == 3 and str(clip) in out
    for name, line in zip(("notes.avi", "cut.avi", "nowhere.avi"), err.splitlines(), strict=True):
        assert line.startswith(f"error: {tmp_path / name}: ")
    assert len(json.loads((tmp_path / "a.json").read_text())["answers"]) == 1


@pytest.mark.parametrize(("arguments", "told"), [
    (["--model", "rbf_svm"], "no trained model 'rbf_svm'"), (["--annotate", "out.gif"], "out.gif")])
def test_what_is_impossible_is_told_in_one_line(trained, command, arguments, told):
    data, *_ = trained
    status, out, _ = command(clip_file(data.root, data.table("test")["clip_path"].iloc[0]), *arguments)
    assert status.startswith("error: ") and told in status and "\n" not in status and not out


def test_a_place_that_cannot_be_written_is_told_in_one_line(trained, command, tmp_path):
    data, *_ = trained
    (tmp_path / "file").touch()
    status, out, _ = command(clip_file(data.root, data.table("test")["clip_path"].iloc[0]),
                             "--json", tmp_path / "file" / "a.json")
    assert status.startswith("error: ") and "a.json" in status and "\n" not in status and out


@pytest.mark.parametrize("quoted", [False, True])
def test_videos_may_be_named_by_the_environment(trained, command, monkeypatch, tmp_path, quoted):
    data, *_ = trained
    clip = tmp_path / "my clip.avi"
    clip.write_bytes(clip_file(data.root, data.table("test")["clip_path"].iloc[0]).read_bytes())
    monkeypatch.setenv("VIDEO", f"'{clip}' {tmp_path / 'no.avi'}" if quoted else str(clip))
    status, out, err = command()
    assert str(clip) in out and status == int(quoted) and len(err.splitlines()) == int(quoted)
    monkeypatch.delenv("VIDEO")
    assert "no video is named" in command()[0]


def test_an_empty_folder_is_told(command, tmp_path):
    status, *_ = command(tmp_path)
    assert str(tmp_path) in status and "no video" in status


def test_an_annotated_video_shows_the_class_in_every_frame(command, tmp_path):
    path, target = long_video(tmp_path / "long.avi", (0, 1)), tmp_path / "drawn.mp4"
    status, out, _ = command(path, "--annotate", target)
    assert status == 0 and "drawn.mp4" in out
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 100 and stream.average_rate == 25 and frames[0].shape == (240, 320, 3)
    assert (np.abs(frames[10][-24:].astype(int) - frames[90][-24:]) > 100).any()  # another word
    assert command(path, "--annotate", path)[0] != 0 and path.stat().st_size > 0


def test_an_answer_needs_no_slow_import(trained, tmp_path):
    """They cost more time than the answer."""
    data, *_ = trained
    load(trained, "2d")
    clip = clip_file(data.root, data.table("test")["clip_path"].iloc[0])
    code = ("import sys; sys.path.insert(0, 'src'); import videos.places as places\n"
            f"places.locate = lambda dataset: ('', '', places.Path({str(data.results)!r}))\n"
            f"import predict; predict.main([{str(clip)!r}, '--dataset', {str(data.root)!r}])\n"
            "print({'torchvision', 'torch._dynamo', 'pandas', 'sklearn', 'timm', 'matplotlib'} & set(sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"
