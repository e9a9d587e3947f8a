"""PyTorch networks as users get them: torchvision, timm, transformers, and what `torch.nn` makes easy to write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from .network import CLASSES, SEED, Change, Network
from .packages import timm, torchvision, transformers

IMAGE = (3, 32, 32)
SEQUENCE = (8, 6)  # steps, features of each
SIGNAL = (2, 40)  # channels, samples


def estimator(
    make: Callable[[], nn.Module], shape: tuple[int, ...], kind: str, settings: dict[str, Any], change: Change
) -> Any:
    """An ART classifier over a network, raw inputs in [0, 1]; none of the caller's random numbers are taken."""
    from art.estimators import classification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = change(make())
    return getattr(classification, kind)(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        input_shape=shape,
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        **settings,
    )


# -------------------------------------------------------------------------------------------------------- torchvision


def of_torchvision(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = torchvision().models.get_model(name, weights=None, num_classes=CLASSES, **settings)
    return model


def vgg11_bn() -> nn.Module:
    """With the head that small images get: its own has 120 million weights."""
    model = of_torchvision("vgg11_bn")
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, CLASSES)
    return model


def vision_transformer() -> nn.Module:
    model: nn.Module = torchvision().models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        dropout=0.1,
        num_classes=CLASSES,
    )
    return model


# --------------------------------------------------------------------------------------------------------------- timm


def of_timm(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = timm().create_model(name, pretrained=False, num_classes=CLASSES, **settings)
    return model


# ------------------------------------------------------------------------------------------------------- transformers


def hugging_face_vit() -> nn.Module:
    """Attention as it comes, which is the fused one."""
    config = transformers().ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=CLASSES,
    )
    model: nn.Module = transformers().ViTForImageClassification(config)
    return model


def processor(x: torch.Tensor) -> torch.Tensor:
    """What a ViTImageProcessor does, as torch code: from 24 to 32 pixels a side, and from [0, 1] to [-1, 1]."""
    return (nn.functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=False) - 0.5) / 0.5


# ----------------------------------------------------------------------------------------------------------- torch.nn


class Encoder(nn.Module):
    """A transformer encoder over a sequence of features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SEQUENCE[1], 16)
        layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """An LSTM, of which the last step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SEQUENCE[1], 16, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def signal_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(SIGNAL[0], 16, 7, stride=2, padding=3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    """Pre-activation as many write it: the ReLU works in place, so that the shortcut carries what has passed it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.second(self.relu(self.first(self.relu(x))))
        out += x
        return out


def inplace_residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), Residual(8), Residual(8),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def spectral_norm() -> nn.Module:
    """Each pass in training takes a step of the power iteration, and keeps its vectors in buffers."""
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, stride=2, padding=1)), nn.ReLU(),
        nn.Flatten(), parametrizations.spectral_norm(nn.Linear(512, CLASSES)),
    )  # fmt: skip


class Checkpointed(nn.Module):
    """Computes its blocks again in the backward pass, to save memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.GELU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.1)) for _ in range(2)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


# -------------------------------------------------------------------------------------------------------------- table


def row(
    title: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...] = IMAGE,
    kind: str = "PyTorchClassifier",
    settings: dict[str, Any] | None = None,
    **about: Any,
) -> Network:
    return Network(title, "pytorch", partial(estimator, make, shape, kind, settings or {}), **about)


TORCHVISION, TIMM, TRANSFORMERS = ("torchvision",), ("timm", "torchvision"), ("transformers", "torchvision")
HUGGING_FACE = "HuggingFaceClassifierPyTorch"
ATTENTION, FUSED_ATTENTION = "torch function 'multi_head_attention_forward'", "torch function 'scaled_dot_product_attention'"

NETWORKS = {
    "resnet18": row(
        "torchvision resnet18",
        partial(of_torchvision, "resnet18"),
        packages=TORCHVISION,
        overflows=True,
    ),
    "vgg11_bn": row("torchvision vgg11_bn, head of one layer", vgg11_bn, packages=TORCHVISION),
    "mobilenet_v3_small": row(
        "torchvision mobilenet_v3_small",
        partial(of_torchvision, "mobilenet_v3_small"),
        packages=TORCHVISION,
        overflows=True,
        in_sample=True,
    ),
    "densenet121": row("torchvision densenet121", partial(of_torchvision, "densenet121"), packages=TORCHVISION, overflows=True),
    "efficientnet_b0": row(
        "torchvision efficientnet_b0", partial(of_torchvision, "efficientnet_b0"), packages=TORCHVISION, overflows=True
    ),
    "convnext_tiny": row("torchvision convnext_tiny", partial(of_torchvision, "convnext_tiny"), packages=TORCHVISION),
    "googlenet": row(
        "torchvision googlenet, auxiliary logits",
        partial(of_torchvision, "googlenet", aux_logits=True, init_weights=False),
        packages=TORCHVISION,
        overflows=True,
        warns="returns a GoogLeNetOutputs in training",
    ),
    "vit": row(
        "torchvision VisionTransformer, 2 layers",
        vision_transformer,
        packages=TORCHVISION,
        without_rule=ATTENTION,
        in_sample=True,
    ),
    "timm_resnet10t": row("timm resnet10t", partial(of_timm, "resnet10t"), packages=TIMM),
    "timm_vit_tiny": row(
        "timm vit_tiny_patch16_224, 32 pixels, drop path",
        partial(of_timm, "vit_tiny_patch16_224", img_size=32, drop_path_rate=0.1),
        packages=TIMM,
        without_rule=FUSED_ATTENTION,
        in_sample=True,
    ),
    "hf_vit": row(
        "transformers ViT, 2 layers",
        hugging_face_vit,
        kind=HUGGING_FACE,
        packages=TRANSFORMERS,
        without_rule=FUSED_ATTENTION,
    ),
    "hf_vit_processor": row(
        "transformers ViT, 2 layers, with a processor",
        hugging_face_vit,
        (3, 24, 24),
        kind=HUGGING_FACE,
        settings={"processor": processor},
        packages=TRANSFORMERS,
        without_rule=FUSED_ATTENTION,
        in_sample=True,
    ),
    "transformer_encoder": row("nn.TransformerEncoder", Encoder, SEQUENCE, without_rule=ATTENTION, in_sample=True),
    "lstm": row("nn.LSTM", Recurrent, SEQUENCE, without_rule="LSTM", in_sample=True),
    "conv1d": row("1-D CNN, BatchNorm, dropout", signal_cnn, SIGNAL, in_sample=True),
    "inplace_residual": row("residual CNN that works in place", inplace_residual, in_sample=True),
    "spectral_norm": row("CNN with spectral_norm", spectral_norm, in_sample=True),
    "checkpointed": row("CNN with activation checkpoints", Checkpointed, in_sample=True),
}
