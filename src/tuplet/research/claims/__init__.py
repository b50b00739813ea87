"""Claims of the HIST study, run as data."""
