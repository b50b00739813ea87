"""The state of one training process (network, loss, optimizers, batches), and the work around an epoch.

The loop itself is in loop.py. Here is what it calls: checkpoints, learning rates, clipping, gathering over
ranks, checks for divergence.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NoReturn, final

import torch
from jaxtyping import Float, Int64, UInt8
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tuplet.config import RunConfig
from tuplet.data.batches import Draw, TransformedImages, batches, prepare_worker, rank_slice
from tuplet.data.image_tables import ImageTable
from tuplet.data.splits import Split
from tuplet.data.transforms import train_transform
from tuplet.errors import DataError, InputError
from tuplet.evaluation.evaluate import evaluate_split
from tuplet.evaluation.measure import EvalReport
from tuplet.losses.base import LossTerms
from tuplet.losses.build import build_loss
from tuplet.losses.diagnosis import diagnose
from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes.shards import gather_batch
from tuplet.models.embedder import Embedder
from tuplet.ranks import first_of, mean, share, total
from tuplet.training.class_shards import loss_state, restore_loss
from tuplet.training.devices import require_compiler
from tuplet.training.divergence import Divergence, DivergenceWatch
from tuplet.training.environment import describe_environment, hash_images, hash_weights
from tuplet.training.gradient_cache import backward_in_parts
from tuplet.training.optimizers import build_optimizers
from tuplet.training.run_folder import EpochReport, Run
from tuplet.training.schedule import learning_rate_factor, scheduled
from tuplet.training.weight_average import WeightAverage

DIAGNOSED_STEPS = 8
"""About how many steps of an epoch `evaluation.diagnose` measures, evenly spread."""


class DivergedError(InputError):
    """Raised where the loss or a weight is NaN or infinite; the run keeps its last good checkpoint."""


@final
class EpochBatches(Sampler[list[Draw]]):
    """This rank's part of every batch of one epoch; set `epoch` before iterating."""

    def __init__(self, config: RunConfig, table: ImageTable, fabric: Fabric) -> None:
        self._config, self._labels = config, table.labels
        self._rank, self._ranks = fabric.global_rank, fabric.world_size
        self.epoch = 1

    def __iter__(self) -> Iterator[list[Draw]]:
        # Every rank draws the whole batch from the same seed and keeps its slice. So a batch contains the
        # same images on any number of ranks, and nothing has to be exchanged.
        drawn = batches(self._config.data, self._labels, seed=self._config.seed, epoch=self.epoch)
        return iter([rank_slice(batch, self._rank, self._ranks) for batch in drawn])

    def __len__(self) -> int:
        return len(self._labels) // self._config.data.batch_size


