"""Pages of the site that are files at the root of the repository, where GitHub looks for them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each page of the root; its links into docs/ become links between pages."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (root / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files
