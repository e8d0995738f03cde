"""`docs/errors.md`: every code that router or agent answers with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import local_agent.errors  # noqa: F401 - loads the agent's tree
import router.errors  # noqa: F401 - and the router's
from scripts.reference.writing import table
from shared.http.error_codes import EXPLANATIONS
from shared.http.errors import ApiError, UpstreamAnswer

HEAD = """\
# Errors

<!-- Written by `make docs` from shared/http/error_codes.py; edit it there. -->

Every error is `{"error": {"message", "type", "param", "code"}}`, on the routes of Messages in Anthropic's shape with the
same `code`. The message says what to do in this case; here is what each code means in all cases. A running router or agent
has the same text at `/errors/CODE`, without a key, and the header `link` of an error leads there:

<!-- runs -->
```console
curl -s http://127.0.0.1:8000/errors/model_not_pulled
```

`x-iir-error-origin` says where an error began: `client`, `router`, `agent` or `upstream`. A provider's or an engine's
own errors (an overlong prompt, say) pass with their own codes, which stand in their documentation; a code of the
table below may come from there too. After a stream has begun an error is its last event, with the same fields.
[Another attempt](failures.md) was made already where one made sense.

"""


def kinds(kind: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    """Yield all classes of errors that are known by now."""
    yield kind
    for child in kind.__subclasses__():
        yield from kinds(child)


def statuses() -> dict[str, list[int]]:
    """Return the statuses by which each code is answered; none for an upstream's, which has its own."""
    found: dict[str, set[int]] = defaultdict(set)
    for kind in kinds():
        if not issubclass(kind, UpstreamAnswer):
            found[kind.code].add(kind.status)
    found["upstream_error"] = set()
    return {code: sorted(numbers) for code, numbers in found.items()}


def page() -> str:
    """Return the page."""
    answered = statuses()
    shown = {code: ", ".join(map(str, answered.get(code, ()))) for code in EXPLANATIONS}
    rows = [
        [f"[`{code}`](#{code})", shown[code] or "its own", entry.meaning]
        for code, entry in EXPLANATIONS.items()
    ]
    parts = [HEAD, table(["code", "status", "meaning"], rows)]
    for code, entry in EXPLANATIONS.items():
        parts.append(
            f"\n## `{code}`\n\n{entry.meaning}\n\n"
            f"- **Status**: {shown[code] or 'as the upstream answered'}\n"
            f"- **Whose fault**: {entry.fault}\n"
            f"- **What to do**: {entry.next_step}\n"
        )
    return "".join(parts)
