"""The program that a `torch_mps` worker runs: an OpenAI-compatible server on transformers.

Its environment has torch, transformers and uvicorn. One thread generates, for one request after the
other; between two tokens it asks whether the client is still there.
"""
