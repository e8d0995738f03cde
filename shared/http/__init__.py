"""The data plane that the router and the local agent share."""
