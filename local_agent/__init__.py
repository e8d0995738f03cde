"""The local agent: supervises the inference engines of one host."""
