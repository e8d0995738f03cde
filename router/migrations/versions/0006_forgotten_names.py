"""When somebody let a name go that an llm-d cluster is known for.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("known_models", sa.Column("forgotten_at", sa.BigInteger()))
