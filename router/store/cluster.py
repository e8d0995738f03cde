"""The row of the llm-d cluster whose address is a setting."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from router.domain import LLMD, PrefixRule, Provider, Zone
from router.store.catalog import add_prefix_rule, add_provider, has_prefix_rule, list_providers
from shared.contracts.apis import APIS

_PREFIX: Final = "llmd-"


def admit_cluster(connection: Connection) -> bool:
    """Add the provider `llmd`, with a prefix rule, unless it is there; tell whether it is llm-d's.

    It has no address: that is `LLMD_ENDPOINT`, and without it the row is of no use.
    """
    for provider in list_providers(connection):
        if provider.name == LLMD:
            return provider.dialect == LLMD
    row = Provider(name=LLMD, dialect=LLMD, base_url="", zone=Zone.CLUSTER, apis=APIS)
    add_provider(connection, row)
    if not has_prefix_rule(connection, _PREFIX):
        add_prefix_rule(connection, PrefixRule(_PREFIX, LLMD))
    return True
