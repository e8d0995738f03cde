"""What both services need, and nothing else. This package knows neither of them."""
