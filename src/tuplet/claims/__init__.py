"""The study's claims as data: what is varied, the rule by which each holds, the runs, and the verdicts."""
