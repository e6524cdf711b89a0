"""Our training beside that of HF PEFT and MoE-PEFT; see the README beside this file."""
