"""Settings that both services share, and how all of them are read.

Precedence: flag (an argument here) > environment > `.env` > default. Where `.env` lies: `shared/kit/home.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared.kit.home import default_home, env_file

LogLevel = Literal["debug", "info", "warning", "error"]


class BaseServiceSettings(BaseSettings):
    """What router and agent have in common; field names are the variables in lower case."""

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    iir_home: Path = Field(
        default_factory=default_home,
        description="Folder of all state: registry, credential, weights, logs. A checkout uses "
        "`./data`, an installation the platform's data folder.",
    )
    log_level: LogLevel = Field(default="info", description="Least severe level that is logged.")
    log_json: bool | None = Field(
        default=None,
        description="Log JSON lines. Unset: JSON unless the log goes to a terminal.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take `.env` from where it lies for this kind of installation."""
        file = env_file(env_settings().get("iir_home"))
        return init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=file)

    @field_validator("iir_home")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()
