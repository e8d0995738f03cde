"""Objectives and base models of deployments in llm-d clusters.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deployments", sa.Column("objective", sa.String(256)))
    op.add_column("deployments", sa.Column("base_model", sa.String(256)))
