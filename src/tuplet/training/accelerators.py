"""Choose the device of an accelerator setting, without Fabric, which takes seconds to import."""

from __future__ import annotations

import torch

from tuplet.config import Accelerator
from tuplet.errors import DeviceError


def choose_device(accelerator: Accelerator) -> torch.device:
    """Return the torch device of an accelerator setting; auto takes a GPU if there is one.

    Raises:
        DeviceError: there is no such device.
    """
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    if accelerator in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    raise DeviceError(
        f"there is no {accelerator.upper()} device here; want --compute.accelerator cpu",
        subject="compute.accelerator",
        given=accelerator,
    )
