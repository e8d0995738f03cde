"""The YAML file's `power:`: what the agent does on a laptop."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from local_agent.power_policy import BATTERY_FLOOR, OnBattery, PowerPolicy


class PowerConfig(BaseModel):
    """What to do on battery, in heat, and before sleep."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    on_battery: OnBattery = Field(
        default="serve",
        description="`serve`: as always; `limit`: one request at a time; `drain`: nothing new.",
    )
    battery_floor: int = Field(
        default=BATTERY_FLOOR,
        ge=0,
        le=95,
        description="On battery, nothing new is taken at this percentage and below; 0: no floor.",
    )
    max_thermal: Literal["nominal", "fair", "serious", "critical"] = Field(
        default="serious",
        description="Nothing new is taken while the machine is warmer; `critical`: never for heat.",
    )
    drain_before_sleep: bool = Field(
        default=True,
        description="Whether nothing new is taken once the system says that it will sleep, or "
        "a lid is closed that will make it sleep; what runs is finished, as far as the system waits.",
    )
    keep_awake: bool = Field(
        default=True,
        description="Whether a Mac is kept from falling asleep by itself while requests, loads or "
        "downloads run.",
    )

    @property
    def policy(self) -> PowerPolicy:
        """Return it as values."""
        return PowerPolicy(
            on_battery=self.on_battery,
            battery_floor=self.battery_floor,
            max_thermal=self.max_thermal,
            drain_before_sleep=self.drain_before_sleep,
            keep_awake=self.keep_awake,
        )
