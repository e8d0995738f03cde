"""Serving one call: choose, try, and try the next until the first byte."""
