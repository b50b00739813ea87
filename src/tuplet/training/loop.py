"""The training loop. Read `_epochs` and `train_epoch` from top to bottom; their helpers are in session.py."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import final

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tuplet.data.load import load_split
from tuplet.data.splits import Split
from tuplet.progress import track
from tuplet.ranks import on_first
from tuplet.training.devices import explaining_memory, keeping_memory, launch
from tuplet.training.run_folder import EpochReport, Run
from tuplet.training.session import Session


def train_epochs(run: Run, *, fabric: Fabric | None = None, split: Split | None = None) -> Epochs:
    """Return an iterator that trains one epoch of a run per step; epoch 0 is the network before training.

    Nothing is trained until you iterate over it. All results are written to the run's folder. A run that was
    stopped continues after its last complete epoch, and ends with the weights of an uninterrupted run: on the
    CPU bit for bit.

    Args:
        run: made by `Run.create`, new or stopped.
        fabric: devices, precision and ranks; by default made from the run's config.
        split: the images, if they are loaded already; by default those of the config.

    Returns: an iterator of the report of each epoch as it ends.

    Raises:
        InputError: (a ValueError, from the loop) data, weights or settings that cannot be used.
        DivergedError: (from the loop) a loss or a weight is NaN or infinite; names the epoch, the step and
            the terms.
    """
    return Epochs(_epochs(run, fabric, split))


def _epochs(run: Run, fabric: Fabric | None, split: Split | None) -> Generator[EpochReport]:
    config = run.config
    fabric = fabric or launch(config)
    with ExitStack() as stack:
        # Without the lock, two processes could train the same run: they would append to the same metrics and
        # replace each other's checkpoint.
        on_first(fabric, lambda: stack.enter_context(run.locked()))
        stack.enter_context(keeping_memory(fabric.device))
        stack.enter_context(explaining_memory(config))
        session = Session(run, split or load_split(config), fabric)

        finished = session.restore()
        if finished is None:
            # Epoch 0 measures the network before training. Without it, the gain of training could not be told
            # from the quality of the pretrained backbone.
            evaluation, seconds = session.evaluate(0)
            yield session.save(EpochReport(0, {}, evaluation, 0.0, seconds, 0.0, {}))
            finished = 0

        for epoch in range(finished + 1, config.schedule.last_epoch + 1):
            # Save before yielding: a caller that stops iterating here loses nothing.
            yield session.save(train_epoch(session, epoch))
        session.finish(trained=finished < config.schedule.last_epoch)


def train_epoch(session: Session, epoch: int) -> EpochReport:
    """Train one epoch, then measure the network: for every batch forward, backward and a step.

    Args:
        session: in the state after the epoch before, trained or restored.
        epoch: 1..schedule.epochs.

    Raises:
        DivergedError: (a ValueError) a loss or a weight is NaN or infinite.
    """
    config, fabric = session.run.config, session.fabric
    network, loss, loader = session.network, session.loss, session.loader

    # Every epoch seeds the generator from the run's seed, the epoch and the rank. So a resumed run draws the
    # same numbers as an uninterrupted one, without a saved generator state, and each rank augments its images
    # differently.
    torch.manual_seed(_seed(config.seed, epoch, fabric.global_rank))
    session.batches.epoch = epoch
    session.begin_epoch()
    rates = session.set_learning_rates(epoch)
    session.set_loss_settings(epoch)

    # In the warm-up only the new layers and the loss learn: their first gradients are large and random, and
    # would destroy what the pretrained backbone knows.
    warming = epoch <= config.schedule.warmup_epochs
    session.set_backbone_learning(not warming)
    network.train()
    loss.train()

    sums: dict[str, Tensor] = {}
    began = time.perf_counter()
    title = f"epoch {epoch}/{config.schedule.last_epoch}"
    for step, (pixels, labels, _) in enumerate(track(loader, title), 1):
        # Pixels stay uint8 until they are on the device: that is a quarter of the bytes of float32 to copy.
        # Channels last is the memory order in which convolutions run fastest.
        pixels = pixels.to(fabric.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(fabric.device, non_blocking=True)
        session.begin_step()

        # DDP averages gradients during backward and waits for one of every parameter that it wrapped. A
        # frozen backbone has none, so in the warm-up DDP does not synchronise and `average_gradients` does.
        if config.data.accumulate > 1:
            terms = session.backward_in_parts(pixels, labels, epoch, step, synchronise=not warming)
        else:
            with fabric.no_backward_sync(network, enabled=warming):
                terms = session.loss_terms(network(pixels), labels, epoch, step)
                fabric.backward(terms.total)
        if warming:
            session.average_gradients()
        session.step()

        # Sum on the device and read the sums once per epoch: each read would make the host wait for it.
        for name, value in terms.parts().items():
            sums[name] = value.detach() + sums.get(name, 0.0)
    session.require_finite_losses(epoch)
    losses = {name: total.item() / len(loader) for name, total in sums.items()}
    train_seconds = time.perf_counter() - began

    session.share_copies()
    session.require_finite_weights(epoch)
    evaluation, evaluation_seconds = session.evaluate(epoch)
    images_per_second = len(loader) * config.data.batch_size / train_seconds
    return EpochReport(
        epoch,
        losses,
        evaluation,
        train_seconds,
        evaluation_seconds,
        images_per_second,
        rates,
        session.diagnosis(),
    )


def _seed(*parts: int) -> int:
    # SeedSequence mixes the parts. With their sum, epoch 1 of seed 0 would draw the same numbers as epoch 0
    # of seed 1.
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@final
class Epochs(Iterator[EpochReport]):
    """An iterator over the epochs of a run; each call of `next` trains one and returns its report.

    Args:
        epochs: the generator that trains.
    """

    def __init__(self, epochs: Generator[EpochReport]) -> None:
        self._epochs = epochs

    def __next__(self) -> EpochReport:
        return next(self._epochs)

    def close(self) -> None:
        """Stop the training after the epoch that was reported last, and unlock its run."""
        self._epochs.close()

    def __del__(self) -> None:
        # As Python warns about a coroutine that was never awaited.
        if inspect.getgeneratorstate(self._epochs) == inspect.GEN_CREATED:
            warnings.warn(
                "train_epochs was never iterated, so nothing was trained; want a loop over it, or tuplet.fit",
                RuntimeWarning,
                stacklevel=2,
            )


def train(run: Run, *, fabric: Fabric | None = None, split: Split | None = None) -> Epochs:
    """Return `train_epochs` of a run, with a DeprecationWarning: the next release removes this name."""
    warnings.warn(
        "tuplet.train is now tuplet.train_epochs, the same iterator; tuplet.fit trains without a loop",
        DeprecationWarning,
        stacklevel=2,
    )
    return train_epochs(run, fabric=fabric, split=split)
