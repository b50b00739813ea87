"""Training: one visible loop, as a generator of epoch reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tuplet.config import OptimizerConfig, RunConfig, ScheduleConfig
from tuplet.data.images import TransformedImages
from tuplet.data.loading import load
from tuplet.data.sampling import Draw, batches, rank_slice
from tuplet.data.splits import hold_out
from tuplet.data.table import ImageTable, Split
from tuplet.data.transforms import train_transform
from tuplet.environment import describe_environment, hash_weights
from tuplet.errors import InputError
from tuplet.evaluation import EvalReport, embed, evaluate
from tuplet.losses.hist import HISTLoss, HISTTerms
from tuplet.models.embedder import Embedder
from tuplet.progress import track
from tuplet.runs import EpochReport, Run


class DivergedError(InputError):
    """The loss or a weight left the finite numbers; the run keeps its last good checkpoint."""


def train(run: Run, *, fabric: Fabric | None = None, split: Split | None = None) -> Iterator[EpochReport]:
    """The report of each epoch as it ends, epoch 0 being the network before training.

    Everything learnt is in the run's folder. A run that was stopped anywhere goes on after its last whole
    epoch, and ends with the weights it would have had anyway, bit for bit on the CPU.

    Args:
        run: made by `Run.create`, new or stopped.
        fabric: devices, precision and ranks; made from the run's config where it is not given.
        split: the images, where they are loaded already; else the config's.

    Raises:
        InputError: (a ValueError) data, weights or settings that cannot be used.
        DivergedError: a loss or a weight that is NaN or infinite; names the epoch, the step and the terms.
    """
    config = run.config
    fabric = fabric or launch(config)
    with run.locked() if fabric.is_global_zero else nullcontext():
        split = split or load_split(config)
        session = _Session(run, split, fabric)
        start = session.restore()
        if start == 0:
            yield session.report(EpochReport(0, {}, session.evaluate(0), 0.0, session.evaluation_seconds, 0.0, {}))
            session.save(0)
        for epoch in range(start + 1, config.schedule.epochs + 1):
            yield session.report(_train_epoch(session, epoch))
            session.save(epoch)
        session.finish()


def _train_epoch(session: _Session, epoch: int) -> EpochReport:
    config, fabric, network, loss = session.run.config, session.fabric, session.network, session.loss
    # Every epoch starts its own random stream, so that a resumed run needs no saved one.
    torch.manual_seed(_seed(config.seed, epoch, fabric.global_rank))
    rates = session.set_learning_rates(epoch)
    warming = epoch <= config.schedule.warmup_epochs
    session.set_backbone_learning(not warming)
    session.batches.epoch = epoch
    network.train()
    loss.train()

    sums = torch.zeros(3, device=fabric.device)
    began = time.perf_counter()
    for step, (pixels, labels, _) in enumerate(track(session.loader, f"epoch {epoch}/{config.schedule.epochs}"), 1):
        pixels = pixels.to(fabric.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(fabric.device, non_blocking=True)
        with fabric.no_backward_sync(network, enabled=warming):
            terms = session.loss_terms(network(pixels), labels, epoch, step)
            fabric.backward(terms.total)
        if warming:
            session.average_embedding_gradients()
        if config.optimizer.clip_norm > 0:
            fabric.clip_gradients(network, session.optimizer, max_norm=config.optimizer.clip_norm)
        session.optimizer.step()
        session.optimizer.zero_grad()
        sums += torch.stack([terms.distribution, terms.cross_entropy, terms.total]).detach()
    means = (sums / len(session.loader)).tolist()
    seconds = time.perf_counter() - began

    session.require_finite_weights(epoch)
    evaluation = session.evaluate(epoch)
    return EpochReport(
        epoch=epoch,
        losses=dict(zip(("distribution", "cross_entropy", "total"), means, strict=True)),
        evaluation=evaluation,
        train_seconds=seconds,
        evaluation_seconds=session.evaluation_seconds if evaluation else 0.0,
        images_per_second=len(session.loader) * config.data.batch_size / seconds,
        learning_rates=rates,
    )


def launch(config: RunConfig) -> Fabric:
    """A Fabric on the devices that the config names, its other ranks started.

    Raises:
        InputError: (a ValueError) there is no such device.
    """
    compute = config.compute
    try:
        fabric = Fabric(accelerator=compute.accelerator, devices=compute.devices, precision=compute.precision)
    except (RuntimeError, ValueError, ImportError) as error:
        cause = " ".join(str(error).split())
        raise InputError(
            f"compute.accelerator {compute.accelerator} with {compute.devices} devices cannot be used here"
            f" ({cause}); want devices that this machine has, such as --compute.accelerator cpu"
        ) from error
    fabric.launch()
    return fabric


def load_split(config: RunConfig) -> Split:
    """The images to train on and those to be measured on: test images, or validation classes held out.

    Raises:
        InputError: (a ValueError) images that are missing, unreadable, or too few.
    """
    split = load(config.data, num_workers=config.compute.num_workers, progress=lambda rows: track(rows, "reading"))
    if config.evaluation.split == "validation":
        evaluation = config.evaluation
        train_part, validation = hold_out(
            split.train, fraction=evaluation.validation_fraction, seed=evaluation.validation_seed
        )
        split = replace(split, train=train_part, test=validation)
    return split


def learning_rate_factor(schedule: ScheduleConfig, epoch: int) -> float:
    """What the learning rates are multiplied by in an epoch; 1 during and right after the warm-up.

    Args:
        schedule: `decay` and its numbers.
        epoch: 1..epochs.
    """
    past = max(0, epoch - 1 - schedule.warmup_epochs)
    if schedule.decay == "step":
        return float(schedule.step_gamma ** (past // schedule.step_epochs))
    if schedule.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * past / max(1, schedule.epochs - schedule.warmup_epochs)))
    return 1.0


def build_optimizer(network: Embedder, loss: HISTLoss, config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer over the four groups "backbone", "embedding", "distributions", "hgnn"."""
    groups = [
        *network.parameter_groups(lr_backbone=config.lr_backbone, lr_embedding=config.lr_embedding),
        *loss.parameter_groups(lr_distributions=config.lr_distributions, lr_hgnn=config.lr_hgnn),
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=config.weight_decay)


