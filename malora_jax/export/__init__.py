"""Export of trained models: adapter files, PEFT, merged and base models, mixtures, static LoRA."""
