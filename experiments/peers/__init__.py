"""Comparison of our training with HF PEFT and MoE-PEFT; see README.md in this directory."""
