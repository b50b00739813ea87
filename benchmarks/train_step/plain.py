"""The plain loop of train_step.py, as repositories of the field write it, in a process of its own.

float32, contiguous, torchvision's transforms on Pillow's images, the loss with its N x C x D differences, the
optimizer as torch has it by default; as many workers, the same network, loss and settings as the recipe's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.floor import synchronize
from benchmarks.loss_step.methods import expansion
from tuplet import HISTLoss
from tuplet.config import RunConfig

PARTS = ("loading", "forward", "backward", "optimizer")

Parts = dict[str, float]


@dataclass(frozen=True)
class Photographs:
    """What both loops train on.

    Attributes:
        paths: JPEG files, one per row.
        labels: class of each, in 0..num_classes-1.
        num_classes: C.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    num_classes: int


class Clock:
    """Seconds between the marks of a step, one per part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[float] = []

    def mark(self, *, first: bool = False) -> None:
        """Now, when the device has done all it was given."""
        synchronize(self.device)
        self.marks = [*([] if first else self.marks), time.perf_counter()]

    def parts(self) -> Parts:
        """The parts of the step that has just ended."""
        seconds = [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
        return dict(zip(PARTS, seconds, strict=True))


class Images(Dataset[tuple[Tensor, int]]):
    """Transformed photographs and their labels."""

    def __init__(
        self, photographs: Photographs, side: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.photographs = photographs
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = Image.open(self.photographs.paths[row]).convert("RGB")
        return self.transform(image), self.photographs.labels[row]

    def __len__(self) -> int:
        return len(self.photographs.paths)


class Network(nn.Module):
    """Backbone, average and maximum, linear layer, norm."""

    def __init__(self, backbone: str, width: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0, global_pool="")
        self.average, self.maximum = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.embedding = nn.Linear(self.backbone.num_features, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings."""
        features = self.backbone(images)
        pooled = (self.average(features) + self.maximum(features)).flatten(1)
        return self.norm(self.embedding(pooled))


def serve(
    config: RunConfig, photographs: Photographs, device: torch.device, threads: int, connection: Connection
) -> None:
    """Do a step and send its parts whenever asked; the whole life of the process, until it is told False."""
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    network = Network(config.model.backbone, config.model.embedding_dim).to(device).train()
    if config.model.freeze_batch_norm != "none":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    loss = _loss(config, photographs.num_classes).to(device)
    optimizer = _optimizer(config, network, loss)
    cfg = network.backbone.pretrained_cfg
    loader = DataLoader(
        Images(photographs, config.data.image_size, cfg["mean"], cfg["std"]),
        batch_size=config.data.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.compute.num_workers,
        pin_memory=device.type == "cuda",
    )
    clock, batches = Clock(device), iter(loader)
    while connection.recv():
        clock.mark(first=True)
        images, labels = next(batches)
        clock.mark()
        images, labels = images.to(device), labels.to(device)
        value = expansion(loss, network(images), labels)
        clock.mark()
        optimizer.zero_grad()
        value.backward()
        clock.mark()
        optimizer.step()
        clock.mark()
        connection.send(clock.parts())


def _loss(config: RunConfig, num_classes: int) -> HISTLoss:
    return HISTLoss(
        num_classes,
        config.model.embedding_dim,
        tau=config.loss.tau,
        alpha=config.loss.alpha,
        lambda_s=config.loss.lambda_s,
        hidden_dim=config.loss.hidden_dim,
        num_layers=config.loss.num_layers,
    )


def _optimizer(config: RunConfig, network: Network, loss: HISTLoss) -> torch.optim.Optimizer:
    rates = config.optimizer
    kind = torch.optim.AdamW if rates.name == "adamw" else torch.optim.Adam
    groups = [
        {"params": network.backbone.parameters(), "lr": rates.lr_backbone},
        {"params": network.embedding.parameters(), "lr": rates.lr_embedding},
        *loss.parameter_groups(lr_distributions=rates.lr_distributions, lr_hgnn=rates.lr_hgnn),
    ]
    return kind(groups, weight_decay=rates.weight_decay)
