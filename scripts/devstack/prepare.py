"""Before the start: folders, registry, the agent's credential, the embedded model's weights."""

from __future__ import annotations

import asyncio
import importlib.util
import re

from local_agent.domain import ModelId
from local_agent.weights.store import WeightStore
from scripts.devstack.errors import StepFailed
from scripts.devstack.plan import MODEL, Plan, command
from scripts.devstack.text import Waiting, say

NO_ENGINE = (
    "llama.cpp is not installed (there is no wheel for this platform), so the embedded model can't\n"
    "run here. The router and the agent start without it."
)


async def prepare(plan: Plan) -> bool:
    """Bring everything to where the services can start; tell whether the model can be loaded."""
    for name in ("agent", "models", "logs", "run"):
        (plan.home / name).mkdir(parents=True, exist_ok=True)
    registry = asyncio.ensure_future(_registry(plan))
    try:
        has_model = await _pull(plan)
        await registry
    finally:
        registry.cancel()
        await asyncio.gather(registry, return_exceptions=True)
    return has_model


async def _registry(plan: Plan) -> None:
    await _quietly(plan, "preparing the registry", command("router", "migrate"))
    await _quietly(plan, "seeding the registry", command("router", "seed"))
    name = re.sub(r"[^A-Za-z0-9._-]", "-", plan.agent_name) or "agent"
    add = command("router", "agents", "add", name, "--token-file", str(plan.token_file), "--renew")
    await _quietly(plan, "making the agent's credential", add)


async def _pull(plan: Plan) -> bool:
    """Pull the embedded model unless it is there; a failure is told and is no obstacle."""
    if importlib.util.find_spec("xllamacpp") is None:
        say(NO_ENGINE)
        return False
    if await _is_pulled(plan):
        return True
    say(f"pulling {MODEL}, the embedded model")
    pull = await asyncio.create_subprocess_exec(
        *command("local_agent", "pull", MODEL), env=dict(plan.environment)
    )
    try:
        code = await pull.wait()
    except asyncio.CancelledError:
        await _end(pull)
        raise
    if code != 0:
        say(f"The model could not be pulled. Later: iir-agent pull {MODEL}")
    return code == 0


async def _is_pulled(plan: Plan) -> bool:
    """Look at the folder of the weights, without a process of its own: this is the usual case."""
    store = WeightStore(plan.home / "models")
    return await asyncio.to_thread(store.find, ModelId(MODEL)) is not None


async def _quietly(plan: Plan, what: str, arguments: list[str]) -> None:
    """Run a command; what it prints is shown only if it fails."""
    child = await asyncio.create_subprocess_exec(
        *arguments,
        env=dict(plan.environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    waiting = Waiting(what)
    answer = asyncio.ensure_future(child.communicate())
    try:
        while not (await asyncio.wait([answer], timeout=0.25))[0]:
            waiting.tick()
    except asyncio.CancelledError:
        await _end(child)
        raise
    finally:
        waiting.clear()
        answer.cancel()
    if child.returncode != 0:
        printed = answer.result()[0].decode(errors="replace").strip()
        raise StepFailed(f"{what} failed:\n{printed}")


async def _end(child: asyncio.subprocess.Process) -> None:
    """End a step; its partial work is taken up again by the next start."""
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 3)
        except asyncio.TimeoutError:
            child.kill()
