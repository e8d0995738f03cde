from __future__ import annotations

from local_agent.host import host_facts


def test_facts_of_this_host() -> None:
    facts = host_facts(("json", "no_such_module_anywhere"))
    assert facts.platform in {"linux", "darwin"}
    assert facts.arch
    assert facts.memory_mb > 100
    assert facts.modules == {"json"}


def test_modules_that_engines_ask_for_are_looked_for() -> None:
    assert host_facts().modules <= {"xllamacpp"}
