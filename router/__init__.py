"""The router: one OpenAI-compatible `base_url` in front of every endpoint."""
