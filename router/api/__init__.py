"""The HTTP edge: inference and what is read all the time as plain ASGI, everything else on FastAPI."""
