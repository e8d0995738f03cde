"""Programs that run in an engine's own Python environment: they import nothing else of this project."""
