"""Comparison of our training with its peers, HF PEFT and MoE-PEFT; README.md describes it."""
