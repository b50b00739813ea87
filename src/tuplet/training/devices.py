"""Devices of a run: a Fabric on them, or one line about what is missing."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from tuplet.config import RunConfig
from tuplet.errors import InputError


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
