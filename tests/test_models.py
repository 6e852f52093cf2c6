import http.server
import socket
import threading
import time

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torchvision import models as tv

import models
import networks
from config import get_recipe
from models import (
    FrameModel,
    InflatedEfficientNet,
    ResNet3D,
    ResNet18Temporal,
    TemporalConv,
    TemporalPool,
    WeightsError,
    build_model,
    choose_backbone,
    choose_source,
    weights_file,
)


def count(model, trained=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def test_the_seeds_parameter_counts():
    flat, solid = ResNet18Temporal(3, weights=None), ResNet3D(3, weights=None)
    assert (count(flat), count(flat, True)) == (11_178_051, 11_178_051)
    assert (count(solid), count(solid, True)) == (33_167_811, 1_539)
    assert count(ResNet3D(3, freeze_backbone=False, weights=None), True) == 33_167_811


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder as torch's hub folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def publish(monkeypatch, port):
    """torchvision's weights of ResNet-18 are looked for at a port of this machine."""
    monkeypatch.setattr(networks, "weights_url", lambda backbone: f"http://127.0.0.1:{port}/resnet18-f37072fd.pth")


def plant(hub, backbone, net):
    hub.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), weights_file(backbone))
    assert weights_file(backbone).parent == hub


def test_planted_torchvision_weights_are_loaded(hub):
    torch.manual_seed(0)
    net = tv.resnet18(weights=None).eval()
    plant(hub, "resnet18", net)
    model = ResNet18Temporal(3).eval()
    x = torch.randn(1, 2, 3, 64, 64)
    with torch.inference_mode():
        ours = model.stages(x)[0]
        net.fc = nn.Identity()
        torch.testing.assert_close(ours, net(x[0]), atol=1e-4, rtol=1e-4)
    assert choose_source("2d", "auto") == "torchvision"
    plant(hub, "resnet3d", tv.video.r3d_18(weights=None))
    assert ResNet3D(3).source == "torchvision"


def test_unreadable_or_foreign_weights_are_named(hub):
    hub.mkdir(parents=True)
    weights_file("resnet18").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth"):
        ResNet18Temporal(3)
    plant(hub, "resnet18", nn.Linear(2, 2))
    with pytest.raises(WeightsError, match="another network"):
        ResNet18Temporal(3)


def test_refused_connection(hub, monkeypatch):
    publish(monkeypatch, 9)
    with pytest.raises(WeightsError) as error:
        ResNet18Temporal(3)
    for words in ("resnet18-f37072fd.pth", str(hub), "weights=None"):
        assert words in str(error.value)
    assert not list(hub.glob("*")) and choose_source("2d", "auto") == "packaged"


