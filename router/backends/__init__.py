"""Wire protocols to endpoints, one per file."""

from __future__ import annotations

from collections.abc import Callable

from router.ports import Backend, TenantOf
from shared.http.transport import Transport
from shared.kit.plugins import Plugins

BACKENDS: Plugins[Callable[[Transport, TenantOf], Backend]] = Plugins("backend", __name__)
