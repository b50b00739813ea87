"""Training: one visible loop, as a generator of epoch reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tuplet.config import RunConfig
from tuplet.data.imbalance import long_tail
from tuplet.data.loading import load
from tuplet.data.noise import NoisyLabels
from tuplet.data.splits import hold_out
from tuplet.data.table import Split
from tuplet.data.turned import QuarterTurns
from tuplet.errors import InputError
from tuplet.progress import track
from tuplet.ranks import on_first
from tuplet.recipes import loss_notes
from tuplet.runs import EpochReport, Run
from tuplet.session import DivergedError, Session
from tuplet.speed import keeping_memory

__all__ = ["DivergedError", "launch", "load_data", "load_split", "split_of", "train"]


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
    with ExitStack() as stack:
        on_first(fabric, lambda: stack.enter_context(run.locked()))
        stack.enter_context(keeping_memory(fabric.device))
        session = Session(run, split or load_split(config), fabric)
        finished = session.restore()
        if finished is None:
            evaluation, seconds = session.evaluate(0)
            yield session.save(EpochReport(0, {}, evaluation, 0.0, seconds, 0.0, {}))
            finished = 0
        for epoch in range(finished + 1, config.schedule.last_epoch + 1):
            yield session.save(train_epoch(session, epoch))
        session.finish()


def train_epoch(session: Session, epoch: int) -> EpochReport:
    """What one epoch did: every batch forward, backward and a step, then the measuring.

    Args:
        session: as the epoch before left it.
        epoch: 1..schedule.epochs.

    Raises:
        DivergedError: (a ValueError) a loss or a weight that is NaN or infinite.
    """
    config, fabric = session.run.config, session.fabric
    network, loss, loader = session.network, session.loss, session.loader
    # Every epoch starts its own random stream, so that a resumed run needs no saved one.
    torch.manual_seed(_seed(config.seed, epoch, fabric.global_rank))
    rates = session.set_learning_rates(epoch)
    warming = epoch <= config.schedule.warmup_epochs
    session.set_backbone_learning(not warming)
    session.batches.epoch = epoch
    network.train()
    loss.train()

    sums: dict[str, Tensor] = {}
    began = time.perf_counter()
    title = f"epoch {epoch}/{config.schedule.last_epoch}"
    for step, (pixels, labels, _) in enumerate(track(loader, title), 1):
        pixels = pixels.to(fabric.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(fabric.device, non_blocking=True)
        with fabric.no_backward_sync(network, enabled=warming):
            terms = session.loss_terms(network(pixels), labels, epoch, step)
            fabric.backward(terms.total)
        if warming:
            session.average_gradients()
        session.step()
        for name, value in terms.parts().items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
    losses = {name: total.item() / len(loader) for name, total in sums.items()}
    train_seconds = time.perf_counter() - began

    session.share_copies()
    session.require_finite_weights(epoch)
    evaluation, evaluation_seconds = session.evaluate(epoch)
    images_per_second = len(loader) * config.data.batch_size / train_seconds
    return EpochReport(epoch, losses, evaluation, train_seconds, evaluation_seconds, images_per_second, rates)


def launch(config: RunConfig) -> Fabric:
    """A Fabric on the devices that the config names, its other ranks started.

    Raises:
        InputError: (a ValueError) there is no such device.
    """
    compute = config.compute
    if (compute.accelerator == "cuda" and not torch.cuda.is_available()) or (
        compute.accelerator == "mps" and not torch.backends.mps.is_available()
    ):
        name = compute.accelerator.upper()
        raise InputError(f"there is no {name} device here; want --compute.accelerator cpu")
    try:
        fabric = Fabric(accelerator=compute.accelerator, devices=compute.devices, precision=compute.precision)
    except Exception as error:  # Fabric raises whatever the library of the device raises
        cause = " ".join(str(error).split())
        raise InputError(
            f"compute.accelerator={compute.accelerator} with compute.devices={compute.devices} cannot be used"
            f" here ({cause}); want devices that this machine has, such as --compute.accelerator cpu"
        ) from error
    if compute.precision == "16-mixed" and fabric.device.type == "cpu":
        raise InputError("compute.precision is '16-mixed' on a CPU; want bf16-mixed or 32-true there")
    fabric.launch()
    return fabric


def load_split(config: RunConfig) -> Split:
    """The images to train on and those to be measured on: test images, or validation classes held out.

    Raises:
        InputError: (a ValueError) images that are missing, unreadable, or too few.
    """
    return split_of(load_data(config), config)


def load_data(config: RunConfig) -> Split:
    """All training and test images that a config names.

    Raises:
        InputError: (a ValueError) images that are missing or unreadable.
    """
    workers = config.compute.num_workers
    return load(config.data, num_workers=workers, progress=lambda rows: track(rows, "reading"))


def split_of(images: Split, config: RunConfig) -> Split:
    """What a run trains on and is measured on, of all images.

    Args:
        images: of the config's data, as `load_data` gives them.
        config: with `evaluation.split` validation, a fold of the training classes takes the place of the test
            images; with `data.imbalance` and `data.label_noise`, some of those that train are left out or
            mislabelled, and never any other; with `data.quarter_turns`, training images are turned too.

    Raises:
        InputError: (a ValueError) too few training classes for the folds.
    """
    if config.evaluation.split == "validation":
        evaluation = config.evaluation
        train_part, validation = hold_out(
            images.train,
            fold=evaluation.validation_fold,
            num_folds=evaluation.validation_folds,
            seed=evaluation.validation_seed,
        )
        images = replace(images, train=train_part, test=validation, gallery=None)
    images = _made_harder(images, config)
    return replace(images, train=QuarterTurns(images.train)) if config.data.quarter_turns else images


def _made_harder(images: Split, config: RunConfig) -> Split:
    """The same with fewer training images, then wrong labels, as the config says; and notes of oddities."""
    data, train_part, notes = config.data, images.train, [*images.notes, *loss_notes(config)]
    if data.imbalance > 1:
        seed = config.seed if data.imbalance_seed is None else data.imbalance_seed
        train_part = long_tail(images.train, ratio=data.imbalance, seed=seed)
        sizes = np.unique(train_part.labels, return_counts=True)[1]
        notes.append(
            f"data.imbalance = {data.imbalance:g} (seed {seed}) keeps {len(train_part):,} of"
            f" {len(images.train):,} training images, {sizes.min()} to {sizes.max()} a class"
        )
    if data.label_noise > 0:
        seed = config.seed if data.label_noise_seed is None else data.label_noise_seed
        noisy = NoisyLabels(train_part, share=data.label_noise, seed=seed)
        notes.append(
            f"data.label_noise = {data.label_noise:g} (seed {seed}) gives {noisy.num_wrong:,} of"
            f" {len(noisy):,} training images the label of another class"
        )
        train_part = noisy
    return replace(images, train=train_part, notes=tuple(notes))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
