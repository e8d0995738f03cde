"""Run by Alembic: migrates over the connection that `router.store.migrate` hands in."""

from __future__ import annotations

from alembic import context

from router.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can take back DDL; Alembic must be told so, or it commits in the middle.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
