import av
import numpy as np
import pytest

import synthetic
from videos.decoding import VideoError, read_frames, read_track
from videos.encoding import join_videos, write_video


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    write_video(path, map(synthetic.picture, range(40)), 12.5)
    info = read_track(path).info
    assert (info.frames, info.fps, info.width, info.height) == (40, pytest.approx(12.5, rel=1e-3), *synthetic.SIZE)
    frames, _ = read_frames(path, lambda info: range(info.frames))
    assert synthetic.numbers(frames) == list(range(40))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_odd_sides_lose_a_line(tmp_path):
    write_video(tmp_path / "odd.mp4", np.full((3, 49, 65, 3), 200, np.uint8), 25)
    info = read_track(tmp_path / "odd.mp4").info
    assert (info.frames, info.width, info.height) == (3, 64, 48)


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"an earlier one")

    def broken():
        yield synthetic.picture(0)
        raise VideoError("the source breaks off")

    for frames, error in ((broken(), VideoError), (iter(()), ValueError)):
        with pytest.raises(error):
            write_video(path, frames, 25)
    with pytest.raises(ValueError, match=r"video\.gif: what is written is H\.264"):
        write_video(tmp_path / "video.gif", [synthetic.picture(0)], 25)
    assert [its.name for its in tmp_path.iterdir()] == ["video.mp4"] and path.read_bytes() == b"an earlier one"


def test_videos_one_after_another(tmp_path):
    """They keep their lengths in seconds, whatever their rates, and take the first one's size."""
    slow = synthetic.write(tmp_path / "slow.mp4", 20, rate=10)
    fast = synthetic.write(tmp_path / "fast.mp4", 60, rate=50, size=(128, 96))
    ends = join_videos([slow, fast, slow], tmp_path / "joined.mp4", 25)
    np.testing.assert_allclose(ends, [2.0, 3.2, 5.2])
    info = read_track(tmp_path / "joined.mp4").info
    assert (info.frames, info.width, info.height) == (130, *synthetic.SIZE)
    frames, _ = read_frames(tmp_path / "joined.mp4", lambda info: range(info.frames))
    told = synthetic.numbers(frames)
    expected = [int(n * 0.4) for n in range(50)], [n * 2 for n in range(30)]
    assert told == [*expected[0], *expected[1], *expected[0]]
