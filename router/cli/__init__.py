"""`iir`: the router's command line."""

from router.cli.root import app

__all__ = ["app"]
