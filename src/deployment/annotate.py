"""A video with what was said of it drawn into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from deployment.answer import Answer
from plots import drawn
from videos.decoding import DEFAULT_RATE, read_track, stream_frames
from videos.encoding import write_video

LEAST_HEIGHT = 240  # pixels: smaller videos are enlarged, so that words can be read in them
BAR = (88, 166, 255)


def annotate(answer: Answer, target: str | Path) -> None:
    """Writes the video that was answered about, with the current class and a bar of its probability in every frame.

    It is as `encoding.write_video` writes it, without sound, with at most `decoding.MOST_PIXELS` a frame.

    Raises:
        VideoError: the video can't be read any more.
        ValueError: as `encoding.write_video`.
    """
    rate = read_track(answer.file).info.fps or DEFAULT_RATE
    write_video(target, _frames(answer, rate), rate)


def _frames(answer: Answer, rate: float) -> Iterator[np.ndarray]:
    board = None
    for index, picture in stream_frames(answer.file, lambda info: np.arange(info.frames)):
        board = board or _Board(answer, picture.shape)
        yield board.drawn(picture, index / rate)


class _Board:
    """Draws into frames of one size: below, the class of the moment, its probability, and a bar of it."""

    def __init__(self, answer: Answer, shape: tuple[int, ...]):
        self.answer, scale = answer, max(LEAST_HEIGHT / shape[0], 1)
        self.size = round(shape[1] * scale), round(shape[0] * scale)
        self.edges, self.course = answer.over_time()
        self.height = max(self.size[1] // 10, 24)
        self.font = FreeTypeFont(font_manager.findfont("DejaVu Sans"), self.height * 0.55)

    def drawn(self, picture: np.ndarray, second: float) -> np.ndarray:
        moment = min(max(int(np.searchsorted(self.edges, second, side="right")) - 1, 0), len(self.course) - 1)
        best = int(self.course[moment].argmax())
        share = float(self.course[moment][best])
        image = Image.fromarray(picture).resize(self.size, Image.Resampling.BILINEAR)
        brush, (width, height), top = ImageDraw.Draw(image, "RGBA"), self.size, self.size[1] - self.height
        brush.rectangle((0, top, width, height), fill=(0, 0, 0, 150))
        brush.rectangle((0, height - self.height // 6, width * share, height), fill=BAR)
        words = f"{drawn(self.answer.classes[best], max(width // (self.height // 3) - 6, 4))}  {share:.0%}"
        if self.answer.unfamiliarity > 1:
            words += "  (unlike the training)"
        brush.text((self.height * 0.3, top + self.height * 0.1), words, font=self.font, fill="white")
        return np.asarray(image)
