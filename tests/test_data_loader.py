import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, ResNet50_Weights
from torchvision.models.video import R3D_18_Weights
from torchvision.transforms import v2

import data_loader
from augmentation import ColourJitter, seed_transform
from config import Preprocessing
from conftest import frame_numbers, numbered_frames, write_csv, write_video
from data_loader import (
    ClipViews,
    VideoDataset2D,
    VideoDataset3D,
    extract_frames,
    load_dataset,
    make_loader,
    read_clip_table,
    shared_views,
)
from models import preprocessing_of
from sampling import FrameSampler, segment_indices, time_indices, window_indices
from transforms import apply_transform, eval_transform, train_transform
from videos.decoding import VideoError, VideoInfo, read_frames

counts = st.integers(1, 400)
wanted = st.integers(1, 40)
positions = st.floats(0, 1)


# ---------------------------------------------------------------- sampling

@given(counts, wanted, positions)
def test_window_is_contiguous_or_stretched(total, n, position):
    indices = window_indices(total, n, position)
    assert indices.shape == (n,) and indices.min() >= 0 and indices.max() < total
    if total >= n:
        assert (np.diff(indices) == 1).all()
    else:
        assert indices[0] == 0 and (n == 1 or indices[-1] == total - 1) and (np.diff(indices) >= 0).all()


@given(counts, wanted)
def test_centre_window_is_centred(total, n):
    if total >= n:
        assert window_indices(total, n)[0] == (total - n) // 2


@given(counts, wanted, positions)
def test_segments_take_one_frame_from_each(total, n, position):
    indices = segment_indices(total, n, position)
    assert indices.shape == (n,) and (np.diff(indices) >= 0).all() and indices[0] >= 0 and indices[-1] < total
    if total >= n and position < 1:
        low, high = np.floor(np.arange(n) * total / n), np.ceil(np.arange(1, n + 1) * total / n)
        assert ((indices >= low) & (indices < high)).all()


@given(counts, wanted, st.floats(5, 60), st.floats(2, 30), positions)
def test_time_sampling_keeps_the_rate(total, n, fps, rate, position):
    indices = time_indices(total, fps, n, rate, position)
    assert indices.shape == (n,) and indices.min() >= 0 and indices.max() < total and (np.diff(indices) >= 0).all()
    if total - 1 >= (n - 1) * fps / rate:
        assert abs((indices[-1] - indices[0]) - (n - 1) * fps / rate) <= 1


@pytest.mark.parametrize("call", [lambda: window_indices(0, 4), lambda: segment_indices(5, 0),
                                  lambda: FrameSampler(4, "never"), lambda: FrameSampler(4, "time")])
def test_sampling_refuses_nonsense(call):
    with pytest.raises(ValueError):
        call()


# ---------------------------------------------------------------- decoding

def test_frames_are_the_known_ones(tmp_path):
    path = write_video(tmp_path / "clip.avi", numbered_frames(40))
    frames, indices = read_frames(path, lambda info: [30, 2, 2, 17])
    assert frame_numbers(frames) == indices.tolist() == [30, 2, 2, 17]
    assert frames.dtype == np.uint8 and frames.shape == (4, 48, 64, 3)


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("sampling", ["window", "segments", "time"])
def test_short_clips_are_stretched(tmp_path, total, sampling):
    path = write_video(tmp_path / "clip.avi", numbered_frames(total))
    numbers = frame_numbers(read_frames(path, FrameSampler(16, sampling, 15.0))[0])
    assert len(numbers) == 16 and set(numbers) == set(range(total)) and numbers == sorted(numbers)


def test_lossless_frames_are_exact(tmp_path):
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "clip.avi", source)
    ours, _ = read_frames(path, lambda info: range(12))
    np.testing.assert_array_equal(ours, source)


