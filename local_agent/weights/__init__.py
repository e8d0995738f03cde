"""Weights on this host: where they come from, the pull, and where they lie."""
