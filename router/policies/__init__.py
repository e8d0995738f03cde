"""Routing policies, one per file."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from router.ports import RoutingPolicy
from shared.kit.plugins import Plugins

POLICIES: Plugins[Callable[[Random], RoutingPolicy]] = Plugins("policy", __name__)
