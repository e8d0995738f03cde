"""Workers that a killed agent left behind, when no agent comes back to end them.

python -m scripts.devstack.orphans HOME    ends those of the agent with this IIR_HOME
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from local_agent.process import LocalProcessLauncher

_GRACE_S = 0.5


async def reap(home: Path) -> list[str]:
    """End workers whose agent is gone; return their names. Those of a live agent stay."""
    launcher = LocalProcessLauncher(
        run_dir=home / "run" / "workers", log_dir=home / "logs", env={}, reap_grace_s=_GRACE_S
    )
    return await launcher.reap_orphans()


if __name__ == "__main__":
    asyncio.run(reap(Path(sys.argv[1])))
