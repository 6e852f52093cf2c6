import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.feature import local_binary_pattern

from classical import descriptors
from classical.descriptors import (
    CELLS,
    CHANNELS,
    FAMILIES,
    GRID,
    LBP_BINS,
    LOCAL_POOL,
    ORIENTATIONS,
    PAIRS,
    FisherVectors,
    clip_descriptors,
    describe_pairs,
    describe_texture,
    descriptor_table,
    local_descriptors,
    optical_flow,
    oriented_cells,
    pair_indices,
    pool_cells,
    read_pairs,
    small_frames,
)
from conftest import REAL_CLIPS, moving_square, write_video
from files import ArrayStore
from videos.decoding import VideoError, VideoInfo
from videos.demo import render_clip


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, so that its motion can be seen."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX)


def swinging(count: int, fps: float = 25.0, scale: int = 1) -> np.ndarray:
    """A textured patch that swings left and right, and a smaller one up and down, once a second."""
    frames = np.repeat(texture(120, 160)[None], count, 0)
    for i, frame in enumerate(frames):
        swing = np.sin(2 * np.pi * i / fps)
        patches = (texture(50, 40, 1), 55 + 18 * swing, 30), (texture(25, 25, 2), 110, 60 + 14 * swing)
        for patch, x, y in patches:
            whole = np.full(patch.shape[:2], 255, np.uint8)
            shift = np.float32([[1, 0, x], [0, 1, y]])  # between pixels too, as a camera sees it
            moved, mask = (cv2.warpAffine(p, shift, (160, 120)) for p in (patch, whole))
            frame[mask > 127] = moved[mask > 127]
    return np.stack([cv2.resize(f, None, fx=scale, fy=scale) for f in frames]) if scale > 1 else frames


def describe(path) -> dict[str, np.ndarray]:
    """The families of a clip, without its local motion."""
    described = describe_pairs(*read_pairs(path))
    return {name: described[name] for name in FAMILIES}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def still(frame: np.ndarray, count: int = 40) -> np.ndarray:
    return np.repeat(frame[None], count, 0)


# ---------------------------------------------------------------- frames

@given(frames=st.integers(1, 2000), fps=st.one_of(st.just(0.0), st.floats(5, 240)))
def test_pairs_are_a_fixed_time_apart_and_even(frames, fps):
    indices = pair_indices(VideoInfo(frames, fps, 320, 240)).reshape(PAIRS, 2)
    assert indices.min() >= 0 and indices.max() < frames
    apart = np.diff(indices, axis=1)
    assert (apart == apart[0]).all()
    if frames > 40:
        seconds = apart[0, 0] / (fps or 25)
        assert abs(seconds - 0.08) <= 0.5 / (fps or 25) + 1e-9 or apart[0, 0] == 1
        segment = (frames - apart[0, 0]) / PAIRS
        assert (np.abs(indices[:, 0] - (np.arange(PAIRS) + 0.5) * segment) <= segment / 2 + 1).all()


def test_speed_does_not_depend_on_the_frame_rate(tmp_path):
    speeds = []
    for fps in (25, 30, 50):
        frames = still(texture(120, 160), fps)
        for i, frame in enumerate(frames):
            x = round(20 + 60 * i / fps)  # 60 pixels a second: half a frame height
            frame[40:80, x:x + 40] = texture(40, 40, 1)
        frames, seconds = read_pairs(write_video(tmp_path / f"{fps}.avi", frames, fps))
        flow = optical_flow(small_frames(frames)[1], seconds)
        speeds.append(np.quantile(flow[:, 0][flow[:, 0] > 0.2], 0.75))  # the patch's border is slower
    np.testing.assert_allclose(speeds, 0.5, rtol=0.2)
    assert max(speeds) / min(speeds) < 1.12  # the pairs themselves are up to a fifth closer


# ---------------------------------------------------------------- families

def test_families_have_their_size_and_length(tmp_path):
    described = describe(write_video(tmp_path / "a.avi", render_clip("Punch", 1, 1), codec="XVID"))
    assert list(described) == list(FAMILIES) == descriptor_table()["family"].tolist()
    assert set(descriptor_table()["group"]) == {"appearance", "motion"}
    for name, values in described.items():
        assert values.shape == (FAMILIES[name].dimension,) and values.dtype == np.float32
        assert 0.8 < np.linalg.norm(values) <= 1 and (values >= 0).all()


def test_length_rate_and_size_do_not_show(tmp_path):
    once = describe(write_video(tmp_path / "once.avi", swinging(75)))
    twice = np.concatenate([swinging(75)] * 2)
    for other, fps, close in ((twice, 25, 0.98), (swinging(75, scale=2), 25, 0.98),
                              (swinging(90, fps=30), 30, 0.98), (swinging(75 * 3), 25, 0.94)):
        again = describe(write_video(tmp_path / "other.avi", other, fps))
        assert min(cosine(once[name], again[name]) for name in FAMILIES) > close


