"""The HTTP side: the API for apps (and later the pages)."""
