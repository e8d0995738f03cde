"""What both services need, and nothing else. This package knows neither of them."""

__version__ = "0.1.0"
