"""What a multilingual model can do, language by language."""
