"""The HTTP edge: inference as plain ASGI, everything else on FastAPI."""
