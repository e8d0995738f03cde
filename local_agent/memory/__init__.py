"""What workers may take of the host's memory: estimates, a ledger, and who makes room for whom."""
