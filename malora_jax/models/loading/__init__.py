"""Reading weights and tokenizers."""
