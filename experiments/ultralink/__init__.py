"""Command line of the UltraLink data pipeline: `python -m experiments.ultralink STAGE`."""
