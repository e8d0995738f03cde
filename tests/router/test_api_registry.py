"""Requests never touch the database, and go on without it."""

from __future__ import annotations

import io
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from router.domain import DeploymentEntry
from router.store.catalog import add_model
from shared.kit.logs import configure_logs
from tests.router.agents import FailingStore, agent_of
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of, key, one_engine, usage_of


class Auditor:
    """Counts what the interpreter reports of files and databases, while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if threading.current_thread().name.startswith("registry-writer"):
            return  # the ledger's batches, behind the requests
        if self.is_on and event in {"sqlite3.connect", "open", "os.open"}:
            text = str(arguments[0])
            if event == "sqlite3.connect" or "models.db" in text:
                self.seen.append(f"{event} {text}")


@pytest.fixture(scope="session")
def auditor() -> Auditor:
    return Auditor()


def file_of(router: RunningRouter) -> Path:
    return Path(router.settings.store_url.removeprefix("sqlite:///"))


def overwrite(path: Path) -> None:
    """Write garbage where the database was; its companions too."""
    for companion in path.parent.glob(f"{path.name}*"):
        companion.unlink()
    path.write_bytes(b"garbage " * 4096)


def scribble(path: Path) -> None:
    """Write garbage into the very file that is open."""
    with path.open("r+b") as file:
        file.write(b"garbage " * 512)


def remove(path: Path) -> None:
    for companion in path.parent.glob(f"{path.name}*"):
        companion.unlink()


async def test_no_request_opens_the_database(start_router: StartRouter, auditor: Auditor) -> None:
    async with one_engine(start_router, router_catalog_poll_s=3600) as scene:
        credential = scene.router.write(key())
        await scene.router.catch_up()
        headers = bearer(credential)
        auditor.seen.clear()
        auditor.is_on = True
        try:
            for body in (chat(), chat(stream=True), chat("unknown")):
                await scene.client.post(CHAT, json=body, headers=headers)
            for path in ("/v1/models", "/v1/models/tiny", "/health", "/readyz", "/nothing"):
                await scene.client.get(path, headers=headers)
            await scene.client.get("/v1/models", headers=bearer("unknown"))
        finally:
            auditor.is_on = False
        assert auditor.seen == []


@pytest.mark.parametrize("damage", [overwrite, scribble, remove])
async def test_the_router_serves_on_without_its_database_and_finds_it_again(
    start_router: StartRouter, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    async with one_engine(start_router, router_catalog_poll_s=0.02) as scene:
        credential = scene.router.write(key())
        await scene.router.catch_up()
        headers = bearer(credential)
        path = file_of(scene.router)
        backup = tmp_path / "backup.db"
        with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
            source.backup(target)
        source.close()
        target.close()

        damage(path)
        if damage is not scribble:  # a file that is open is read from the cache until it changes
            with anyio.fail_after(5):
                while (await scene.client.get("/readyz")).json()["registry"] == "ok":
                    await anyio.sleep(0.01)
        ready = await scene.client.get("/readyz")
        assert ready.status_code == 200
        assert str(tmp_path) not in ready.text
        for body in (chat(), chat(stream=True)):
            assert (await scene.client.post(CHAT, json=body, headers=headers)).status_code == 200
        assert (await scene.client.get("/v1/models", headers=headers)).status_code == 200
        refused = await scene.client.post(CHAT, json=chat(), headers=bearer("sk-unknown"))
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
        assert scene.router.router.ledger.waiting >= 0

        remove(path)
        backup.rename(path)
        row = DeploymentEntry(provider="engine", upstream_name="tiny")
        scene.router.write(lambda c: add_model(c, "later", row))
        with anyio.fail_after(3):
            while (
                await scene.client.post(CHAT, json=chat("later"), headers=headers)
            ).status_code != 200:
                await anyio.sleep(0.02)
        assert (await scene.client.get("/readyz")).json()["registry"] == "ok"
        rows = await usage_of(scene.router)
        assert [row["model"] for row in rows][-1] == "later"


async def test_failed_looks_are_counted(start_router: StartRouter) -> None:
    async with start_router(router_catalog_poll_s=0.01) as router:
        remove(file_of(router))
        with anyio.fail_after(5):
            while "iir_registry_errors_total 0.0" in (await router.client.get("/metrics")).text:
                await anyio.sleep(0.01)
        ready = (await router.client.get("/readyz")).json()
        assert "iir migrate" in ready["registry"]


async def test_an_outage_is_logged_once_and_a_defect_beside_requests_takes_nothing_down(
    start_router: StartRouter,
) -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, json=True)
    async with one_engine(start_router, router_catalog_poll_s=0.01) as scene:
        router = scene.router.router
        agent = await agent_of(scene.router, scene.upstream)
        assert (await agent.register()).status_code == 200
        store = FailingStore()
        router.desk._store = store
        await agent.renew()
        for _ in range(3):
            await router._flush()
        store.is_full = False
        await router._flush()
        store.is_full = True
        await agent.renew()
        await router._flush()
        look = router.sync.look

        async def defect() -> None:
            router.sync.look = look  # type: ignore[method-assign] # the next one works
            raise RuntimeError("secret")

        router.sync.look = defect  # type: ignore[method-assign] # a defect
        with anyio.fail_after(5):
            while "background_work_failed" not in stream.getvalue():
                await anyio.sleep(0.01)
        scene.router.write(key())
        with anyio.fail_after(5):
            while (await scene.client.post(CHAT, json=chat())).status_code != 401:
                await anyio.sleep(0.01)
    assert stream.getvalue().count("leases_not_saved") == 2
    assert "secret" not in stream.getvalue()


async def test_a_locked_database_holds_nobody_up(start_router: StartRouter) -> None:
    async with one_engine(start_router, router_catalog_poll_s=0.02) as scene:
        other = sqlite3.connect(file_of(scene.router), isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            with anyio.fail_after(3):
                for _ in range(5):
                    assert (await scene.client.post(CHAT, json=chat())).status_code == 200
            assert (await scene.client.get("/readyz")).status_code == 200
        finally:
            other.execute("ROLLBACK")
            other.close()
        assert len(await usage_of(scene.router)) == 5
