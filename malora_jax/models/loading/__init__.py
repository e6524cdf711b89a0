"""Loading of base models: configuration, weights and tokenizer from Hugging Face or GGUF files."""