def test_a_still_clip_has_no_motion(tmp_path):
    frames = still(render_clip("PullUps", 1, 1)[0])
    for codec, count, faint in (("FFV1", 40, 0), ("FFV1", 1, 0), ("XVID", 40, 0.6)):  # XviD's own flicker
        described = describe(write_video(tmp_path / f"{codec}{count}.avi", frames[:count], codec=codec))
        assert all(np.isfinite(values).all() for values in described.values())
        assert np.linalg.norm(described["mbh"]) <= faint
        assert described["hof"].reshape(*GRID, -1)[..., :ORIENTATIONS].max() < 1e-3


def test_what_moves_where_to_and_when(tmp_path):
    for label, direction in ((0, 0), (1, 2)):  # to the right, and down, which is positive in a picture
        frames = moving_square(label, 1)
        frames = np.where(frames < 60, frames[:1], frames)  # a still background
        described = describe(write_video(tmp_path / f"{label}.avi", frames))
        assert described["hof"].reshape(-1, 9)[:, :8].sum(axis=0).argmax() == direction
    late = np.concatenate([still(swinging(1)[0], 60), swinging(30)])
    cells = describe_pairs(*read_pairs(write_video(tmp_path / "late.avi", late)))["cells"]
    thirds = np.delete(pool_cells(cells), ORIENTATIONS, axis=-1).sum(axis=(1, 2, 3))
    assert thirds[:2].sum() < 0.05 * thirds[2]


def test_the_cameras_motion_is_taken_out(tmp_path):
    wide = texture(120, 400)
    panned = np.stack([wide[:, 4 * i:4 * i + 160] for i in range(50)])
    hof = describe(write_video(tmp_path / "pan.avi", panned))["hof"].reshape(-1, 9)
    assert (hof[:, 8] ** 2).sum() > 0.8


def test_oriented_cells_against_counting():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, PAIRS, 60, 80)).astype(np.float32)
    cells = oriented_cells(x, y)
    window = PAIRS // CELLS[0]
    for w, r, c in ((0, 0, 0), (2, 7, 3), (5, 11, 15)):
        part = np.s_[w * window:(w + 1) * window, 5 * r:5 * r + 5, 5 * c:5 * c + 5]
        expected = np.zeros(ORIENTATIONS)
        for dx, dy in zip(x[part].ravel(), y[part].ravel(), strict=True):
            place = np.arctan2(dy, dx) % (2 * np.pi) / (np.pi / 4)
            for k in range(ORIENTATIONS):
                near = min(abs(place - k), ORIENTATIONS - abs(place - k))
                expected[k] += np.hypot(dx, dy) * max(0, 1 - near)
        np.testing.assert_allclose(cells[w, r, c], expected / x[part].size, rtol=2e-3, atol=1e-5)


def test_pooling_and_texture_against_counting():
    cells = np.random.default_rng(0).random(CELLS)
    np.testing.assert_allclose(pool_cells(cells)[1, 2, 3], cells[2:4, 8:12, 12:16].mean(axis=(0, 1, 2)))
    grey = cv2.cvtColor(texture(120, 160), cv2.COLOR_RGB2GRAY)
    codes = local_binary_pattern(grey, 8, 1, "nri_uniform")[80:, 40:80]
    expected = np.bincount(codes.astype(int).ravel(), minlength=LBP_BINS) / codes.size
    np.testing.assert_allclose(describe_texture(grey[None]).reshape(3, 4, -1)[2, 1], expected)


def test_colour_tells_hues_apart_and_grey_is_steady():
    def colour(*rgb):
        return descriptors.describe_colour(np.full((2, 120, 160, 3), rgb, np.uint8))

    extremes = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
    assert all(np.isclose(colour(*rgb).sum(), 1) for rgb in extremes)
    assert not (colour(200, 40, 40) * colour(40, 40, 200)).any()
    np.testing.assert_array_equal(colour(120, 120, 120), colour(122, 120, 119))


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="no real UCF-101 clips beside the repository")
def test_real_clips():
    path = sorted(REAL_CLIPS.glob("*/*.avi"))[0]
    described = describe(path)
    assert all(np.isfinite(v).all() and 0.8 < np.linalg.norm(v) <= 1 for v in described.values())
    again = describe(path)
    assert all(np.array_equal(described[name], again[name]) for name in FAMILIES)


# ---------------------------------------------------------------- kept files

@pytest.fixture
def clips(tmp_path) -> pd.DataFrame:
    for i in range(4):
        write_video(tmp_path / "A" / f"{i}.avi", moving_square(i % 3, i))
    return pd.DataFrame({"clip_path": [f"/A/{i}.avi" for i in range(4)]})


