"""`tuplet bench RECIPE`: several losses under one protocol."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tuplet.cli.commands.tune import print_trials
from tuplet.cli.console import print_compute_notes, print_epochs, same_command_resumes
from tuplet.cli.options import BenchArguments
from tuplet.config.overrides import with_absolute_paths
from tuplet.data.files import write_atomically
from tuplet.data.load import decode_test_images, load_data, split_of
from tuplet.data.splits import describe
from tuplet.recipes.catalogue import with_loss
from tuplet.research.bench import Protocol, compare_losses, comparison_page, train_loss
from tuplet.training.devices import launch
from tuplet.training.tracking import Tracking


def bench(chosen: BenchArguments, command: str) -> None:
    """Train several losses under one protocol and write one table of them."""
    names = chosen.loss_names()
    folder = chosen.to or Path("runs") / f"bench-{chosen.config.name}"
    config = with_absolute_paths(chosen.config)
    configs = {name: with_loss(config, name) for name in names}
    protocol = Protocol(
        configs, chosen.trials, chosen.seeds, chosen.metric, folder, chosen.sampler, chosen.trial_epochs
    )
    fabric = launch(config)
    images = load_data(config, decode_test=chosen.trials == 1)
    first_rank = fabric.is_global_zero
    if first_rank:
        print(describe(split_of(images, configs[names[0]])), flush=True)
    print_compute_notes(config, fabric, images.train.num_classes)
    how = same_command_resumes(folder)
    tracking = Tracking(chosen.track if first_rank else ())
    with tracking:
        if chosen.trials > 1:
            for name in names:
                search = protocol.search(name)
                print_trials(search, fabric=fabric, images=images, how_to_resume=how, tracking=tracking)
            # Only now: no setting can have been chosen on images that nobody had opened.
            images = decode_test_images(images, config)
        for name in names:
            epochs = train_loss(protocol, name, fabric=fabric, images=images)
            print_epochs(epochs, first_rank=first_rank, how_to_resume=how, tracking=tracking)
    found = compare_losses(protocol, fabric=fabric, images=images)
    if first_rank:
        page = comparison_page(protocol, found, command=command)
        write_atomically(folder / "comparison.md", page.encode())
        write_atomically(folder / "comparison.json", (json.dumps(asdict(found), indent=1) + "\n").encode())
        tracking.files(folder, [folder / "comparison.md", folder / "comparison.json"])
        print(f"\n{page}\nwritten to {folder}")