def test_unusable_files_are_named(tmp_path):
    whole = write_video(tmp_path / "whole.avi", np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), np.uint8))
    content = whole.read_bytes()
    (tmp_path / "text.avi").write_text("not a video")
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "cut.avi").write_bytes(content[:len(content) // 2])
    for name, words in (("absent.avi", "no such file"), ("text.avi", "can't be opened"),
                        ("empty.avi", "can't be opened"), ("cut.avi", "breaks off after frame")):
        with pytest.raises(VideoError, match=words) as error:
            read_frames(tmp_path / name, lambda info: range(info.frames))
        assert name in str(error.value)


@pytest.mark.parametrize("promised", [41, 42, 0])
def test_a_header_that_promises_slightly_too_much_or_nothing_is_corrected(tmp_path, promised):
    path = write_video(tmp_path / "clip.avi", numbered_frames(40))
    content = bytearray(path.read_bytes())
    length = content.index(b"strh") + 8 + 32  # of the stream, in frames
    assert content[length] == 40
    content[length] = promised
    path.write_bytes(content)
    assert frame_numbers(read_frames(path, lambda info: [info.frames - 1])[0]) == [39]


def test_extract_frames(tmp_path):
    path = write_video(tmp_path / "clip.avi", numbered_frames(45))
    frames = extract_frames(path)
    assert frames.shape == (30, 240, 320, 3) and frames.dtype == np.float32
    assert frames.min() >= 0 and frames.max() <= 1
    assert frame_numbers(frames * 255)[0] == 0 and frame_numbers(frames * 255)[-1] == 44
    assert len(extract_frames(write_video(tmp_path / "short.avi", numbered_frames(3)))) == 3


# ---------------------------------------------------------------- transforms

@pytest.mark.parametrize("backbone, weights", [
    ("resnet18", ResNet18_Weights.IMAGENET1K_V1), ("resnet50", ResNet50_Weights.IMAGENET1K_V2),
    ("efficientnet_b0", EfficientNet_B0_Weights.IMAGENET1K_V1), ("resnet3d", R3D_18_Weights.KINETICS400_V1)])
def test_eval_transform_equals_the_weights_own(backbone, weights):
    frames = np.random.default_rng(0).integers(0, 256, (4, 240, 320, 3), dtype=np.uint8)
    ours = apply_transform(frames, eval_transform(preprocessing_of(backbone)))
    theirs = weights.transforms()(torch.from_numpy(frames).permute(0, 3, 1, 2))
    theirs = theirs.transpose(0, 1) if backbone == "resnet3d" else theirs
    assert torch.equal(ours, theirs)


def test_augmentation_is_drawn_once_per_clip():
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    clip = np.stack([frame] * 5)
    torch.manual_seed(0)
    ours = apply_transform(clip, train_transform(Preprocessing(crop=64)))
    assert all(torch.equal(ours[0], other) for other in ours[1:])
    assert not torch.equal(ours, apply_transform(clip, train_transform(Preprocessing(crop=64))))
    seeds = apply_transform(clip, seed_transform(train=True))  # the seed's: anew for each frame
    assert not torch.equal(seeds[0], seeds[1]) and seeds.shape == (5, 3, 224, 224)


# ---------------------------------------------------------------- data sets

def test_shapes_and_determinism(tiny_dataset, class_map):
    csv = tiny_dataset / "splits" / "val.csv"
    transform = eval_transform(Preprocessing(resize=72, crop=64))
    flat = VideoDataset2D(csv, tiny_dataset, class_map, num_frames=20, transform=transform)
    solid = VideoDataset3D(csv, tiny_dataset, class_map, num_frames=16, transform=transform)
    assert flat[0][0].shape == (20, 3, 64, 64) and solid[0][0].shape == (3, 16, 64, 64)
    assert torch.equal(flat[1][0], flat[1][0]) and {"clip_path", "label"} <= set(flat.data.columns)
    assert flat[0][1] == class_map[flat.data["label"][0]]
    raw = VideoDataset2D(csv, tiny_dataset, class_map, num_frames=3)[0][0]
    assert raw.dtype == torch.uint8 and raw.shape == (3, 3, 96, 128)


def test_csv_errors_come_at_construction(tmp_path, class_map):
    write_video(tmp_path / "Punch" / "a.avi", numbered_frames(3))
    with pytest.raises(FileNotFoundError, match="no such split file"):
        read_clip_table(tmp_path / "none.csv", tmp_path, class_map)
    (tmp_path / "columns.csv").write_text("path,label\n/Punch/a.avi,Punch\n")
    with pytest.raises(ValueError, match=r"columns\.csv.*clip_path"):
        VideoDataset2D(tmp_path / "columns.csv", tmp_path, class_map)
    (tmp_path / "void.csv").write_text("")
    with pytest.raises(ValueError, match=r"void\.csv"):
        VideoDataset2D(tmp_path / "void.csv", tmp_path, class_map)
    with pytest.raises(ValueError, match="Yoga"):
        VideoDataset2D(write_csv(tmp_path / "l.csv", [("/Punch/a.avi", "Yoga")]), tmp_path, class_map)
    rows = [("/Punch/a.avi", "Punch"), ("/Punch/b.avi", "Punch"), ("/Punch/c.avi", "Punch")]
    with pytest.raises(FileNotFoundError, match="2 of 3") as error:
        VideoDataset3D(write_csv(tmp_path / "m.csv", rows), tmp_path, class_map)
    assert "/Punch/b.avi" in str(error.value) and "/Punch/c.avi" in str(error.value)


def test_workers_draw_reproducibly_and_differently(tiny_dataset, class_map):
    data = VideoDataset2D(tiny_dataset / "splits" / "train.csv", tiny_dataset, class_map, num_frames=4,
                          transform=train_transform(Preprocessing(crop=32)), train=True)

    def epoch(seed):
        torch.manual_seed(seed)
        return torch.cat([x for x, _ in make_loader(data, 4, shuffle=True, num_workers=2)])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


@settings(max_examples=5)
@given(st.integers(1, 4))
def test_views_depend_on_seed_and_clip_alone(tiny_dataset, views):
    data = VideoDataset3D(tiny_dataset / "splits" / "val.csv", tiny_dataset, {"PullUps": 0, "Punch": 1, "PushUps": 2},
                          num_frames=4, transform=train_transform(Preprocessing(crop=32)), train=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = ClipViews(data, views, seed=3)[1][0]
    assert torch.equal(before, torch.get_rng_state())
    ClipViews(data, views, seed=3)[0]
    assert torch.equal(first, ClipViews(data, views, seed=3)[1][0]) and first.shape == (views, 3, 4, 32, 32)
    assert not torch.equal(first, ClipViews(data, views, seed=4)[1][0])
    pixels = ClipViews(data, views, seed=3, pixels=True)[1][0]
    assert pixels.dtype == torch.uint8 and pixels.shape == (views, 4, 3, 32, 32)
    assert torch.equal(torch.stack([data.layout(data.transform.normalize(p)) for p in pixels]), first)


def test_test_views_lie_over_the_clip(tmp_path, class_map):
    write_video(tmp_path / "Punch" / "a.avi", numbered_frames(40))
    data = VideoDataset2D(write_csv(tmp_path / "t.csv", [("/Punch/a.avi", "Punch")]), tmp_path, class_map, num_frames=8)
    views = ClipViews(data, 3)[0][0]
    starts = [frame_numbers(view.permute(0, 2, 3, 1).numpy())[0] for view in views]
    assert starts == sorted(starts) and len(set(starts)) == 3


def test_load_dataset(tiny_dataset):
    paths, labels, class_map = load_dataset(tiny_dataset)
    assert len(paths) == len(labels) == 36 and class_map == {"PullUps": 0, "Punch": 1, "PushUps": 2}
    assert all(str(tiny_dataset) in p for p in paths) and np.bincount(labels).tolist() == [12, 12, 12]
    with pytest.raises(FileNotFoundError):
        load_dataset(tiny_dataset / "splits")


def test_sampler_uses_the_files_frame_rate():
    assert np.diff(FrameSampler(8, "time", 10.0)(VideoInfo(300, 30.0, 1, 1))).tolist() == [3] * 7
    assert np.diff(FrameSampler(8, "time", 10.0)(VideoInfo(300, 0.0, 1, 1))).tolist() == [1] * 7


SAMPLERS = st.builds(FrameSampler, st.integers(1, 6), st.sampled_from(["window", "segments", "time"]),
                     st.sampled_from([5.0, 15.0]), st.sampled_from(["rgb", "diff", "rgb+diff"]),
                     st.none() | st.integers(1, 6), st.sampled_from([0.04, 0.2]))


@settings(max_examples=300)
@given(SAMPLERS, SAMPLERS)
def test_samplers_that_choose_other_frames_are_told_apart(one, other):
    """What is kept is kept by their `repr`."""
    info = VideoInfo(90, 25.0, 1, 1)
    assert repr(one) != repr(other) or one(info).tolist() == other(info).tolist()


JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}


def jittered(transform, clip, seed):
    torch.manual_seed(seed)
    return transform(clip)


def test_colour_is_drawn_once_per_clip():
    clip = torch.randint(0, 256, (1, 3, 20, 24), dtype=torch.uint8).expand(5, -1, -1, -1)
    changed = jittered(ColourJitter(**JITTER), clip, 3)
    assert torch.equal(changed, changed[:1].expand_as(changed)) and not torch.equal(changed, clip)
    assert changed.dtype == torch.uint8 and changed.shape == clip.shape


@pytest.mark.parametrize("seed", range(12))
def test_colour_is_changed_as_by_torchvision(seed):
    """Where nothing is clamped and all frames are equally bright, to the rounding of the result."""
    frame = torch.randint(90, 150, (1, 3, 20, 24), generator=torch.Generator().manual_seed(0)).byte()
    clip = torch.cat([frame, frame.flip(3), frame.flip(2)])
    ours, exact = jittered(ColourJitter(**JITTER), clip, seed), jittered(v2.ColorJitter(**JITTER), clip / 255, seed)
    assert (ours - 255 * exact).abs().max() <= 0.75  # OpenCV multiplies in fixed point


def test_contrast_is_about_the_mean_of_the_clip():
    """A dark and a bright frame move apart as the pixels of one frame do; each frame by itself would stay as it is."""
    clip = torch.tensor([100, 140], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    low, high = jittered(ColourJitter(contrast=(1.5, 1.5)), clip, 0)[:, 0, 0, 0].tolist()
    assert (low, high) == (90, 150)


def test_values_are_clamped_at_the_end_alone():
    """Brightened beyond white and brought back by less contrast: torchvision loses what lay above."""
    clip = torch.tensor([250, 10], dtype=torch.uint8).view(1, 1, 1, 2).expand(4, 3, 8, 2)
    params = {"fn_idx": torch.arange(4), "brightness_factor": 1.3, "contrast_factor": 0.5, "saturation_factor": None,
              "hue_factor": None}
    assert ColourJitter().transform(clip, params)[0, 0, 0].tolist() == [247, 91]  # 325 and 13, about 169


def test_what_a_worker_hands_over_is_the_crop_alone():
    clip = eval_transform(Preprocessing()).steps(torch.zeros(2, 240, 320, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
    assert clip.is_contiguous() and clip.untyped_storage().nbytes() == 2 * 3 * 224 * 224


def test_views_of_several_data_sets_come_from_one_decoding(tiny_dataset, class_map, monkeypatch):
    """Training and test views, of frames and of differences: the same as each data set gives by itself."""
    csv, prep = tiny_dataset / "splits" / "train.csv", Preprocessing(resize=(32, 32), crop=32)
    made = [(VideoDataset2D(csv, tiny_dataset, class_map, num_frames=4, sampling="segments", modality=modality,
                            transform=(train_transform if train else eval_transform)(prep, stills), train=train), views)
            for modality, stills in (("rgb", None), ("diff", 0)) for train, views in ((True, 2), (False, 3))]
    clips = [ClipViews(dataset, views, seed=5, pixels=True) for dataset, views in made]
    expected = [its[1][0] for its in clips]
    calls, real = [], data_loader.read_frames
    monkeypatch.setattr(data_loader, "read_frames", lambda path, choose: calls.append(path) or real(path, choose))
    for shared, alone in zip(shared_views([(its, 1) for its in clips]), expected, strict=True):
        assert torch.equal(shared, alone)
    assert calls == [made[0][0].file(1)]
