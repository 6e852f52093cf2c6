"""The frozen trunk as it is run."""

import pytest
import torch
from torch import nn

import deployed
import engines
from deployed import FrozenTrunk, fold_batchnorm
from models import FrameModel, InflatedEfficientNet, ResNet3D


@pytest.mark.slow
@pytest.mark.parametrize("model, shape", [
    (lambda: FrameModel(3, "resnet18", weights=None, trained="head"), (1, 2, 3, 64, 64)),
    (lambda: FrameModel(3, "efficientnet_b0", weights=None, trained="head"), (1, 2, 3, 64, 64)),
    (lambda: FrameModel(3, "efficientnet_lite0", weights="packaged", trained="head"), (1, 2, 3, 64, 64)),
    (lambda: InflatedEfficientNet(3, trained="head"), (1, 3, 4, 64, 64)),
    (lambda: ResNet3D(3, weights=None, trained="head"), (1, 3, 4, 64, 64)),
], ids=["resnet18", "efficientnet_b0", "efficientnet_lite0", "efficientnet_lite0_3d", "resnet3d"])
def test_folded_batchnorm_is_the_same_function(model, shape):
    torch.manual_seed(0)
    trunk = model().trunk
    for module in trunk.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) and module.running_mean.abs().sum() == 0:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(shape)
    folded = fold_batchnorm(trunk)
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in folded.modules())
    with torch.inference_mode():
        expected = trunk.eval()(x)
        assert (folded(x) - expected).norm() < 1e-4 * expected.norm()
    assert any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in trunk.modules())  # itself as it was


@pytest.mark.parametrize("able, asked, taken", [
    (True, "auto", "bfloat16"), (False, "auto", "float32"),
    (True, "float32", "float32"), (False, "bfloat16", "bfloat16")])
def test_precision_follows_the_hardware_unless_it_is_named(monkeypatch, able, asked, taken):
    monkeypatch.setattr(engines, "computes_bfloat16", lambda device: able)
    model = FrameModel(3, "efficientnet_lite0", weights=None, trained="head")
    assert FrozenTrunk(model, "cpu", asked).precision == taken
    with pytest.raises(ValueError, match="float16"):
        FrozenTrunk(model, "cpu", "float16")


@pytest.mark.slow
@pytest.mark.parametrize("model, shape", [
    (lambda: FrameModel(3, "efficientnet_lite0", weights="packaged", trained="head"), (2, 7, 3, 64, 64)),
    (lambda: FrameModel(3, "resnet18", weights=None, trained="stage"), (2, 7, 3, 64, 64)),
    (lambda: InflatedEfficientNet(3, trained="head"), (2, 3, 7, 64, 64)),
    (lambda: ResNet3D(3, weights=None, trained="head"), (2, 3, 4, 64, 64)),
], ids=["efficientnet_lite0", "resnet18 stage", "efficientnet_lite0_3d", "resnet3d"])
def test_frames_shared_out_to_threads_give_what_the_trunk_gives(model, shape):
    torch.manual_seed(0)
    model, before, given = model().eval(), torch.get_num_threads(), []
    clips = torch.randn(shape)
    with torch.inference_mode():
        expected = fold_batchnorm(model.trunk)(clips)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given.append(FrozenTrunk(model, "cpu", "float32").run(clips))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert given[0].shape == expected.shape and torch.allclose(given[0], expected, rtol=1e-3, atol=1e-4)
    if model.frame_wise:
        assert torch.equal(*given)  # however many cores there are


def test_what_a_thread_raises_is_raised_and_torchs_threads_are_as_before():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        deployed.in_threads(lambda part: 1 / part, [1, 0])
    assert torch.get_num_threads() == before
