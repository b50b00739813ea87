"""A backbone's weights from a local file, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from tuplet.errors import ModelError, one_line


def load_weights(model: Any, path: Path) -> None:
    """Load a file of weights into a timm model; the file's classifier is dropped.

    Args:
        model: as timm makes it, with its `pretrained_cfg`.
        path: a .safetensors or .pth file with a tensor for each key of the model, and no other. Leading axes
            of one are removed where the model has none.
    Raises: ModelError: no such file, no weights in it, or weights of another network (the keys are named).
    """
    if not path.is_file():
        raise ModelError(
            f"there is no weights file {path}; want model.weights to be a .safetensors or .pth file",
            subject=path,
        )
    try:
        found = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # every format has its own way to be broken
        cause = f" ({one_line(error, None)})" if str(error) else ""
        line = f"{path} cannot be read as weights{cause}; want .safetensors or .pth"
        raise ModelError(line, subject=path) from error
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    wanted = {key: value for key, value in model.state_dict().items() if not _below(key, heads)}
    found = {key: value for key, value in found.items() if not _below(key, heads)}
    found = squeeze_leading_axes(found, wanted)
    # Checkpoints older than PyTorch 0.4.1 count no batches, and nothing depends on that count.
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [
        f"{key} {list(found[key].shape)} for {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if problems:
        architecture = model.pretrained_cfg.get("architecture", type(model).__name__)
        line = f"{path} does not fit {architecture}: {'; '.join(problems)}; want its own weights"
        raise ModelError(line, subject=path, given=[*missing, *unexpected, *reshaped], wanted=architecture)
    model.load_state_dict(found, strict=False)


def squeeze_leading_axes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors found, without leading axes of one where the wanted tensor of that key has none.

    Args:
        found: tensors by key, such as those of a file.
        wanted: tensors by key; where one is [64], a found one of [1, 64] becomes [64].
    Returns: all of `found`; what differs in any other way stays as it is.
    """
    return {
        key: value.reshape(wanted[key].shape)
        if key in wanted and _differs_by_leading_ones(value, wanted[key])
        else value
        for key, value in found.items()
    }


def _differs_by_leading_ones(found: Tensor, wanted: Tensor) -> bool:
    extra = found.ndim - wanted.ndim
    return extra > 0 and found.shape == (1,) * extra + tuple(wanted.shape)


def _below(key: str, modules: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)
