"""Router and agent as children of one process: what `make dev`, `make up` and `make down` do."""
