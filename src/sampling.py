"""Which frames of a clip are seen: pure functions of (frames in the file, frames wanted, position)."""

from __future__ import annotations

import numpy as np
import torch

from videos.decoding import DEFAULT_RATE, VideoInfo

MODALITIES = ("rgb", "diff", "rgb+diff")

# `n` of a clip's `total` frames, as (n,) int64 indices, ascending, each within [0, total). `position` is where they
# lie, 0 (start) to 1 (end); 0.5 is the centre. A clip that is too short is stretched by repeating indices.

def window_indices(total: int, n: int, position: float = 0.5) -> np.ndarray:
    """Dense sampling: contiguous frames."""
    if total < n:
        return stretched(total, n)
    start = max(int(np.ceil(position * (total - n + 1))) - 1, 0)
    return start + np.arange(n, dtype=np.int64)


def segment_indices(total: int, n: int, position: float | np.ndarray = 0.5) -> np.ndarray:
    """Uniform-segment sampling (TSN, Wang et al. 2016): one frame from each of `n` equal segments.

    `position` is where in its segment each frame lies: one number, or one per segment.
    """
    _check_counts(total, n)
    first = np.arange(n)
    offsets = np.floor((first + np.asarray(position, dtype=float)) * total / n)
    return np.minimum(offsets, np.ceil((first + 1) * total / n) - 1).astype(np.int64)  # its segment's last at most


def time_indices(total: int, fps: float, n: int, rate: float, position: float = 0.5) -> np.ndarray:
    """Frames at `rate` per second, whatever the file's own `fps`; where that is unknown (0), contiguous frames."""
    step = (fps if fps > 0 else rate) / rate
    span = (n - 1) * step
    if total - 1 < span:
        return stretched(total, n)
    start = position * (total - 1 - span)
    return np.minimum(np.floor(start + step * np.arange(n) + 0.5), total - 1).astype(np.int64)


def stretched(total: int, n: int) -> np.ndarray:
    """Evenly spread over the whole clip, repeated where it has fewer."""
    _check_counts(total, n)
    return np.linspace(0, total - 1, n).round().astype(np.int64)


def _check_counts(total: int, n: int) -> None:
    if total < 1 or n < 1:
        raise ValueError(f"sampling needs at least one frame of a clip with at least one: {n} of {total}")


class FrameSampler:
    """Frame indices as a recipe wants them (see `config.Recipe`): `stills` frames where the modality has RGB, then,
    where it has differences, `num_frames` frames and as many that follow them `gap` seconds later.

    `frame_rate` is in frames per second. Stills that are fewer than `num_frames` lie over the same time.
    """

    def __init__(self, num_frames: int, sampling: str = "window", frame_rate: float | None = None,
                 modality: str = "rgb", stills: int | None = None, gap: float = 1 / 15):
        if sampling not in ("window", "segments", "time"):
            raise ValueError(f"unknown sampling {sampling!r}: window, segments or time")
        if sampling == "time" and not frame_rate:
            raise ValueError("sampling by time needs frame_rate, in frames per second")
        if modality not in MODALITIES:
            raise ValueError(f"unknown modality {modality!r}: {', '.join(MODALITIES)}")
        self.num_frames, self.sampling, self.frame_rate, self.gap = num_frames, sampling, frame_rate, gap
        self.pairs = num_frames if "diff" in modality else 0
        self.stills = min(stills or num_frames, num_frames) if "rgb" in modality else 0

    def __call__(self, info: VideoInfo, position: float | np.ndarray = 0.5) -> np.ndarray:
        """(stills + 2 pairs,) int64 indices into a clip; the same position gives the same indices."""
        chosen = [self._indices(info, self.stills, position)] if self.stills else []
        if self.pairs:
            later = min(max(round(self.gap * (info.fps or DEFAULT_RATE)), 1), info.frames - 1)
            first = self._indices(info._replace(frames=info.frames - later), self.pairs, position)
            chosen += [first, first + later]
        return np.concatenate(chosen)

    def _indices(self, info: VideoInfo, n: int, position: float | np.ndarray) -> np.ndarray:
        if self.sampling == "segments":
            return segment_indices(info.frames, n, np.broadcast_to(position, self.num_frames)[:n])
        position = float(np.mean(position))
        if self.sampling == "window":
            return window_indices(info.frames, n, position)
        return time_indices(info.frames, info.fps, n, self.frame_rate * n / self.num_frames, position)

    def __repr__(self) -> str:
        stills = f", stills={self.stills}" if self.pairs or self.stills != self.num_frames else ""
        pairs = f", pairs={self.pairs}, gap={self.gap:.4g}" if self.pairs else ""
        return f"FrameSampler({self.num_frames}, {self.sampling!r}, {self.frame_rate}{stills}{pairs})"

    def random_position(self) -> np.ndarray:
        """Drawn from torch's generator: one position per segment for `segments`, else one per clip."""
        return torch.rand(self.num_frames if self.sampling == "segments" else 1, dtype=torch.float64).numpy()
