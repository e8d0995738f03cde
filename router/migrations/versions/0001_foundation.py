"""The foundation: catalog, agents and leases, keys, usage.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _meta()
    _catalog()
    _routing()
    _agents()
    _keys_and_usage()


def _meta() -> None:
    meta = op.create_table(
        "meta",
        sa.Column("key", sa.String(320), nullable=False),
        sa.Column("value", sa.String(320), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.bulk_insert(
        meta,
        [{"key": "catalog_version", "value": "1"}, {"key": "lease_version", "value": "1"}],
    )


def _catalog() -> None:
    op.create_table(
        "providers",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("dialect", sa.String(64), nullable=False),
        sa.Column("base_url", sa.String(512), nullable=False),
        sa.Column("zone", sa.String(16), nullable=False),
        sa.Column("key_env", sa.String(128)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_providers"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_table(
        "aliases",
        sa.Column("alias", sa.String(256), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(["model"], ["models.id"], "fk_aliases_model", ondelete="CASCADE"),
    )
    op.create_index("ix_aliases_model", "aliases", ["model"])


def _routing() -> None:
    op.create_table(
        "prefix_rules",
        sa.Column("prefix", sa.String(256), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("prefix", name="pk_prefix_rules"),
        sa.ForeignKeyConstraint(
            ["provider"], ["providers.name"], "fk_prefix_rules_provider", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "deployments",
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("upstream_name", sa.String(256), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("context_tokens", sa.Integer()),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("price_input", sa.Float()),
        sa.Column("price_output", sa.Float()),
        sa.PrimaryKeyConstraint("model", "provider", name="pk_deployments"),
        sa.ForeignKeyConstraint(
            ["model"], ["models.id"], "fk_deployments_model", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["provider"], ["providers.name"], "fk_deployments_provider"),
    )


def _agents() -> None:
    op.create_table(
        "agents",
        sa.Column("id", _ROW_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("key_prefix", sa.String(16), nullable=False),
        sa.Column("key_digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.Column("agent_id", sa.String(64)),
        sa.Column("incarnation", sa.BigInteger()),
        sa.Column("registration", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("name", name="uq_agents_name"),
        sa.UniqueConstraint("key_prefix", name="uq_agents_key_prefix"),
    )
    op.create_index("ix_agents_agent_id", "agents", ["agent_id"])
    op.create_table(
        "leases",
        sa.Column("agent", _ROW_ID, nullable=False),
        sa.Column("lease_id", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger()),
        sa.Column("heartbeat", sa.Text()),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent", name="pk_leases"),
        sa.ForeignKeyConstraint(["agent"], ["agents.id"], "fk_leases_agent", ondelete="CASCADE"),
    )


def _keys_and_usage() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", _ROW_ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("prefix", name="uq_api_keys_prefix"),
    )
    op.create_index("ix_api_keys_name", "api_keys", ["name"])
    op.create_table(
        "usage",
        sa.Column("id", _ROW_ID, autoincrement=True, nullable=False),
        sa.Column("ts", sa.Float(53), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("endpoint", sa.String(256), nullable=False),
        sa.Column("zone", sa.String(16)),
        sa.Column("key_id", sa.String(64)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(64)),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("ttft_s", sa.Float()),
        sa.Column("total_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage"),
    )
    op.create_index("ix_usage_ts", "usage", ["ts"])
