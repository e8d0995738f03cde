"""Invitations by which agents join, and the credential that follows an agent's present one.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invitations",
        sa.Column("prefix", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger()),
    )
    op.add_column("agents", sa.Column("next_prefix", sa.String(16)))
    op.add_column("agents", sa.Column("next_digest", sa.String(64)))
    op.add_column("agents", sa.Column("next_agent_id", sa.String(64)))
    op.create_index("ix_agents_next_prefix", "agents", ["next_prefix"], unique=True)
