"""An address that changes while something is under way: a read of `.env`, a look, a start, a hanging disk."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path, PosixPath

import anyio
import pytest

from router.app import Router
from router.domain import Provider, Zone
from router.fleet.address_follower import AddressFollower
from router.fleet.endpoints import ProviderEndpoints
from router.settings import Settings, Stamp, load_settings
from router.store.catalog import add_provider
from router.store.writer import RegistryWriter
from shared.testing.wire import Exchange
from tests.router.gateway import gateway
from tests.router.harness import StartRouter
from tests.router.test_address_follower import ENV, QUIET, Row, clusters, notice, write

pytestmark = pytest.mark.usefixtures("home")

OLD, NEW = "http://127.0.0.1:8", "http://127.0.0.1:9"


class WrittenMeanwhile(PosixPath):
    """A path, as a flag, that is looked at after `.env` was read: somebody writes it just then."""

    def expanduser(self) -> WrittenMeanwhile:
        write(NEW)
        return self


def test_what_is_written_while_settings_are_loaded_is_not_taken_for_known(tmp_path: Path) -> None:
    write(OLD)
    settings = load_settings(iir_home=WrittenMeanwhile(tmp_path))
    assert settings.llmd_endpoint == OLD
    assert settings.stamp != settings.stamp_now()


class Replaced:
    """A file of settings that is away for a moment, just when it is read."""

    stamp: object = "old"
    now: object = "new"
    is_away = True

    def stamp_now(self) -> object:
        return self.now

    def llmd_endpoint_now(self) -> str | None:
        if self.is_away:
            self.is_away, self.now = False, "there again"
            return None
        return NEW


async def test_what_is_read_while_it_changes_is_not_taken(start_router: StartRouter) -> None:
    async with start_router(llmd_endpoint=OLD, **QUIET) as router:
        endpoints = ProviderEndpoints(router.settings)
        follower = AddressFollower(Replaced(), endpoints, router.router.fleet, Row(0))
        for address in (OLD, OLD, OLD, NEW):
            await follower.look()
            assert endpoints.llmd_endpoint == address


class Unreadable(Replaced):
    """A file that is not for the router's user."""

    def stamp_now(self) -> object:
        raise PermissionError(13, "Permission denied", "/home/me/.env")


async def test_why_it_cannot_be_read_is_said_without_its_path(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start_router(**QUIET) as router:
        endpoints = ProviderEndpoints(router.settings)
        await AddressFollower(Unreadable(), endpoints, router.router.fleet, Row(0)).look()
        text = "".join(capsys.readouterr())
        assert "Permission denied" in text
        assert "/home/me" not in text


async def test_a_registry_is_followed_whatever_became_of_env(start_router: StartRouter) -> None:
    """Credentials are looked up anew with each catalog: what `.env` said of them goes on to count."""
    async with gateway() as (_, url):
        write(url, "ACME_KEY=secret")
        async with start_router(**QUIET) as router:
            acme = Provider(
                name="acme", dialect="llmd", base_url=url, zone=Zone.CLUSTER, key_env="ACME_KEY"
            )
            router.write(lambda c: add_provider(c, acme))
            await notice(router)
            ENV.write_bytes(b"LLMD_ENDPOINT=http://127.0.0.1:9\n\xff")
            router.write(lambda c: add_provider(c, replace(acme, name="more", key_env=None)))
            await notice(router)
            assert await clusters(router) == {"llmd": "ready", "acme": "ready", "more": "ready"}


async def test_a_file_that_hangs_does_not_keep_the_registry_from_being_followed() -> None:
    is_asked, answers = threading.Event(), threading.Event()

    class Hanging(Settings):
        """`.env` lies on a volume that does not answer any more, once the router runs."""

        def stamp_now(self) -> Stamp | None:
            if router.readiness.is_loaded:
                is_asked.set()
                answers.wait(60)
            return self.stamp

    router = Router(Hanging.by({"router_catalog_poll_s": 0.01, "router_probe_s": 3600.0}))
    writer = RegistryWriter(router.settings.store_url)
    more = Provider(name="more", dialect="openai", base_url=OLD, zone=Zone.LOCAL)
    async with router.running():
        before = router.fleet.catalog.version
        try:
            with anyio.fail_after(30):
                await anyio.to_thread.run_sync(is_asked.wait)
                await writer.run(lambda c: add_provider(c, more))
                while router.fleet.catalog.version == before:
                    await anyio.sleep(0.005)
            assert "more" in router.fleet.catalog.providers
            assert not answers.is_set(), "the file still hangs"
        finally:
            answers.set()
            writer.close()


async def test_a_worker_that_starts_late_never_asks_the_address_of_before(
    start_router: StartRouter,
) -> None:
    """Its settings are those that its parent loaded, however long ago."""
    async with gateway("old") as (old, old_url), gateway("new") as (_, new_url):
        write(old_url)
        router = Router(load_settings(**QUIET))
        write(new_url)
        async with router.running():
            assert [each.id for each in router.fleet.models()] == ["new"]
        assert old.seen == []


async def test_an_answer_from_the_address_of_before_says_nothing_of_this_one(
    start_router: StartRouter,
) -> None:
    asked, goes_on = asyncio.Event(), asyncio.Event()
    async with gateway("old") as (old, old_url):
        write(old_url)
        async with start_router(**QUIET) as router:

            async def late(exchange: Exchange) -> None:
                asked.set()
                await goes_on.wait()
                await old.pod.handle(exchange)

            old.listing = late
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(router.router.prober.look)
                await asked.wait()
                write(NEW)  # where nobody is
                await notice(router)
                assert await clusters(router) == {"llmd": "unreachable"}
                goes_on.set()
            assert await clusters(router) == {"llmd": "unreachable"}
