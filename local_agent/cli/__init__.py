"""`iir-agent`: serve, pull, list and remove models from the command line."""
