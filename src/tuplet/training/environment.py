"""What a run ran on: versions, commit, hardware, and the hash of the weights it started from."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuplet.data.image_tables import ImageTable

PACKAGES = (
    "tuplet",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "numpy",
    "pillow",
    "faiss-cpu",
    "scikit-learn",
)


def describe_environment(device: torch.device, num_ranks: int) -> dict[str, str | int]:
    """The machine and the software, as the report and the results print them.

    Args:
        device: on which the network trains.
        num_ranks: processes that train together, >= 1.

    Returns: words and numbers by name; "commit" is empty where tuplet is not run from its repository.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": current_commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": num_ranks,
    }


def short_commit(environment: Mapping[str, Any]) -> str:
    """The first digits of a run's commit, as pages print it, and whether there were changes beside it.

    Args:
        environment: what `describe_environment` returned, or what is left of it.
    """
    commit, changes, _ = str(environment.get("commit", "")).partition(" with changes")
    return (commit[:12] or "unknown") + changes


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values of some weights, the same wherever they are equal bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_images(table: ImageTable) -> str:
    """SHA-256 of the classes of a table and of the class of each of its images, in their order.

    Args:
        table: of any images; their pixels are not read.
    """
    return hash_weights({"\0".join(table.class_names): torch.from_numpy(table.labels.copy())})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # conda, for one, has other names for some
        return "unknown"


def current_commit() -> str:
    """The commit of the tuplet that runs, and whether there are changes beside it; empty outside of git."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=10
        )
        if Path(top.stdout.strip()) / "src" / "tuplet" != Path(__file__).resolve().parents[1]:
            return ""  # installed inside someone else's repository
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    changed = " with changes" if status.stdout.strip() else ""
    return commit.stdout.strip() + changed if commit.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
