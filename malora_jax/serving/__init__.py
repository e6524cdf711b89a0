"""OpenAI-compatible HTTP server with continuous batching; needs the extra `serve`."""
