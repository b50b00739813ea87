"""Describe what a run ran on (versions, commit, hardware), and hash its weights and images."""

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
    """Describe the machine and the software, as reports and results print them.

    Args:
        device: on which the network trains.
        num_ranks: processes that train together, >= 1.

    Returns: text and numbers by name; "commit" is empty if tuplet does not run from its repository.
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
    """Return the commit of a run as pages print it: 12 digits, and whether there were changes beside it.

    Args:
        environment: as `describe_environment` returned it; "commit" may be missing.
    """
    commit, changes, _ = str(environment.get("commit", "")).partition(" with changes")
    return (commit[:12] or "unknown") + changes


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of names and values, equal for weights that are equal bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(state):
        # A name may come from a folder whose name is no UTF-8; its bytes arrive as lone surrogates.
        digest.update(name.encode("utf-8", errors="surrogateescape"))
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_images(table: ImageTable) -> str:
    """Compute the SHA-256 of the class names of a table and of the class of each image, in order.

    Args:
        table: of any images; their pixels are not read.
    """
    return hash_weights({"\0".join(table.class_names): torch.from_numpy(table.labels.copy())})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # for example, conda has other names for some
        return "unknown"


def current_commit() -> str:
    """Return the commit of tuplet, with " with changes" if files differ from it; empty outside of git."""
    package = Path(__file__).resolve().parents[1]
    try:
        if Path(_git("rev-parse", "--show-toplevel")) / "src" / "tuplet" != package:
            return ""  # installed inside someone else's repository
        return _git("rev-parse", "HEAD") + (" with changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
