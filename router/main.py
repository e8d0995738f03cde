"""The router for `uvicorn router.main:app`."""

from __future__ import annotations

from router.app import create_app
from router.settings import load_settings
from shared.kit.logs import configure_logs
from shared.kit.memory import settle

_settings = load_settings()
configure_logs(level=_settings.log_level, json=_settings.log_json)
app = create_app(_settings)
settle()
