"""Limits of endpoints and deployments, and which API routes an endpoint speaks.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("providers", sa.Column("max_in_flight", sa.Integer()))
    op.add_column("providers", sa.Column("apis", sa.JSON()))
    for limit in ("connect_s", "first_byte_s", "idle_s", "total_s"):
        op.add_column("deployments", sa.Column(limit, sa.Float()))
    # OpenAI itself speaks more than what every server of its dialect does.
    op.execute(
        'UPDATE providers SET apis = \'["chat", "completions", "embeddings", "responses"]\''
        " WHERE name = 'openai' AND dialect = 'openai' AND base_url = 'https://api.openai.com'"
    )
    op.execute(
        "UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS VARCHAR(320))"
        " WHERE key = 'catalog_version'"
    )