def test_computed_once_and_kept_by_content(clips, tmp_path, monkeypatch):
    first = clip_descriptors(clips, tmp_path, tmp_path / "cache")
    assert {name: v.shape for name, v in first.items()} == {n: (4, f.dimension) for n, f in FAMILIES.items()}
    np.testing.assert_array_equal(first["mbh"][2], describe(tmp_path / "A/2.avi")["mbh"])
    monkeypatch.setattr(descriptors, "cores", lambda: 1)  # one clip at a time gives the same
    other = clip_descriptors(clips, tmp_path, tmp_path / "other")
    assert all(np.array_equal(first[name], other[name]) for name in FAMILIES)

    def no_clip(*_):
        raise AssertionError("a clip was opened")

    monkeypatch.setattr(descriptors, "read_pairs", no_clip)
    (tmp_path / "A/2.avi").rename(tmp_path / "A/renamed.avi")
    renamed = clips.replace("/A/2.avi", "/A/renamed.avi").iloc[::-1]
    again = clip_descriptors(renamed, tmp_path, tmp_path / "cache")
    assert all(np.array_equal(first[name], again[name][::-1]) for name in FAMILIES)
    assert clip_descriptors(renamed, tmp_path, tmp_path / "cache", names=["cells"])["cells"].shape == (4, *CELLS)
    monkeypatch.setattr(descriptors, "VERSION", 2)
    with pytest.raises(AssertionError, match="a clip was opened"):
        clip_descriptors(renamed, tmp_path, tmp_path / "cache")


def test_a_broken_clip_is_named_and_the_others_are_kept(clips, tmp_path):
    (tmp_path / "A/3.avi").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"3\.avi"):
        clip_descriptors(clips, tmp_path, tmp_path / "cache")
    kept = list((tmp_path / "cache/descriptors").iterdir())
    assert len(kept) == 3 and not [p for p in kept if p.name.startswith(".")]


def test_a_broken_kept_file_is_computed_anew_and_the_budget_is_kept(clips, tmp_path, monkeypatch):
    whole = clip_descriptors(clips, tmp_path, tmp_path / "cache")
    kept = sorted((tmp_path / "cache/descriptors").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:1000])
    again = clip_descriptors(clips, tmp_path, tmp_path / "cache")
    assert all(np.array_equal(whole[name], again[name]) for name in FAMILIES)
    assert kept[0].stat().st_size == kept[1].stat().st_size
    small = ArrayStore(tmp_path / "cache", budget_gb=1.5 * kept[0].stat().st_size / 1e9)
    monkeypatch.setattr(descriptors, "ArrayStore", lambda cache: small)
    monkeypatch.setattr(descriptors, "VERSION", 2)
    clip_descriptors(clips.head(1), tmp_path, tmp_path / "cache")
    assert len(list((tmp_path / "cache/descriptors").iterdir())) == 1


# ---------------------------------------------------------------- Fisher vectors

def random_cells(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.3, size=(n, int(np.prod(CELLS)))).astype(np.float32)


def test_the_liveliest_cells_are_taken():
    cells = np.zeros(CELLS)
    cells[4, 6, 9, 3] = 1
    cells[..., ORIENTATIONS] = 1  # no motion anywhere else
    local = local_descriptors(cells)
    assert local.shape == (LOCAL_POOL, 3 + 4 * CHANNELS) and np.isfinite(local).all()
    place = (local[:4, :3] + 1) / 2 * (np.array(CELLS[:3]) - [1, 2, 2])
    assert {tuple(p) for p in np.rint(place).astype(int)} == {(4, 5, 8), (4, 5, 9), (4, 6, 8), (4, 6, 9)}


def test_fisher_vectors_against_their_definition():
    x = random_cells(12, 0)
    fitted = FisherVectors(modes=3, components=5, random_state=1).fit(x[:8])
    vectors = fitted.transform(x[8:])
    assert vectors.shape == (4, 3 * (2 * 5 + 7))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    gmm, local = fitted.gmm_, fitted._project(local_descriptors(x[8]))
    gamma = gmm.predict_proba(local)
    means, sigmas = [], []
    for k, weight in enumerate(gmm.weights_):  # Sanchez et al., 2013, equations 17 and 18
        z = (local - gmm.means_[k]) / np.sqrt(gmm.covariances_[k])
        means.append((gamma[:, [k]] * z).mean(axis=0) / np.sqrt(weight))
        sigmas.append((gamma[:, [k]] * (z**2 - 1)).mean(axis=0) / np.sqrt(2 * weight))
    expected = np.concatenate([(gamma.mean(axis=0) - gmm.weights_) / np.sqrt(gmm.weights_), np.ravel(means),
                               -np.ravel(sigmas)])  # scikit-image turns the sign of the last
    expected = np.sign(expected) * np.sqrt(np.abs(expected))
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-5)


def test_fisher_vectors_repeat():
    x = random_cells(6, 1)
    a, b = (FisherVectors(modes=2, components=4, random_state=3).fit(x).transform(x) for _ in range(2))
    np.testing.assert_array_equal(a, b)
