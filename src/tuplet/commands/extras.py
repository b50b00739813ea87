"""Packages that only some commands need."""

from __future__ import annotations

import importlib

from tuplet.errors import InputError


def require_extra(extra: str, *modules: str) -> None:
    """Nothing; raises InputError where one of the modules is not installed.

    Args:
        extra: of tuplet, which installs them.
        modules: imported here, for they are needed at once.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise InputError(
                f"this command needs {module}, which is not installed; want pip install 'tuplet[{extra}]'"
            ) from None
