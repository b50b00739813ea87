"""The tutorials on the site: each docs/tutorials/*.py is run, and shown with what its cells printed and drew.

The scripts are in jupytext's percent format. TUTORIALS=0 shows them without running them; the tests run them
anyway.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

RUNNER = Path(__file__).with_name("run_cells.py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each script, and a file for each figure that it drew."""
    scripts = sorted((Path(config.docs_dir) / "tutorials").glob("*.py"))
    run = os.environ.get("TUTORIALS", "1") != "0"
    with ThreadPoolExecutor(2) as pool:
        for script, (page, figures) in zip(
            scripts, pool.map(lambda script: shown(script, run=run), scripts), strict=True
        ):
            name = f"tutorials/{script.stem}"
            files.append(File.generated(config, f"{name}.md", content=page))
            for file, figure in figures.items():
                files.append(File.generated(config, f"tutorials/{file}", content=figure))
    return files


def shown(script: Path, *, run: bool) -> tuple[str, dict[str, str]]:
    """Return the script as Markdown, with what each cell printed, and its figures (SVG) by file name."""
    cells = jupytext.read(script, fmt="py:percent").cells
    codes = [cell.source for cell in cells if cell.cell_type == "code"]
    results = iter(outputs(script, codes) if run else [{"text": "", "figures": []} for _ in codes])
    parts, figures = [], {}
    for cell in cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        result = next(results)
        if result["text"].strip():
            parts.append(f'```text title="Output"\n{result["text"].rstrip()}\n```')
        for drawn in result["figures"]:
            file = f"{script.stem}-{len(figures) + 1}.svg"
            figures[file] = drawn
            parts.append(f"![What the cell above drew]({file})")
    parts.append(f"[Download this tutorial as a script]({script.name}), which Jupyter opens with jupytext.")
    return "\n\n".join(parts), figures


def outputs(script: Path, codes: list[str]) -> list[dict[str, list[str] | str]]:
    """Run the cells in a process of their own, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, RUNNER], input=json.dumps(codes), capture_output=True, text=True, cwd=folder
        )
    if done.returncode:
        raise PluginError(f"{script.name} failed:\n{done.stderr[-3000:]}")
    results: list[dict[str, list[str] | str]] = json.loads(done.stdout)
    return results
