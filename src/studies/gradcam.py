"""Where a trained network looks: what of a clip speaks for a class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam

from deployed import as_batch
from models import TemporalConv, VideoModel


def class_maps(model: VideoModel, clip: torch.Tensor, target: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Grad-CAM (Selvaraju et al. 2017) of a class at the last convolutional stage, over time.

    Where that stage keeps frames apart (all 2D models, the inflated 3D one), each frame has its own channel weights
    and map; where it convolves over time (R3D-18), the weights are the clip's, and maps are interpolated in time. All
    maps of a clip share one scale.

    Args:
        model: in evaluation mode.
        clip: (T, C, H, W) as the model sees it, on its device.
        target: number of the class; None takes the most probable one.

    Returns:
        (T, H, W) float32 maps in [0, 1], 1 being the clip's strongest response; and (K,) float64 probabilities, from
        this view in float32.
    """
    batch = as_batch(model, clip)
    with torch.no_grad():
        probabilities = model(batch).cpu().double().softmax(dim=1)[0].numpy()
    target = int(probabilities.argmax()) if target is None else target
    at = len(model.stages) - 2 - isinstance(model.stages[-1], TemporalConv)  # the last stage before spatial pooling
    maps = []
    for stream, branch in zip(model.split(batch), model.branches(at), strict=True):
        with torch.no_grad():
            below = model.stages[:at](stream)
        # the stage's last module, inside of what folds frames into the batch, has its channels in dimension 1
        its = LayerGradCam(branch, model.stages[at][-1]).attribute(below, target, relu_attributions=True).detach().cpu()
        if its.dim() == 4:
            its = its.transpose(0, 1)[None]  # (T, 1, h, w) to (1, 1, T, h, w)
        size = stream.shape[model.time], *clip.shape[-2:]
        maps.append(F.interpolate(its, size=size, mode="trilinear")[0, 0])
    maps = torch.cat(maps)
    return (maps / maps.max().clamp(min=torch.finfo(maps.dtype).tiny)).numpy(), probabilities
