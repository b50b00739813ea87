"""Build a backbone by its timm name, with pretrained weights or without."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import CONFIG_NAME, PYTORCH_WEIGHTS_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError

from tuplet.errors import ModelError
from tuplet.models import bn_inception as bn_inception  # registers its models with timm
from tuplet.models import convnet as convnet
from tuplet.models.weights import load_weights


def create_backbone(name: str, *, pretrained: bool, weights: str | os.PathLike[str] | None) -> Any:
    """Build a timm model without its classifier; a transformer takes any whole number of patches.

    Args:
        name: any timm model name, bn_inception or tuplet_convnet.
        pretrained: start from pretrained weights: those in `weights`, or else the model's own.
        weights: a .safetensors or .pth file, loaded strictly.
    Raises: ModelError: (a ValueError) an unknown name, weights that do not fit, or that cannot be fetched.
    """
    require_backbone(name)
    if not pretrained or weights is not None:
        model = _create(name, pretrained=False)
        if pretrained:
            load_weights(model, Path(weights or ""))
    else:
        model = _create_and_fetch(name)
    model.reset_classifier(0)
    return model


def require_backbone(name: object) -> None:
    """Raise a `ModelError` unless there is a backbone of this name."""
    if isinstance(name, str) and timm.is_model(name):
        return
    near = timm.list_models(f"*{str(name).split('.')[0].split('_')[0]}*")[:3]
    hint = f", perhaps {', '.join(near)}" if near else ""
    line = f"backbone is {name!r}; want the name of a timm model{hint}"
    raise ModelError(line, subject="backbone", given=name, wanted=near)


def _create(name: str, *, pretrained: bool) -> Any:
    # Position embeddings are resampled for each batch, and the weights keep the shapes of their file.
    try:
        return timm.create_model(name, pretrained=pretrained, dynamic_img_size=True)
    except TypeError:
        # Networks without position embeddings take every size, but not the argument. Any other error comes
        # again.
        return timm.create_model(name, pretrained=pretrained)


def _create_and_fetch(name: str) -> Any:
    if not timm.is_model_pretrained(name):
        raise ModelError(
            f"backbone {name} has no pretrained weights to fetch; want model.pretrained False to train from"
            " scratch, or model.weights, a local file",
            subject="backbone",
            given=name,
        )
    try:
        settings = timm.get_pretrained_cfg(name)
        if settings is not None and settings.hf_hub_id:
            _reach_hub(settings.hf_hub_id)
        elif settings is not None and isinstance(settings.url, str) and settings.url:
            _reach(settings.url)
        return _create(name, pretrained=True)
    except Exception as error:  # the hub's client has changed its transport, and so its errors, twice
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"the pretrained weights of {name} could not be fetched ({cause}); want a network connection,"
            " or model.weights, a local file of them, or model.pretrained False",
            subject="weights",
            given=name,
        ) from error


def _reach_hub(repository: str) -> None:
    """Raise an error at once if a download is needed and impossible; the hub would retry for a minute."""
    names = (SAFETENSORS_SINGLE_FILE, PYTORCH_WEIGHTS_NAME)
    if not any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        with suppress(EntryNotFoundError):
            get_hf_file_metadata(hf_hub_url(repository, CONFIG_NAME), timeout=10)


def _reach(url: str) -> None:
    """Do the same for an address; torch.hub would wait without end, and its error does not name it."""
    if not Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name).is_file():
        try:
            urlopen(Request(url, method="HEAD"), timeout=10).close()
        except OSError as error:
            raise OSError(f"{url}: {getattr(error, 'reason', error)}") from error