@pytest.mark.slow
def test_silent_host_fails_in_time(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        publish(monkeypatch, server.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(WeightsError, match="can't fetch"):
            ResNet18Temporal(3)
    assert time.monotonic() - started < 20 and not list(hub.glob("*"))


class BreakingHandler(http.server.BaseHTTPRequestHandler):
    """Promises a million bytes, gives a thousand and hangs up; HEAD succeeds."""

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *arguments):
        pass


def test_broken_transfer_leaves_nothing(hub, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreakingHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    publish(monkeypatch, server.server_port)
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth"):
        ResNet18Temporal(3)
    server.shutdown()
    assert not list(hub.glob("*"))


@pytest.mark.parametrize("kind, weights, trained, shape", [
    ("2d", "packaged", "stage", (1, 4, 3, 64, 64)), ("3d", "packaged", "stage", (1, 3, 4, 64, 64)),
    ("2d", "none", "all", (1, 2, 3, 64, 64)), ("3d", "none", "head", (1, 3, 4, 64, 64))])
def test_trunk_then_head_is_the_model(kind, weights, trained, shape):
    recipe = get_recipe("recommended", kind, trained=trained)
    model = build_model(recipe, 5, weights).eval()
    x = torch.randn(shape)
    with torch.inference_mode():
        assert torch.equal(model.head(model.trunk(x)), model(x)) and model(x).shape == (1, 5)
    assert all(not p.requires_grad for p in model.trunk.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_b0"])
def test_other_frame_encoders(backbone):
    model = FrameModel(3, backbone, pooling="max", weights=None, trained="stage").eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 2, 3, 64, 64)).shape == (1, 3)


def test_frozen_batchnorm_never_moves_and_cut_changes_no_name():
    model = ResNet3D(3, weights=None, trained="stage")
    before = {k: v.clone() for k, v in model.trunk.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    nn.functional.cross_entropy(model(torch.randn(2, 3, 4, 32, 32)), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.trunk.state_dict().items())
    assert model.state_dict().keys() == ResNet3D(3, weights=None).state_dict().keys()
    model.update_frozen_batchnorm = True  # the seed's mistake, on request
    model.train()
    model(torch.randn(2, 3, 4, 32, 32))
    assert any(not torch.equal(v, before[k]) for k, v in model.trunk.state_dict().items())


@pytest.mark.slow
def test_inflation_starts_as_the_2d_network():
    flat, solid = FrameModel(3, "efficientnet_lite0", weights="packaged").eval(), InflatedEfficientNet(3).eval()
    x = torch.randn(1, 3, 4, 64, 64)
    with torch.inference_mode():
        ours, theirs = solid.pool(solid.stages(x)), flat.pool(flat.stages(x.transpose(1, 2)))
    torch.testing.assert_close(ours, theirs)


def test_temporal_conv_is_a_depthwise_convolution():
    layer, reference = TemporalConv(4), nn.Conv1d(4, 4, 3, padding=1, groups=4, bias=False)
    nn.init.normal_(layer.weight)
    reference.weight.data = layer.weight.data.T.reshape(4, 1, 3)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(layer(x), reference(x.transpose(1, 2)).transpose(1, 2))


def test_pooling():
    x = torch.tensor([[[1.0, 4.0], [3.0, 0.0]]])
    assert TemporalPool("avg")(x).tolist() == [[2.0, 2.0]] and TemporalPool("max")(x).tolist() == [[3.0, 4.0]]
    with pytest.raises(ValueError, match="pooling"):
        TemporalPool("median")


@pytest.mark.parametrize("pooling, first", [("attention", "score.weight"), ("conv", "up.weight")])
def test_learned_pooling_starts_as_the_average_and_learns(pooling, first):
    torch.manual_seed(0)
    pool, x = TemporalPool(pooling, 12), torch.randn(3, 7, 12)
    torch.testing.assert_close(pool(x), x.mean(dim=1))
    optimizer = torch.optim.SGD(pool.parameters(), lr=1.0)
    for _ in range(2):  # what lies before a layer of zeros gets its gradient from the second step on
        optimizer.zero_grad()
        pool(x).pow(2).sum().backward()
        grads = {name: p.grad.norm().item() for name, p in pool.named_parameters()}
        assert grads[first] > 0
        optimizer.step()
    assert all(grad > 0 for grad in grads.values()) and not torch.allclose(pool(x), x.mean(dim=1))


def test_attention_equals_its_formula():
    """Ilse et al. 2018, equation 9: weights softmax(w (tanh(V h) * sigm(U h))) over the frames."""
    torch.manual_seed(0)
    pool, x = TemporalPool("attention", 6), torch.randn(2, 5, 6)
    nn.init.normal_(pool.score.weight)
    for clip, pooled in zip(x, pool(x), strict=False):
        scores = torch.stack([pool.score.weight[0] @ (torch.tanh(pool.value(h)) * torch.sigmoid(pool.gate(h)))
                              for h in clip])
        weights = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(pooled, sum(a * h for a, h in zip(weights, clip, strict=False)))


def test_conv_pooling_is_a_residual_convolution_then_the_average():
    torch.manual_seed(0)
    pool, x = TemporalPool("conv", 6), torch.randn(2, 5, 6)
    nn.init.normal_(pool.up.weight)
    full = nn.Conv1d(32, 32, 3, padding=1)
    full.weight.data = torch.diag_embed(pool.mix.weight[:, 0].T).permute(1, 2, 0).contiguous()
    full.bias.data = pool.mix.bias
    mixed = full(pool.down(x).transpose(1, 2)).relu().transpose(1, 2)
    torch.testing.assert_close(pool(x), (x + pool.up(mixed)).mean(dim=1))
    assert not torch.allclose(pool(x), pool(x[:, [4, 0, 3, 1, 2]]))  # it sees the order of frames


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["attention", "conv"])
def test_learned_pooling_in_the_model(pooling):
    plain, learned = (FrameModel(3, "efficientnet_lite0", name, weights=None, trained="head")
                      for name in ("avg", pooling))
    before, after = plain.state_dict().keys(), learned.state_dict().keys()
    assert before < after and all(name.startswith("pool.") for name in after - before)
    assert count(plain, True) < count(learned, True) < 100_000
    assert all(p.requires_grad for p in learned.head.parameters())


@pytest.mark.parametrize("call, words", [
    (lambda: choose_source("2d", "somewhere"), "WEIGHTS"), (lambda: FrameModel(3, "vgg", weights=None), "vgg"),
    (lambda: choose_backbone("2d", "torchvision", "efficientnet_lite0"), "torchvision"),
    (lambda: choose_backbone("3d", "none", "resnet18"), "resnet3d"),
    (lambda: ResNet18Temporal(3, weights=None, trained="some"), "trained")])
def test_wrong_choices_are_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.slow
def test_lite0_equals_its_package_in_values_and_gradients():
    ours = FrameModel(3, "efficientnet_lite0", weights="packaged").eval()
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(weights_file("efficientnet_lite0"), weights_only=True))
    theirs.to(memory_format=torch.channels_last)
    frames = torch.randn(3, 3, 224, 224)
    mine, reference = ours.stages(frames[None])[0], theirs.extract_features(frames).mean(dim=(2, 3))
    torch.testing.assert_close(mine, reference)
    for features in (mine, reference):
        features.square().sum().backward()
    compared = dict(theirs.named_parameters())
    for (name, parameter), (_, gradient) in zip(
            [(n, p) for n, p in compared.items() if p.grad is not None], ours.stages.named_parameters(), strict=True):
        tolerance = 1e-3 * float(parameter.grad.abs().max())
        torch.testing.assert_close(gradient.grad, parameter.grad, rtol=1e-3, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind, shape", [("2d", (1, 4, 3, 64, 64)), ("3d", (1, 3, 4, 64, 64))])
def test_summary_names_stages_and_counts_and_changes_nothing(kind, shape):
    model = build_model(get_recipe("recommended", kind), 3, "none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text, (total, trained) = models.summary(model, torch.zeros(shape)), model.count_parameters()
    assert all(f"({name})" in text for name, _ in model.stages.named_children())
    assert f"Total params: {total:,}" in text and f"Trainable params: {trained:,}" in text
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["diff", "rgb+diff"])
@pytest.mark.parametrize(("kind", "source", "changes"), [
    *(("2d", "packaged", {"pooling": pooling}) for pooling in ("avg", "max", "stats", "attention", "conv")),
    ("3d", "packaged", {"pooling": "stats"}), ("3d", "packaged", {"pooling": "avg"}), ("3d", "none", {}),
    ("2d", "packaged", {"pooling": "avg", "standardize": False})])
def test_what_is_trained_on_summaries_is_the_head(modality, kind, source, changes):
    """The same logits and gradients, in training and in the test, from what is computed once of the activations."""
    torch.manual_seed(0)
    recipe = get_recipe("recommended", kind, modality=modality, size=64, num_frames=7, stills=3, dropout=0.0, **changes)
    model = build_model(recipe, 3, source)
    for parameter in model.tail.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(6, *((10 if modality == "rgb+diff" else 7), 3, 64, 64)).movedim(1, model.time)
    with torch.no_grad():
        activations = model.joined(model.trunk.eval(), x)
    summary = model.summary
    assert (summary is None) == (changes.get("pooling") in ("attention", "conv") or (kind, source, changes) == (
        "3d", "packaged", {"pooling": "avg"}))
    seen = summary(activations) if summary else activations
    for mode in (True, False):
        gradients, logits = [], []
        for part, given in ((model.head, activations), (model.tail, seen)):
            torch.manual_seed(1)
            model.zero_grad()
            part.train(mode)
            logits.append(part(given))
            nn.functional.cross_entropy(logits[-1], torch.tensor([0, 1, 2, 0, 1, 2])).backward()
            gradients.append([parameter.grad.clone() for parameter in part.parameters()])
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-4)
    assert [*model.head.parameters()] == [*model.tail.parameters()]
