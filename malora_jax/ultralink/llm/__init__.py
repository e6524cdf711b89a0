"""Chat language models with a cache: behind an HTTP endpoint, or decoded in this process."""
