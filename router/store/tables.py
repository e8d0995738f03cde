"""The registry's tables. Times are whole seconds since 1970 unless a name says otherwise.

Types are those that SQLite and PostgreSQL share. The migrations make these tables; a test holds
the two against each other.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite counts up by itself only where the type is exactly INTEGER.
_ROW_ID = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(naming_convention=NAMING)

meta = Table(
    "meta",
    metadata,
    Column("key", String(320), primary_key=True),
    Column("value", String(320), nullable=False),
)

providers = Table(
    "providers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("dialect", String(64), nullable=False),
    Column("base_url", String(512), nullable=False),
    Column("zone", String(16), nullable=False),
    Column("key_env", String(128)),
    Column("created_at", BigInteger, nullable=False),
    Column("max_in_flight", Integer),
    Column("apis", JSON(none_as_null=True)),
)

models = Table(
    "models",
    metadata,
    Column("id", String(256), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", String(256), primary_key=True),
    Column("model", ForeignKey("models.id", ondelete="CASCADE"), nullable=False, index=True),
)

prefix_rules = Table(
    "prefix_rules",
    metadata,
    Column("prefix", String(256), primary_key=True),
    Column("provider", ForeignKey("providers.name", ondelete="CASCADE"), nullable=False),
)

# Prices are in US dollars per million tokens. NULL limits: as the router's settings say. `objective`,
# `base_model` and the SLOs are for llm-d clusters only.
deployments = Table(
    "deployments",
    metadata,
    Column("model", ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("provider", ForeignKey("providers.name"), primary_key=True),
    Column("upstream_name", String(256), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("weight", Float, nullable=False),
    Column("context_tokens", Integer),
    Column("capabilities", JSON, nullable=False),
    Column("price_input", Float),
    Column("price_output", Float),
    Column("connect_s", Float),
    Column("first_byte_s", Float),
    Column("idle_s", Float),
    Column("total_s", Float),
    Column("objective", String(256)),
    Column("base_model", String(256)),
    Column("slo_ttft_ms", Integer),
    Column("slo_tpot_ms", Integer),
)

# What llm-d clusters were seen to serve, so that a restart does not forget it. `missing_s` is for how many
# seconds their lists have lacked it; `forgotten_at`: when somebody let the name go, until it is seen again.
known_models = Table(
    "known_models",
    metadata,
    Column("cluster", ForeignKey("providers.name", ondelete="CASCADE"), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("context_tokens", BigInteger),
    Column("base_model", String(256)),
    Column("missing_s", BigInteger, nullable=False),
    Column("forgotten_at", BigInteger),
)

agents = Table(
    "agents",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("key_prefix", String(16), nullable=False, unique=True),
    Column("key_digest", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("agent_id", String(64), index=True),
    Column("incarnation", BigInteger),
    Column("registration", Text),
    # The credential that takes the present one's place at its first use, and which agent it is for
    # (NULL: whichever registers first with it).
    Column("next_prefix", String(16)),
    Column("next_digest", String(64)),
    Column("next_agent_id", String(64)),
    Index("ix_agents_next_prefix", "next_prefix", unique=True),
)

# One-time tokens by which agents join; `name` is the agent's, NULL: as it calls itself.
invitations = Table(
    "invitations",
    metadata,
    Column("prefix", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("name", String(128)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
)

leases = Table(
    "leases",
    metadata,
    Column("agent", ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    Column("lease_id", String(64), nullable=False),
    Column("seq", BigInteger),
    Column("heartbeat", Text),
    Column("updated_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False, index=True),
    Column("prefix", String(16), nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

# One row per attempt. `ts` is when it ended, in seconds since 1970 with a fraction.
usage = Table(
    "usage",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("ts", Float(53), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("model", String(256), nullable=False),
    Column("endpoint", String(256), nullable=False),
    Column("zone", String(16)),
    Column("key_id", String(64)),
    Column("attempt", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", String(64)),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("ttft_s", Float),
    Column("total_s", Float, nullable=False),
    Index("ix_usage_ts", "ts"),
)