@final
class _EpochBatches(Sampler[list[Draw]]):
    """This rank's part of every batch of the epoch that is set."""

    def __init__(self, config: RunConfig, table: ImageTable, fabric: Fabric) -> None:
        self._config, self._labels = config, table.labels
        self._rank, self._ranks = fabric.global_rank, fabric.world_size
        self.epoch = 1

    def __iter__(self) -> Iterator[list[Draw]]:
        drawn = batches(self._config.data, self._labels, seed=self._config.seed, epoch=self.epoch)
        return iter([rank_slice(batch, self._rank, self._ranks) for batch in drawn])

    def __len__(self) -> int:
        return len(self._labels) // self._config.data.batch_size


@final
class _Session:
    """The moving parts of one training process, and what happens around an epoch."""

    def __init__(self, run: Run, split: Split, fabric: Fabric) -> None:
        config = run.config
        self.run, self.split, self.fabric = run, split, fabric
        self.evaluation_seconds = 0.0
        batches(config.data, split.train.labels, seed=config.seed, epoch=1)  # too few images: say so first
        torch.manual_seed(config.seed)
        model = config.model
        self.embedder = Embedder(
            model.backbone,
            model.embedding_dim,
            pooling=model.pooling,
            pretrained=model.pretrained,
            weights=model.weights,
            freeze_batch_norm=model.freeze_batch_norm,
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        settings = {name: getattr(config.loss, name) for name in config.loss.__dataclass_fields__}
        # Every rank holds the whole loss and computes it on the gathered batch, so its gradients agree.
        self.loss = HISTLoss(split.train.num_classes, model.embedding_dim, **settings).to(fabric.device)
        self._initial_weights = hash_weights(self.embedder.state_dict())
        optimizer = build_optimizer(self.embedder, self.loss, config.optimizer)
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._backbone = [p for p in self.embedder.backbone.parameters() if p.requires_grad]
        wrapped: tuple[Any, Any] = fabric.setup(self.embedder, optimizer)
        self.network, self.optimizer = wrapped
        self.batches = _EpochBatches(config, split.train, fabric)
        workers = config.compute.num_workers
        self.loader = DataLoader(
            TransformedImages(split.train, train_transform(config.data)),
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=fabric.device.type == "cuda",
            generator=torch.Generator(),  # its own: workers must not shift the stream of the epoch
        )

    def restore(self) -> int:
        """Load the checkpoint; the last whole epoch, or 0 where there is none."""
        state = self.run.load_checkpoint()
        if self.fabric.is_global_zero:
            self.run.keep_reports(-1 if state is None else state["epoch"])
            if state is None:
                environment = describe_environment(self.fabric.device, self.fabric.world_size)
                self.run.write_json(
                    self.run.environment_file, environment | {"initial_weights_sha256": self._initial_weights}
                )
                notes = {"notes": self.split.notes, "skipped_images": self.split.skipped}
                self.run.write_json(self.run.notes_file, notes)
        if state is None:
            return 0
        self.embedder.load_state_dict(state["network"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["epoch"])

    def save(self, epoch: int) -> None:
        """Replace the checkpoint by the state after this epoch."""
        if self.fabric.is_global_zero:
            self.run.save_checkpoint(
                {
                    "epoch": epoch,
                    "network": self.embedder.state_dict(),
                    "loss": self.loss.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                }
            )

    def report(self, report: EpochReport) -> EpochReport:
        """Append the epoch's line to the run."""
        if self.fabric.is_global_zero:
            self.run.append(report)
        return report

    def finish(self) -> None:
        """Save the trained network for whoever wants to use it."""
        if self.fabric.is_global_zero:
            self.run.embedder().save_pretrained(self.run.model_folder)
        self.fabric.barrier()

    def set_learning_rates(self, epoch: int) -> dict[str, float]:
        """Set each group's learning rate for an epoch; what they are, by group."""
        factor = learning_rate_factor(self.run.config.schedule, epoch)
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return {group["name"]: group["lr"] for group in groups}

    def set_backbone_learning(self, learning: bool) -> None:
        """Let the backbone learn, or rest."""
        for parameter in self._backbone:
            parameter.requires_grad_(learning)

    def average_embedding_gradients(self) -> None:
        """Average over ranks what DDP leaves alone while part of the network rests."""
        if self.fabric.world_size > 1:
            for parameter in self.embedder.parameters():
                if parameter.grad is not None:
                    parameter.grad.copy_(self.fabric.all_reduce(parameter.grad, reduce_op="mean"))

    def loss_terms(
        self, embeddings: Float[Tensor, "n D"], labels: Int64[Tensor, " n"], epoch: int, step: int
    ) -> HISTTerms:
        """The loss of the global batch, the same on every rank; stops the run where it is not finite."""
        if self.fabric.world_size > 1:
            # Each rank's copy of the loss sends back the same gradient; DDP's mean undoes their sum.
            embeddings = self.fabric.all_gather(embeddings, sync_grads=True).flatten(0, 1)
            labels = self.fabric.all_gather(labels).flatten()
        try:
            terms = self.loss.terms(embeddings, labels)
        except InputError as error:
            self._stop(f"at epoch {epoch}, step {step}: {error}", epoch)
        if not bool(torch.isfinite(terms.total)):
            self._stop(
                f"at epoch {epoch}, step {step}: the loss is {terms.total.item()}"
                f" (distribution {terms.distribution.item()}, cross_entropy {terms.cross_entropy.item()})",
                epoch,
            )
        return terms

    def require_finite_weights(self, epoch: int) -> None:
        """Stop the run before weights that are not finite reach its checkpoint."""
        for part in (self.embedder, self.loss):
            for name, value in part.state_dict().items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    self._stop(f"at the end of epoch {epoch}: {name} holds NaN or infinity", epoch)

    def evaluate(self, epoch: int) -> EvalReport | None:
        """Measure the network if it is this epoch's turn; sets `evaluation_seconds`."""
        config = self.run.config
        last = epoch == config.schedule.epochs
        if epoch % config.evaluation.every_epochs and not last:
            return None
        began = time.perf_counter()
        self.network.eval()
        embedded = embed(
            self.network, self.split.test, config.data, fabric=self.fabric, num_workers=config.compute.num_workers
        )
        report = evaluate(embedded, config.evaluation, clustering=last) if self.fabric.is_global_zero else None
        report = self.fabric.broadcast(report)
        self.evaluation_seconds = time.perf_counter() - began
        return report

    def _stop(self, what: str, epoch: int) -> NoReturn:
        raise DivergedError(
            f"training stopped {what}; the checkpoint of epoch {epoch - 1} in {self.run.folder} is the last good"
            " one; want finite numbers: lower optimizer.lr_backbone, or set optimizer.clip_norm"
        )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
