"""The command line of UltraLink: `python -m experiments.ultralink STAGE`."""
