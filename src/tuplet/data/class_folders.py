"""Class folders on disk: one folder a class, its images at any depth."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from tuplet.data.decoding import UnreadableImageError, decode_image, image_extensions
from tuplet.errors import InputError, counted

Progress: TypeAlias = Callable[[Iterable[int]], Iterable[int]]
"""Hands on `range(n)` unchanged and shows how far it has come, such as `rich.progress.track`."""

Classes: TypeAlias = dict[str, list[str]]
"""Paths of the images of each class, both by name."""


def class_images(side: Path, notes: list[str]) -> Classes:
    """The images of each class folder below `side`, but of those without any.

    Args:
        side: folder of class folders, each of which may hold images at any depth; links are followed.
        notes: what was left out is added to it, a line each.
    """
    folders, loose = entries(side)
    num_loose = sum(map(is_image, loose))
    if num_loose:
        notes.append(f"{counted(num_loose, 'image')} right inside {side}, without a class folder, left out")
    above = {os.path.realpath(side), os.path.realpath(side.parent)}
    others: Counter[str] = Counter()
    classes: Classes = {}
    for folder in folders:
        files = files_below(folder, set(above))
        images = [file for file in files if is_image(file)]
        others.update(Path(file).suffix.lower() or "no extension" for file in files if not is_image(file))
        if images:
            classes[Path(folder).name] = images
        else:
            notes.append(f"class folder {folder} has no images and is left out")
    if others:
        kinds = ", ".join(f"{end} ({times})" for end, times in sorted(others.items()))
        notes.append(f"{counted(others.total(), 'file')} below {side}, by name no images, left out: {kinds}")
    return classes


def files_below(folder: str, seen: set[str], unlisted: dict[str, str] | None = None) -> list[str]:
    """All files at any depth.

    Args:
        folder: where.
        seen: the folders already entered, which ends loops of links; those that are entered are added.
        unlisted: folders that cannot be listed are added, with the reason; None: they raise InputError.
    """
    real = os.path.realpath(folder)
    if real in seen:
        return []
    seen.add(real)
    try:
        folders, files = _scanned(Path(folder))
    except OSError as error:
        if unlisted is None:
            raise _not_listed(folder, error) from error
        unlisted[folder] = error.strerror or type(error).__name__
        return []
    return files + [file for inner in folders for file in files_below(inner, seen, unlisted)]


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """(folders, files) right inside, sorted, without hidden ones; a broken link counts as a file."""
    try:
        return _scanned(folder)
    except OSError as error:
        raise _not_listed(folder, error) from error


def _scanned(folder: Path) -> tuple[list[str], list[str]]:
    with os.scandir(folder) as found:
        shown = [entry for entry in found if not entry.name.startswith(".") and entry.name != "Thumbs.db"]
    folders = [entry.path for entry in shown if _is_folder(entry)]
    files = [entry.path for entry in shown if not _is_folder(entry) and _is_file(entry)]
    return sorted(folders), sorted(files)


def _not_listed(folder: str | Path, error: OSError) -> InputError:
    return InputError(f"cannot list {folder}: {error.strerror}; want a folder to read")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # what cannot be looked at is what its name says; a link to itself is no folder
        return error.errno != errno.ELOOP and not is_image(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() or entry.is_file()
    except OSError:
        return True


def is_image(file: str) -> bool:
    """Whether a file is called like an image that can be decoded."""
    return Path(file).suffix.lower() in image_extensions()


def without_unreadable(
    classes: Classes, skipped: list[str], num_workers: int, progress: Progress | None
) -> Classes:
    """The images that can be decoded; all are decoded once to see.

    Args:
        classes: as `class_images` found them.
        skipped: the others are added to it, as "path: reason".
        num_workers: threads that decode, >= 0; 0 decodes in this one.
        progress: wraps the numbers of the images.
    """
    paths = [path for images in classes.values() for path in images]
    rows = range(len(paths)) if progress is None else progress(range(len(paths)))
    # Threads, for Pillow's decoders release the interpreter's lock, and none need be sent anything.
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        reasons = [reason for _, reason in zip(rows, pool.map(_unreadable, paths), strict=True)]
    bad = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
    skipped += [f"{path}: {reason}" for path, reason in bad.items()]
    kept = {name: [path for path in images if path not in bad] for name, images in classes.items()}
    return {name: images for name, images in kept.items() if images}


def _unreadable(path: str) -> str:
    """Why an image cannot be decoded; empty where it can."""
    try:
        decode_image(Path(path))
    except UnreadableImageError as error:
        return error.reason
    return ""
