"""The HTTP edge of the agent: inference and what is read all the time as plain ASGI, everything else on FastAPI."""
