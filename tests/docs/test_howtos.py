"""The plug-ins that the how-tos show: they are found by their name, and keep their seam's contract."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.docs.playground import Done, Playground
from tests.docs.snippets import snippets

HOWTOS = Path(__file__).parents[2] / "docs" / "howto"


def plug_in(page: str) -> str:
    """Return the module that a page shows."""
    path = HOWTOS / page
    (found,) = [one.text for one in snippets(path, path.read_text()) if one.language == "python"]
    return found


def run(place: Path, folder: Path, module: str, use: str) -> Done:
    """Run a module and what uses it in a process of its own, so that it is registered nowhere else."""
    return Playground(place, folder / "checkout").run(f"{module}\n{dedent(use)}", "python")


@pytest.mark.slow
def test_the_policy_keeps_a_key_on_an_endpoint(place: Path, tmp_path: Path) -> None:
    use = """
    from router.domain import KeyId, ModelName
    from tests.router.test_policies import candidate

    assert "by_key" in POLICIES
    policy = POLICIES["by_key"](Random(0))
    many = [candidate(name, in_flight=n) for n, name in enumerate("abcdefgh")]
    later, suspect = candidate("later", priority=200), candidate("lost", is_suspect=True)

    def first(key, candidates):
        facts = RequestFacts(
            request_id="r", model=ModelName("m"), stream=False, path="/p", key_id=KeyId(key)
        )
        order = [one.candidate for one in policy.rank(facts, [later, suspect, *candidates])]
        assert order[-2:] == [later, suspect]
        assert sorted(map(id, order)) == sorted(map(id, [later, suspect, *candidates]))
        return order[0].deployment.endpoint.id

    keys = [f"key-{n}" for n in range(200)]
    before = {key: first(key, many) for key in keys}
    assert before == {key: first(key, many[::-1]) for key in keys}
    assert set(before.values()) == set("abcdefgh")
    after = {key: first(key, many[1:]) for key in keys}  # a is gone: only its keys move
    assert all(after[key] == before[key] for key in keys if before[key] != "a")
    """
    done = run(place, tmp_path, plug_in("policy.md"), use)
    assert done.code == 0, done.output


def test_the_engine_keeps_the_contract_of_all(place: Path, tmp_path: Path) -> None:
    use = """
    from tests.local_agent import test_engines as contract

    good = Deployment(model="org/m", engine="llama_server", weights=contract.WEIGHTS)
    contract.GOOD["llama_server"] = good
    contract.test_the_contract_covers_every_engine()
    contract.test_an_engine_is_a_pure_description("llama_server")
    contract.test_an_engine_says_what_it_speaks_and_how_much_it_takes("llama_server")
    engine = ENGINES["llama_server"]
    assert engine.unsupported_reason(contract.HOST, good) is None
    assert engine.parse_load(contract.LLAMA_CPP) == EngineLoad(running=2, waiting=1)
    assert "GGUF" in engine.unsupported_reason(contract.HOST, Deployment(model="m", engine="x"))
    """
    done = run(place, tmp_path, plug_in("engine.md"), use)
    assert done.code == 0, done.output
