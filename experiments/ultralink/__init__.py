"""The stages of UltraLink, a module each: `python -m experiments.ultralink STAGE`."""
