"""Export of trained models: adapter files, PEFT, merged Hugging Face models, static LoRA."""
