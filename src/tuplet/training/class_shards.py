"""Rows of class parameters on disk: written by any number of ranks together, read by any other number.

A checkpoint of a loss whose classes are spread over ranks has two parts: what all ranks share, which the
first writes, and the rows of each, which all write into one folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from tuplet.errors import RunFolderError, one_line
from tuplet.losses.base import MetricLoss
from tuplet.losses.many_classes.shards import ClassShard


def loss_state(loss: MetricLoss, optimizers: Sequence[torch.optim.Optimizer], folder: Path) -> dict[str, Any]:
    """Return the state of loss and optimizers for the checkpoint, and write sharded rows into the folder.

    Args:
        loss: on every rank.
        optimizers: of the run.
        folder: new; only written if the loss is sharded.
    """
    state: dict[str, Any] = {
        "loss": loss.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    if loss.shard is None:
        return state
    rows: dict[str, Tensor] = {}
    for name in loss.class_parameters():
        rows[name] = state["loss"].pop(name)
    # Optimizer state per row, such as moments, is as large as the rows and has to be stored with them.
    for place, name, values in _states_of_classes(loss, optimizers, state["optimizers"]):
        for key in [key for key, value in values.items() if isinstance(value, Tensor) and value.ndim > 0]:
            rows[f"{place}:{name}:{key}"] = values.pop(key)
    save_rows(folder, rows, loss.shard)
    return state


def restore_loss(
    state: dict[str, Any], loss: MetricLoss, optimizers: Sequence[torch.optim.Optimizer], folder: Path
) -> None:
    """Load what `loss_state` saved, on any number of ranks.

    Args:
        state: what `loss_state` returned; the rows of a sharded loss are added to it.
        loss: on every rank.
        optimizers: of the run.
        folder: that `loss_state` wrote; only read if the loss is sharded.

    Raises:
        RunFolderError: the rows cannot be read.
    """
    if loss.shard is not None:
        rows = load_rows(folder, loss.shard)
        state["loss"].update({name: rows[name] for name in loss.class_parameters()})
        states = {
            (place, name): values
            for place, name, values in _states_of_classes(loss, optimizers, state["optimizers"])
        }
        for label, tensor in rows.items():
            if ":" in label:
                place, name, key = label.split(":")
                states[int(place), name][key] = tensor
    loss.load_state_dict(state["loss"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)


def _states_of_classes(
    loss: MetricLoss, optimizers: Sequence[torch.optim.Optimizer], saved: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield for each class parameter its optimizer's number, its name and its state in the state_dict."""
    names = {id(parameter): name for name, parameter in loss.class_parameters().items()}
    for place, (optimizer, state) in enumerate(zip(optimizers, saved, strict=True)):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            if id(parameter) in names and index in state["state"]:
                # Copy: state_dict() shares these dictionaries with the optimizer, and callers remove entries.
                state["state"][index] = dict(state["state"][index])
                yield place, names[id(parameter)], state["state"][index]


def save_rows(folder: Path, rows: Mapping[str, Tensor], shard: ClassShard) -> None:
    """Write the rows of this rank into the folder; every rank calls it.

    Args:
        folder: new, on storage that all ranks share.
        rows: by name, this rank's rows of tensors whose first dimension is the class.
        shard: the classes of this rank.
    """
    state = {name: _spread(tensor.detach(), shard) for name, tensor in rows.items()}
    with _quiet():
        save(state, checkpoint_id=folder, no_dist=shard.num_ranks == 1)


def load_rows(folder: Path, shard: ClassShard) -> dict[str, Tensor]:
    """Read this rank's rows of every tensor in the folder, to the CPU or the group's own device.

    Raises:
        RunFolderError: the folder is missing, damaged, or holds another number of classes.
    """
    try:
        metadata = FileSystemReader(folder).read_metadata()
        state: dict[str, Tensor] = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            if stored.size[0] != shard.num_classes:
                raise RunFolderError(
                    f"{folder} holds {stored.size[0]} classes; want {shard.num_classes}, as the images have",
                    subject=folder,
                    given=stored.size[0],
                    wanted=shard.num_classes,
                )
            shape = (shard.num_kept, *stored.size[1:])
            rows = torch.empty(shape, dtype=stored.properties.dtype, device=_device(shard))
            state[name] = _spread(rows, shard)
        with _quiet():
            load(state, checkpoint_id=folder, no_dist=shard.num_ranks == 1)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise RunFolderError(
            f"{folder} cannot be read ({one_line(error)}); want what tuplet wrote", subject=folder
        ) from None
    return {name: _local(tensor) for name, tensor in state.items()}


def _spread(rows: Tensor, shard: ClassShard) -> Tensor:
    """Wrap this rank's rows as a shard of the whole tensor, so that the checkpoint knows their place."""
    if shard.num_ranks == 1:
        return rows
    group = shard.group or dist.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, rows.device.type)
    shape = torch.Size((shard.num_classes, *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _device(shard: ClassShard) -> str:
    # NCCL, unlike gloo, only moves tensors on a GPU.
    nccl = shard.num_ranks > 1 and dist.get_backend(shard.group) == "nccl"
    return "cuda" if nccl else "cpu"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warning that a single process saves without torch.distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
