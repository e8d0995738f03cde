"""Wait until the router serves its default model; runs in its container, fed to `python -`.

Standard library only. Says what it waits for, and exits with 1 if it does not come.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_S = 900.0  # a slow line pulls the weights once
HOPELESS_S = 120.0  # an agent tries again by itself, and tells of its models before it pulls them
REVOKED = 3
PORT = 8000


def status(key: str) -> str:
    """Return the default model's status, or why there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
    try:
        connection.request("GET", "/v1/models/default", headers={"authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        body: Any = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException):
        return "the router does not answer"
    finally:
        connection.close()
    if answer.status == http.client.OK:
        return str(body.get("status", {}).get("value"))
    if answer.status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
        return "refused"
    absent = answer.status == http.client.NOT_FOUND
    return "no agent has it yet" if absent else f"the router answers {answer.status}"


def main() -> int:
    """Wait; 0 once the model is loaded, 3 if the key is refused."""
    key = Path(os.environ["ROUTER_KEY_FILE"]).read_text(encoding="utf-8").strip()
    started = time.monotonic()
    shown, since = "", started
    while True:
        now = time.monotonic()
        found = status(key)
        if found == "loaded":
            return 0
        if found == "refused":  # the key was revoked: nothing to be learnt
            return REVOKED
        if found != shown:
            print(f"the embedded model: {found} ({now - started:.0f} s)", flush=True)
            shown, since = found, now
        is_hopeless = found in {"failed", "no agent has it yet"} and now - since > HOPELESS_S
        if is_hopeless or now - started > LIMIT_S:
            return 1
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
