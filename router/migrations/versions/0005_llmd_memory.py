"""Which models llm-d clusters were seen to serve, and latencies that their pickers are to aim at.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "known_models",
        sa.Column(
            "cluster",
            sa.String(64),
            sa.ForeignKey("providers.name", name="fk_known_models_cluster", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("context_tokens", sa.BigInteger()),
        sa.Column("base_model", sa.String(256)),
        sa.Column("missing_s", sa.BigInteger(), nullable=False),
    )
    op.add_column("deployments", sa.Column("slo_ttft_ms", sa.Integer()))
    op.add_column("deployments", sa.Column("slo_tpot_ms", sa.Integer()))
