"""How far plain pixels get on the test images of a recipe: cosine of the inverted grey images, no network.

python -m benchmarks.raw_pixels omniglot --data-root ../shared/data/omniglot_small
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from tuplet import override, recipe, retrieval_metrics
from tuplet.data.load import load_split
from tuplet.data.transforms import eval_transform
from tuplet.metrics.names import metric_title


def main(name: tyro.conf.Positional[str], data_root: Path) -> None:
    """Print every retrieval metric of the raw pixels.

    Args:
        name: a recipe, which decides the size of the images.
        data_root: folder of train/<class>/* and test/<class>/*.
    """
    config = override(recipe(name), {"data.root": data_root})
    test, transform = load_split(config).test, eval_transform(config.data)
    images = torch.stack([transform(test.image(row)) for row in range(len(test))])
    ink = 255.0 - images.float().mean(dim=1).flatten(1)
    for metric, value in retrieval_metrics(ink, test.labels).items():
        print(f"{metric_title(metric):<12} {100 * value:5.1f} %")


if __name__ == "__main__":
    tyro.cli(main)
