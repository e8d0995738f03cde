"""Single figures out of Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math


def total(text: str, name: str) -> float | None:
    """Return the sum of a metric over its labels; None if it is not there. What is no number is 0."""
    # the text may have thousands of lines: it is cut at the name, not read line by line
    rests = (part.partition("\n")[0] for part in f"\n{text}".split(f"\n{name}")[1:])
    found = [_number(rest.rpartition("}")[2]) for rest in rests if rest[:1] in {"{", " "}]
    return sum(found) if found else None


def _number(text: str) -> float:
    try:
        number = float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return 0.0
    return number if math.isfinite(number) else 0.0
