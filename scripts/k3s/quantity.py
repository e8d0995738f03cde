"""Kubernetes' quantities of memory: `16Gi`, `8000M`, `24576000Ki`."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(|k|M|G|T|Ki|Mi|Gi|Ti)")


def gib(quantity: str) -> float:
    """Return a quantity in GiB; 0 if it is none."""
    found = _QUANTITY.fullmatch(quantity)
    return float(found[1]) * _UNITS[found[2]] / 1024**3 if found else 0.0


def doubled(quantity: str) -> str:
    """Return twice a quantity in its own unit; "" if it is none."""
    return _times(quantity, 2)


def halved(quantity: str) -> str:
    """Return half a quantity in its own unit; "" if it is none."""
    return _times(quantity, 0.5)


def _times(quantity: str, factor: float) -> str:
    found = _QUANTITY.fullmatch(quantity)
    return f"{float(found[1]) * factor:.15g}{found[2]}" if found else ""
