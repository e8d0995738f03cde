"""Alembic's migrations of the registry. One that has landed is never edited or removed."""
