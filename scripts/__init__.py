"""Programs for developers; `make` runs them."""
