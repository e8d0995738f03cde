"""A router that runs takes what `.env` says of `LLMD_ENDPOINT`: another address, the first one, none any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.domain import Provider, Zone
from router.fleet.address_follower import AddressFollower
from router.fleet.endpoints import ProviderEndpoints
from router.settings import Settings, load_settings
from router.store.catalog import add_provider, list_providers, update_provider
from router.store.known_models import list_known_models
from tests.router.gateway import gateway
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, error_of

pytestmark = pytest.mark.usefixtures("home")

ENV = Path(".env")  # of the test's own folder


def write(address: str | None, *more: str) -> None:
    """Write `.env` as an editor does: another file in its place."""
    lines = [*more, *([f"LLMD_ENDPOINT={address}"] if address else [])]
    draft = Path("draft")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(ENV)


def overwrite(text: str) -> None:
    ENV.write_text(text)


def loop_of_links() -> None:
    """Make it what nobody can read, root neither."""
    ENV.unlink()
    ENV.symlink_to(ENV.name)


def remove() -> None:
    ENV.unlink()


async def notice(router: RunningRouter) -> None:
    """Let the router look at `.env` until it has come to rest, at its registry, and at its clusters."""
    await router.router.address.look()
    await router.router.address.look()
    await router.catch_up()
    await router.router.prober.look_at_new()


async def clusters(router: RunningRouter) -> dict[str, str]:
    found: dict[str, str] = (await router.client.get("/readyz")).json().get("clusters", {})
    return found


async def models(router: RunningRouter) -> list[str]:
    return [each["id"] for each in (await router.client.get("/v1/models")).json()["data"]]


def log_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return "".join(capsys.readouterr()).splitlines()


QUIET = {"router_catalog_poll_s": 3600.0, "router_probe_s": 3600.0}


async def test_the_first_address_serves_without_a_restart_and_is_the_same_cluster_after_one(
    start_router: StartRouter,
) -> None:
    async with gateway("org/tiny") as (found, url):
        async with start_router(**QUIET) as router:
            assert await clusters(router) == {}
            write(url)
            await notice(router)
            assert await clusters(router) == {"llmd": "ready"}
            answer = await router.client.post(CHAT, json=chat("org/tiny"))
            assert answer.status_code == 200, answer.text
            assert len(found.requests) == 1
            rows = router.write(list_providers)
        async with start_router(**QUIET) as router:
            assert await clusters(router) == {"llmd": "ready"}
            assert router.write(list_providers) == rows
            assert await models(router) == ["org/tiny"]


async def test_another_address_takes_the_requests_and_none_keeps_the_names(
    start_router: StartRouter,
) -> None:
    async with gateway("org/tiny") as (old, old_url), gateway("org/tiny", "new") as (new, new_url):
        write(old_url)
        async with start_router(**QUIET) as router:
            await router.client.post(CHAT, json=chat("org/tiny"))
            write(new_url, "LLMD_API_KEY=other")
            await notice(router)
            answer = await router.client.post(CHAT, json=chat("org/tiny"))
            assert answer.status_code == 200, answer.text
            assert (len(old.requests), len(new.requests)) == (1, 1)
            assert new.requests[0].header("authorization") == "Bearer other"
            assert await models(router) == ["new", "org/tiny"]
            write(None)
            await notice(router)
            assert await clusters(router) == {}
            assert await models(router) == []
            refused = await router.client.post(CHAT, json=chat("org/tiny"))
            assert error_of(refused)["code"] == "provider_not_configured"
            assert ".env" in error_of(refused)["message"]
            remove()
            await notice(router)
            assert await clusters(router) == {}


async def test_what_else_env_says_changes_nothing(start_router: StartRouter) -> None:
    async with gateway() as (found, url):
        write(url)
        async with start_router(**QUIET) as router:
            looks = found.probes
            write(url, "ROUTER_PORT=9", "LOG_LEVEL=debug")
            await notice(router)
            assert await clusters(router) == {"llmd": "ready"}
            assert found.probes == looks, "it is the same cluster, which was asked already"


async def test_the_environment_beats_it(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway() as (found, url):
        monkeypatch.setenv("LLMD_ENDPOINT", url)
        async with start_router(**QUIET) as router:
            write("http://127.0.0.1:9")
            await notice(router)
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
            assert len(found.requests) == 1


async def test_a_flag_beats_it_too(start_router: StartRouter) -> None:
    async with gateway() as (found, url), start_router(llmd_endpoint=url, **QUIET) as router:
        write("http://127.0.0.1:9")
        await notice(router)
        assert (await router.client.post(CHAT, json=chat())).status_code == 200
        assert len(found.requests) == 1


async def test_a_file_that_cannot_be_read_leaves_the_router_as_it_was(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway() as (_, url):
        write(url)
        async with start_router(**QUIET) as router:
            loop_of_links()
            await notice(router)
            await notice(router)
            assert await clusters(router) == {"llmd": "ready"}
            assert "".join(capsys.readouterr()).count("llmd_endpoint_not_taken") == 1
            remove()
            await notice(router)
            assert await clusters(router) == {}


@pytest.mark.parametrize("line", ["ftp://x", "http://x:1/other", "http://[x"])
async def test_an_address_that_is_none_leaves_the_router_as_it_was(
    start_router: StartRouter, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway() as (_, url):
        write(url)
        async with start_router(**QUIET) as router:
            write(line)
            await notice(router)
            await notice(router)
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
            [said] = [line for line in log_of(capsys) if "settings_not_taken" in line]
            assert "the setting LLMD_ENDPOINT is not valid: the address" in said
            assert "write it as http://HOST:PORT" in said
            write(None)
            await notice(router)
            assert await clusters(router) == {}


async def test_a_file_that_is_still_written_is_not_read(start_router: StartRouter) -> None:
    async with gateway() as (_, url):
        write(url)
        async with start_router(**QUIET) as router:
            overwrite("")  # an editor that empties the file first
            await router.router.address.look()
            assert await clusters(router) == {"llmd": "ready"}
            overwrite(f"LLMD_ENDPOINT={url}\n# more\n")
            await notice(router)
            assert await clusters(router) == {"llmd": "ready"}


async def test_a_name_that_another_dialect_has_is_left_to_it(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start_router(**QUIET) as router:
        other = Provider(name="llmd", dialect="openai", base_url="http://x", zone=Zone.LOCAL)
        router.write(lambda c: add_provider(c, other))
        write("http://127.0.0.1:9")
        await notice(router)
        assert await clusters(router) == {}
        assert "llmd_endpoint_ignored" in "".join(capsys.readouterr())


async def test_a_further_cluster_that_moved_keeps_its_names_and_is_asked_anew(
    start_router: StartRouter,
) -> None:
    """Also if it is away at its new address when a router starts: no prefix rule gets its names."""
    async with gateway("gpt-private") as (old, old_url), gateway("more") as (new, new_url):
        async with start_router(**QUIET) as router:
            east = Provider(name="east", dialect="llmd", base_url=old_url, zone=Zone.CLUSTER)
            router.write(lambda c: add_provider(c, east))
            await notice(router)
            assert await models(router) == ["gpt-private"]
            await router.router.memory.flush()
            moved = replace(east, base_url=new_url)
            router.write(lambda c: update_provider(c, moved))
            await notice(router)
            assert await models(router) == ["gpt-private", "more"]
            answer = await router.client.post(CHAT, json=chat("more"))
            assert (answer.headers["x-iir-endpoint"], len(new.requests)) == ("east", 1)
            assert old.requests == []
            await router.router.memory.flush()
            known = [each.model.id for each in router.write(list_known_models)]
            assert known == ["gpt-private", "more"]
            nowhere = replace(east, base_url="http://127.0.0.1:9")
            router.write(lambda c: update_provider(c, nowhere))
        async with start_router(**QUIET) as router:
            answer = await router.client.post(CHAT, json=chat("gpt-private"))
            assert error_of(answer)["code"] == "upstream_unreachable"
            assert (
                answer.headers["x-iir-endpoint"] == "east"
            ), "not OpenAI, where a rule sends gpt-…"


class Row:
    """A registry that is locked for the first few times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def admit(self) -> bool:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("database is locked")
        return True


async def test_a_registry_that_is_locked_is_asked_again(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start_router(**QUIET) as router:
        settings = load_settings()
        endpoints = ProviderEndpoints(settings)
        follower = AddressFollower(settings, endpoints, router.router.fleet, Row(2))
        write("http://127.0.0.1:9")
        for address in (None, None, None, "http://127.0.0.1:9"):
            await follower.look()
            assert endpoints.llmd_endpoint == address
        assert "".join(capsys.readouterr()).count("llmd_endpoint_not_taken") == 1


def test_a_worker_that_starts_late_knows_that_its_settings_are_old(tmp_path: Path) -> None:
    """Workers get the settings that their parent loaded, however long ago."""
    import pickle  # noqa: PLC0415 - as multiprocessing hands them over

    write("http://127.0.0.1:9")
    settings = load_settings(router_port=1)
    write("http://127.0.0.1:10")
    late: Settings = pickle.loads(pickle.dumps(settings))
    assert late.stamp != late.stamp_now()
    assert late.llmd_endpoint_now() == "http://127.0.0.1:10"
