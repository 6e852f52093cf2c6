"""The frozen trunk as it is run."""

import pytest
import torch
from torch import nn

import features
from features import FrozenTrunk, fold_batchnorm
from models import FrameModel, InflatedEfficientNet, ResNet3D


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
    monkeypatch.setattr(features, "computes_bfloat16", lambda device: able)
    model = FrameModel(3, "efficientnet_lite0", weights=None, trained="head")
    assert FrozenTrunk(model, None, "cpu", asked).precision == taken
    with pytest.raises(ValueError, match="float16"):
        FrozenTrunk(model, None, "cpu", "float16")
