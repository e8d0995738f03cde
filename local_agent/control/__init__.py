"""The agent's side of the lease protocol."""
