"""Language models that answer chats: over HTTP, or the project's own decoder; with a cache."""
