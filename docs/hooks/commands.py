"""The command reference: what `tuplet COMMAND --help` prints."""

import contextlib
import io
import os
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tuplet.cli.main import COMMANDS, main

INTRODUCTION = """\
# Commands

This page shows the help of each command as `tuplet COMMAND --help` prints it. Where a usage line ends with
`[--field value ...]`, every field of the run's configuration is an option:
[all of them](#every-field-of-a-run) stand at the end.

A command exits with 0 when it succeeds, with 2 after an error that you can correct (one line on standard
error), with 130 after Ctrl-C, and with 1 when its work ran and part of it failed.
"""
FURTHER = {"data": ["describe"]}
"""Subcommands with a help of their own."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add reference/commands.md."""
    parts = [INTRODUCTION, "```text", help_of(), "```"]
    for name in COMMANDS:
        parts += [f"\n## tuplet {name}", "```text", help_of(name), "```"]
        for further in FURTHER.get(name, []):
            parts += [f"\n### tuplet {name} {further}", "```text", help_of(name, further), "```"]
    parts += ["\n## Every field of a run", "`tuplet train folder --help` prints:\n"]
    parts += ["```text", help_of("train", "folder"), "```"]
    files.append(File.generated(config, "reference/commands.md", content="\n".join(parts)))
    return files


def help_of(*command: str) -> str:
    """Return what the command prints with --help, in lines of 84 characters."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "84", "NO_COLOR": "1", "TERM": "dumb"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*command, "--help"])
    return printed.getvalue().strip()
