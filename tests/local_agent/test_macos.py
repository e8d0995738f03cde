"""What macOS's tools print is read as it is, on recorded outputs."""

from __future__ import annotations

import pytest

from local_agent.host.macos import (
    Lid,
    parse_charge,
    parse_lid,
    parse_pressure_level,
    parse_speed_limit,
    parse_sysctl,
    parse_vm_stat,
    sysctl_int,
)
from tests.local_agent import macos_outputs as outputs

# -- memory --------------------------------------------------------------------------------------


def test_memory_of_apple_silicon_counts_pages_of_16_kib() -> None:
    found = parse_vm_stat(outputs.VM_STAT_M1)
    assert found is not None
    assert found.wired_bytes == 143109 * 16384
    assert found.free_bytes == 355378 * 16384
    assert (found.inactive_bytes, found.speculative_bytes) == (166967 * 16384, 56413 * 16384)


def test_memory_of_an_intel_mac_counts_pages_of_4_kib() -> None:
    found = parse_vm_stat(outputs.VM_STAT_INTEL)
    assert found is not None
    assert (found.free_bytes, found.wired_bytes) == (6127229 * 4096, 715958 * 4096)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vm_stat: command not found",
        outputs.VM_STAT_M1.replace("Pages wired down", "Pages other"),
    ],
)
def test_what_is_no_vm_stat_tells_nothing(text: str) -> None:
    assert parse_vm_stat(text) is None


def test_sysctl_values_by_name() -> None:
    values = parse_sysctl(outputs.SYSCTL_MEMSIZE + outputs.SYSCTL_SWAP)
    assert sysctl_int(values, "hw.memsize") == 38654705664
    assert sysctl_int(values, "vm.swapusage") is None, "it is no number"
    assert sysctl_int(values, "iogpu.wired_limit_mb") is None


def test_a_name_that_sysctl_does_not_know_is_not_there() -> None:
    assert parse_sysctl(outputs.SYSCTL_UNKNOWN) == {}


def test_a_value_that_is_being_set_is_no_number() -> None:
    values = parse_sysctl(outputs.SYSCTL_WIRED_LIMIT_SET)
    assert sysctl_int(values, "iogpu.wired_limit_mb") is None


# -- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "percent"),
    [
        (outputs.BATTERY, "battery", 95),
        (outputs.BATTERY_WITHOUT_ID, "battery", 90),
        (outputs.AC_NOT_CHARGING, "ac", 88),
        (outputs.AC_DESKTOP, "ac", None),
        ("", "unknown", None),
    ],
)
def test_what_a_mac_runs_on(text: str, source: str, percent: int | None) -> None:
    found = parse_charge(text)
    assert (found.source, found.percent) == (source, percent)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (outputs.THERM_INTEL, "nominal"),
        (outputs.THERM_INTEL_HOT, "critical"),
        # it says that nothing was recorded on Apple Silicon even while it throttles
        (outputs.THERM_APPLE_SILICON, "unknown"),
        ("", "unknown"),
    ],
)
def test_how_warm_an_intel_mac_is(text: str, state: str) -> None:
    assert parse_speed_limit(text) == state


@pytest.mark.parametrize(
    ("level", "state"),
    [("0", "nominal"), ("1", "fair"), ("2", "serious"), ("3", "critical"), ("4", "critical")],
)
def test_how_warm_apple_silicon_is(level: str, state: str) -> None:
    text = outputs.PRESSURE_NOMINAL.replace(" 0", f" {level}")
    assert parse_pressure_level(text) == state


def test_a_level_that_is_not_told_is_unknown() -> None:
    assert (
        parse_pressure_level("com.apple.system.thermalpressurelevel: Failed with code 1\n")
        == "unknown"
    )


def test_a_closed_lid() -> None:
    closed = parse_lid(outputs.LID_CAUSES_SLEEP + outputs.LID_LINE.format("Yes"))
    assert closed == Lid(is_closed=True, causes_sleep=True)
    docked = parse_lid(outputs.LID_OPEN_WITH_DISPLAY + outputs.LID_LINE.format("Yes"))
    assert docked == Lid(is_closed=True, causes_sleep=False)


def test_a_lid_that_is_open_and_a_mac_without_one() -> None:
    opened = parse_lid(outputs.LID_OPEN_WITH_DISPLAY + outputs.LID_LINE.format("No"))
    assert opened == Lid(is_closed=False, causes_sleep=False)
    assert parse_lid("") is None
    # the other flag must not be taken for the lid's
    assert parse_lid(outputs.LID_CAUSES_SLEEP) is None
