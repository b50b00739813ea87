"""Train a network: loop, session, run folder, seeds and folds."""
