"""The HTTP edge of the agent: inference as plain ASGI, everything else on FastAPI."""