@final
class Session:
    """Network, loss, optimizers and batches of a run, on the devices of a Fabric.

    Attributes:
        network: the embedding network, wrapped by Fabric (precision, DDP).
        loss: computed on the gathered batch, on every rank; its class parameters are all here or sharded.
        optimizers: over the groups of network and loss; see `build_optimizers`.
        batches: the indices of the images in each batch of the current epoch.
        loader: the training batches of this rank.
    """

    def __init__(self, run: Run, split: Split, fabric: Fabric) -> None:
        config = run.config
        self.run, self.split, self.fabric = run, split, fabric
        self.batches = EpochBatches(config, split.train, fabric)
        iter(self.batches)  # raises if there are too few images or classes, before anything is built
        measured = (split.test,) if split.gallery is None else (split.test, split.gallery)
        self._data = hash_images(split.train)
        self._measured = [hash_images(table) for table in measured]
        torch.manual_seed(config.seed)
        # A checkpoint holds every weight, so a resumed run does not need the file of pretrained weights.
        started = run.checkpoint_file.exists()
        model = dataclasses.replace(config.model, pretrained=False, weights=None) if started else config.model
        self._embedder = Embedder(**dataclasses.asdict(model))
        self._embedder.to(memory_format=torch.channels_last)
        _try_one_image(self._embedder, config)
        if config.compute.compile:
            require_compiler(fabric.device)
            self._embedder.compile_backbone(config.compute.compile_mode)
        self._initial_weights = hash_weights(self._embedder.state_dict())
        self.loss = build_loss(config, split.train.num_classes)
        self.loss.to(fabric.device)
        self._terms = self._compiled_terms() if config.compute.compile else self.loss.terms
        self._watch = DivergenceWatch(self.loss, fabric.device, alone=fabric.world_size == 1)
        on_gpu = fabric.device.type == "cuda"
        optimizers = build_optimizers(self._embedder, self.loss, config.optimizer, capturable=on_gpu)
        self._rates = [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
        self._backbone: list[torch.nn.Parameter] = optimizers[0].param_groups[0]["params"]
        # The loss is not wrapped in DDP: every rank computes it on the whole batch and gets the same
        # gradients, so there is nothing to average.
        wrapped: tuple[Any, ...] = fabric.setup(self._embedder, *optimizers)
        self.network, self.optimizers = wrapped[0], list(wrapped[1:])
        self._diagnoses: list[dict[str, Tensor]] = []
        decay = config.schedule.ema
        self._average = WeightAverage(self._embedder, decay) if decay > 0 else None
        workers = config.compute.num_workers
        self.loader = DataLoader(
            TransformedImages(split.train, train_transform(config.data)),
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=prepare_worker,
            pin_memory=fabric.device.type == "cuda",
            generator=torch.Generator(),  # its own: workers must not shift the epoch's random stream
        )

    def restore(self) -> int | None:
        """Load the checkpoint, and return its epoch, or None if the run has none yet.

        Raises:
            DataError: the images are not those that the run began with.
            RunFolderError: the checkpoint is damaged, or was trained with another config.
        """
        state = self.run.load_checkpoint()
        if self.fabric.is_global_zero:
            self.run.clean_up(last_epoch=-1 if state is None else state["epoch"])
        if state is None:
            self._describe()
            return None
        # Checkpoints of earlier versions have no hash of the test images.
        has_same_test = state.get("measured", self._measured) == self._measured
        if state["data"] != self._data or not has_same_test:
            images = "test" if state["data"] == self._data else "training"
            raise DataError(
                f"the {images} images are not those that {self.run.folder} began with; want the same classes"
                " with as many images: restore them, give --data.root FOLDER, where they are now, or start a"
                " new run",
                subject="data.root",
                given=self.run.config.data.root,
            )
        try:
            self.fabric.strategy.precision.load_state_dict(state["precision"])
            self._restore_network(state)
            restore_loss(state, self.loss, self.optimizers, self.run.classes_folder(state["epoch"]))
        except InputError:
            raise
        except (RuntimeError, ValueError, KeyError) as error:  # config.yaml was edited
            raise self.run.misfit(error) from error
        if self.fabric.is_global_zero:
            self.run.save_root()
        return int(state["epoch"])

    def save(self, report: EpochReport) -> EpochReport:
        """Append the epoch's report to the run, then replace its checkpoint.

        The order matters: if the process is killed between the two, there is a report without a checkpoint,
        which `Run.clean_up` removes. In the other order the epoch would count as trained without a report.
        """
        state = loss_state(self.loss, self.optimizers, self.run.classes_folder(report.epoch))
        if self.fabric.is_global_zero:
            self.run.append(report)
            self.run.save_checkpoint(
                {
                    "epoch": report.epoch,
                    "data": self._data,
                    "measured": self._measured,
                    "precision": self.fabric.strategy.precision.state_dict(),
                    **self._network_state(),
                    **state,
                }
            )
        return report

    def _network_state(self) -> dict[str, Any]:
        """Return the evaluated weights as "network" and, if these are an average, also the trained ones."""
        if self._average is None:
            return {"network": self._embedder.state_dict()}
        trained = {"network": self._embedder.state_dict(), "num_steps": self._average.num_steps}
        return {"network": self._average.weights(), "trained": trained}

    def _restore_network(self, state: dict[str, Any]) -> None:
        trained = state["network"]
        if self._average is not None:
            trained = state["trained"]["network"]
            self._average.load(state["network"], state["trained"]["num_steps"])
        self._embedder.load_state_dict(trained)

    def finish(self, *, trained: bool) -> None:
        """Save the trained network in the run's model folder.

        Args:
            trained: whether an epoch was trained since the run was opened. If not, an existing model is kept:
                its folder may hold a calibration, or a model card that somebody edited.
        """
        if self.fabric.is_global_zero and (trained or not self.run.model_folder.exists()):
            self.run.save_model()
        self.fabric.barrier()

    def set_learning_rates(self, epoch: int) -> dict[str, float]:
        """Set each group's learning rate for an epoch, and return the rates by group."""
        factor = learning_rate_factor(self.run.config.schedule, epoch)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return {group["name"]: group["lr"] for group in groups}

    def set_loss_settings(self, epoch: int) -> None:
        """Set tau and lambda_s of HIST for an epoch."""
        if isinstance(self.loss, HISTLoss):
            config, epochs = self.run.config.loss, self.run.config.schedule.epochs
            self.loss.tau = scheduled(config.tau, config.tau_end, epoch, epochs)
            self.loss.lambda_s = scheduled(config.lambda_s, config.lambda_s_end, epoch, epochs)

    def set_backbone_learning(self, learning: bool) -> None:
        """Let the backbone learn, or freeze it."""
        for parameter in self._backbone:
            parameter.requires_grad_(learning)

    def begin_epoch(self) -> None:
        """Reset the divergence watch and the diagnoses of the epoch before."""
        self._watch.start()
        self._diagnoses.clear()

    def begin_step(self) -> None:
        """Mark the start of a step, so that CUDA graphs may reuse the memory of the step before."""
        if self.run.config.compute.compile_mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def average_gradients(self) -> None:
        """Average the network's gradients over the ranks, where DDP does not do it (in the warm-up)."""
        for parameter in self._embedder.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(mean(self.fabric, parameter.grad))

    def step(self) -> None:
        """Clip the gradients as the config says, step every optimizer, clear the gradients, and average."""
        limit = self.run.config.optimizer.clip_norm
        if limit > 0:
            self._clip(limit)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self._average is not None:
            self._average.update()

    def _clip(self, limit: float) -> None:
        """Scale all gradients by one factor that brings their norm, over network and loss, to the limit."""
        # In 16-mixed, gradients are multiplied by the scaler's factor, and a norm of scaled gradients says
        # nothing. A fused optimizer unscales them inside its step, which is too late to clip. torch's own
        # scaler, unlike Fabric's wrapper, can unscale before, without making the host wait for the device.
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            for optimizer in self.optimizers:
                scaler.unscale_(optimizer.optimizer if isinstance(optimizer, _FabricOptimizer) else optimizer)
        shard = self.loss.shard
        sharded = {id(p) for p in self.loss.class_parameters().values()} if shard is not None else set()
        parameters = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        gradients: tuple[list[Tensor], list[Tensor]] = [], []
        for parameter in parameters:
            if parameter.grad is not None:
                gradients[id(parameter) in sharded].append(parameter.grad)
        whole, rows = (torch.nn.utils.get_total_norm(part).to(self.fabric.device) for part in gradients)
        # Each rank holds other rows of the classes but the same copy of everything else: only the squares of
        # the rows add up over ranks. Ranks that clip by different factors would drift apart.
        norm = (whole.square() + total(self.fabric, rows.square())).sqrt() if sharded else whole
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def loss_terms(
        self, embeddings: Float[Tensor, "n D"], labels: Int64[Tensor, " n"], epoch: int, step: int
    ) -> LossTerms:
        """Compute the loss of the global batch, the same on every rank.

        Args:
            embeddings: of this rank's part of the batch.
            labels: of this rank's part.
            epoch: named in the error, as is `step`.
            step: within the epoch, from 1 on.

        Raises:
            DivergedError: the loss of this step or, on a GPU, of an earlier one is not finite.
        """
        # HIST relates each sample to all others of the batch, so a mean over the losses of parts would be
        # another loss: gather first. Each of the R ranks computes the same gradient, so backward through the
        # gather multiplies it by R. DDP then averages over R ranks, where the sum is wanted: the two cancel.
        embeddings, labels = gather_batch(embeddings, labels)
        try:
            terms = self._terms(embeddings, labels)
        except InputError as error:
            self._stop_at(Divergence(step, str(error)), epoch)
        self._stop_at(self._watch.note(terms, step), epoch)
        self._diagnose(embeddings, labels, step)
        return terms

    def _diagnose(self, embeddings: Tensor, labels: Tensor, step: int) -> None:
        every = max(1, len(self.batches) // DIAGNOSED_STEPS)
        wanted = self.run.config.evaluation.diagnose and step % every == 0
        if wanted and isinstance(self.loss, HISTLoss):
            self._diagnoses.append(diagnose(self.loss, embeddings, labels))

    def diagnosis(self) -> dict[str, float]:
        """Return the means of the epoch's diagnoses of HIST by name; empty if nothing was measured."""
        names = self._diagnoses[0] if self._diagnoses else ()
        return {name: torch.stack([part[name] for part in self._diagnoses]).mean().item() for name in names}

    def require_finite_losses(self, epoch: int) -> None:
        """Raise a DivergedError if a step of the epoch was not finite; wait for a GPU to know all of them."""
        self._stop_at(self._watch.look(), epoch)

    def _compiled_terms(self) -> Callable[[Tensor, Tensor], LossTerms]:
        # Only HIST is compiled. The rivals are code of another library, and a sharded loss communicates
        # between ranks in the middle, which breaks the graph.
        if not isinstance(self.loss, HISTLoss) or self.loss.shard is not None:
            return self.loss.terms
        compiled = torch.compile(self.loss.terms, mode=self.run.config.compute.compile_mode, dynamic=False)

        def terms(embeddings: Tensor, labels: Tensor) -> LossTerms:
            # torch.compile itself reads .grad of the embeddings, which are no leaf: the warning is not ours.
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message="The .grad attribute of a Tensor that is not a leaf"
                )
                return compiled(embeddings, labels)

        return terms

    def backward_in_parts(
        self,
        pixels: UInt8[Tensor, "n 3 H W"],
        labels: Int64[Tensor, " n"],
        epoch: int,
        step: int,
        *,
        synchronise: bool,
    ) -> LossTerms:
        """Add the gradients of a batch in `data.accumulate` parts, and return the loss of the global batch.

        Args:
            pixels: of this rank's part of the batch, n a multiple of the parts.
            labels: of this rank's part.
            epoch: see `loss_terms`.
            step: see `loss_terms`.
            synchronise: let DistributedDataParallel average the network's gradients over the ranks, once.

        Raises:
            DivergedError: see `loss_terms`.
        """

        def loss(embeddings: Tensor) -> tuple[Tensor, LossTerms]:
            terms = self.loss_terms(embeddings, labels, epoch, step)
            return terms.total, terms

        num_parts = self.run.config.data.accumulate
        return backward_in_parts(self.fabric, self.network, pixels, num_parts, loss, synchronise=synchronise)

    def share_copies(self) -> None:
        """Copy the first rank's statistics, averaged weights and loss to every rank, before they are saved.

        DDP copies running statistics only before a forward that it synchronises. The loss is the same on all
        ranks up to rounding: ranks with another device or less free memory may sum in another order.
        """
        rows = set(self.loss.class_parameters()) if self.loss.shard is not None else set()
        loss = (value for name, value in self.loss.state_dict().items() if name not in rows)
        averaged = self._average.weights().values() if self._average is not None else ()
        share(self.fabric, [*self._embedder.buffers(), *averaged, *loss])

    def require_finite_weights(self, epoch: int) -> None:
        """Raise a DivergedError before weights that are not finite reach the checkpoint."""
        states = [part.state_dict().items() for part in (self._embedder, self.loss)]
        bad = (
            name
            for state in states
            for name, value in state
            if value.is_floating_point() and not bool(torch.isfinite(value).all())
        )
        # With sharded classes a single rank may hold the bad value, but all ranks have to stop together.
        named = first_of(self.fabric, next(bad, ""))
        if named:
            self._stop(f"at the end of epoch {epoch}: {named} holds NaN or infinity", epoch)

    def evaluate(self, epoch: int) -> tuple[EvalReport | None, float]:
        """Measure the network if it is due in this epoch; return the report or None, and the seconds."""
        config = self.run.config
        last = epoch == config.schedule.last_epoch
        if epoch % config.evaluation.every_epochs and not last:
            return None, 0.0
        began = time.perf_counter()
        self.network.eval()
        with self._average.in_network() if self._average is not None else nullcontext():
            report = evaluate_split(self.network, self.split, config, fabric=self.fabric, last=last)
        return report, time.perf_counter() - began

    def _describe(self) -> None:
        if self.fabric.is_global_zero:
            environment = describe_environment(self.fabric.device, self.fabric.world_size)
            environment["initial_weights_sha256"] = self._initial_weights
            self.run.write_json(self.run.environment_file, environment)
            notes = {"notes": self.split.notes, "skipped_images": self.split.skipped}
            self.run.write_json(self.run.notes_file, notes)

    def _stop_at(self, divergence: Divergence | None, epoch: int) -> None:
        if divergence is not None:
            self._stop(f"at epoch {epoch}, step {divergence.step}: {divergence.cause}", epoch)

    def _stop(self, what: str, epoch: int) -> NoReturn:
        raise DivergedError(
            f"training stopped {what}; the checkpoint of epoch {epoch - 1} in {self.run.folder} is the last"
            " good one; want finite numbers: lower optimizer.lr_backbone, or set optimizer.clip_norm",
            subject=self.run.folder,
            given=epoch,
        )


def _try_one_image(network: Embedder, config: RunConfig) -> None:
    """Raise a ModelError if the backbone cannot take the image size; freeze parameters without a gradient.

    DDP waits for the gradient of every parameter that requires one: a parameter that the output does not
    depend on would make it wait forever.
    """
    size = config.data.image_size
    try:
        network.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8)).sum().backward()
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
    except (AssertionError, RuntimeError) as error:
        raise network.size_error(size, error) from error
