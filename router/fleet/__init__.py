"""Who can serve what, now: the catalog's snapshot joined with the agents' leases."""
