"""Chat language models at an HTTP endpoint or in this process, with a cache of their replies."""
