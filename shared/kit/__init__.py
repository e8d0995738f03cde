"""Small building blocks without a domain: clock, plug-ins, backoff, logs, home."""
