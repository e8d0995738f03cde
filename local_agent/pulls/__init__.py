"""Pulls of models: what one needs, how it gets it, and the jobs of the running agent."""
