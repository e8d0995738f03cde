"""What can be asked to go wrong, how it is written down, and the script of what goes wrong next.

A fault is written `KIND` or `KIND:key=value,key=value`; several that act together are joined by
`;`. Three ways to ask: the model's name (`tiny!cut:after=2`), the header `x-sim-fault`, and the
script (`POST /sim/faults`, `--fault`), whose entries are used up in order.
"""

from __future__ import annotations

import msgspec

HEADER = "x-sim-fault"
MODEL_MARK = "!"


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault. What a kind does, and which fields it reads, stands in `distortions.KINDS`.

    Attributes:
        kind: a key of `distortions.KINDS`.
        after: pieces of body (SSE events) sent before it happens; 0 is just behind the head,
            unset is before the head, or the kind's own place.
        ms: milliseconds; 0 lasts until the client leaves, where waiting is the fault.
        code: the status.
        retry_after: value of the header, as it is.
        shape: of an error body or an error event; unset is the kind's own.
        size: bytes.
        reset: RST instead of FIN.
        done: `[DONE]` follows the error event.
        location: where a redirect leads.
        exit_code: of a crash.
        signal: the process sends it to itself instead of exiting.
        path: in the script only: the exact path it is for; unset is any inference route.
        times: in the script only: how many requests get it; 0 is all, for ever. Of an entry with
            several faults, the first one's `path` and `times` count.
    """

    kind: str
    after: int | None = None
    ms: float = 0.0
    code: int = 500
    retry_after: str = ""
    shape: str = ""
    size: int = 0
    reset: bool = False
    done: bool = False
    location: str = "/elsewhere"
    exit_code: int = 1
    signal: int = 0
    path: str = ""
    times: int = 1


Entry = tuple[Fault, ...]


def parse_faults(text: str) -> Entry:
    """Read `KIND[:key=value,…][;KIND…]`.

    Raises:
        ValueError: an unknown field or a value that does not fit.
    """
    return tuple(_parse_one(part) for part in text.split(";") if part.strip())


def read_entries(data: object) -> tuple[Entry, ...]:
    """Read the body of `POST /sim/faults`: a list of objects and strings, or one of them.

    Raises:
        ValueError: an unknown field or a value that does not fit.
    """
    items = data if isinstance(data, list) else [data]
    return tuple(
        parse_faults(item) if isinstance(item, str) else (_convert(item),) for item in items
    )


def split_model(name: str) -> tuple[str, Entry]:
    """Return the model's own name and the faults that its suffix asks for.

    Raises:
        ValueError: the suffix is no fault.
    """
    base, _, suffix = name.partition(MODEL_MARK)
    return base, parse_faults(suffix)


class FaultScript:
    """Faults for requests to come, in order. The faults of one entry hit the same request."""

    def __init__(self) -> None:
        """Begin without any."""
        self._entries: list[Entry] = []

    def add(self, *faults: Fault | str | Entry) -> None:
        """Append one entry per argument; `"split;cut:after=3"` is one entry.

        Raises:
            ValueError: a string can't be read.
        """
        for fault in faults:
            if isinstance(fault, Fault):
                self._entries.append((fault,))
            else:
                self._entries.append(parse_faults(fault) if isinstance(fault, str) else fault)

    def clear(self) -> None:
        """Forget what is still to come."""
        self._entries.clear()

    def take(self, path: str, *, is_inference: bool) -> Entry:
        """Return the first entry for this request, and use it up."""
        for index, entry in enumerate(self._entries):
            if (entry[0].path == path) if entry[0].path else is_inference:
                self._use(index, entry)
                return entry
        return ()

    def pending(self) -> tuple[Entry, ...]:
        """Return what is still to come."""
        return tuple(self._entries)

    def _use(self, index: int, entry: Entry) -> None:
        times = entry[0].times
        if times == 1:
            del self._entries[index]
        elif times > 1:
            first = msgspec.structs.replace(entry[0], times=times - 1)
            self._entries[index] = (first, *entry[1:])


def _parse_one(text: str) -> Fault:
    kind, _, rest = text.strip().partition(":")
    fields: dict[str, str] = {"kind": kind.strip()}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"fault {kind!r}: {pair!r} is not key=value")
        fields[key.strip()] = value.strip()
    return _convert(fields)


def _convert(data: object) -> Fault:
    try:
        return msgspec.convert(data, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"no fault: {error}") from error
