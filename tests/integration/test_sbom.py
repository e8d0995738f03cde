"""`make sbom`: the packages of the images, as a program that looks for vulnerable ones reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared import __version__
from tests.integration.stack import ROOT, missing, output_of
from tests.scripts.test_container_files import locked

pytestmark = pytest.mark.integration


def made(folder: Path) -> dict[str, Any]:
    """Make both and return them by name."""
    try:
        said = output_of(["sh", "scripts/sbom.sh", str(folder)], limit_s=300)
    except AssertionError as error:
        if "cyclonedx-bom" in str(error):
            missing(f"cyclonedx-bom from the package index: {str(error)[-300:]}")
        raise
    names = ("router", "agent")
    files = [
        folder / f"intelligent_inference_router-{__version__}-{name}.cdx.json" for name in names
    ]
    assert said.splitlines() == [str(file) for file in files]
    assert sorted(folder.iterdir()) == sorted(files)
    return {name: json.loads(file.read_text()) for name, file in zip(names, files, strict=True)}


def test_an_sbom_names_each_locked_package_with_its_hashes(tmp_path: Path) -> None:
    for name, found in made(tmp_path / "a").items():
        assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
        described = found["metadata"]["component"]
        assert described["name"] == "intelligent-inference-router"
        assert (described["type"], described["version"]) == ("application", __version__)
        assert "Apache-2.0" in json.dumps(described["licenses"])
        packages = {
            one["name"]: (
                one["version"],
                sorted(
                    f"sha256:{digest['content']}"
                    for reference in one["externalReferences"]
                    for digest in reference["hashes"]
                    if digest["alg"] == "SHA-256"
                ),
            )
            for one in found["components"]
        }
        expected = {
            package: (version, sorted(hashes))
            for package, (version, hashes) in locked(name).items()
        }
        assert packages == expected
        assert {one["purl"] for one in found["components"]} == {
            f"pkg:pypi/{package}@{version}" for package, (version, _) in expected.items()
        }


def test_an_sbom_is_the_same_each_time_and_names_no_place(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert first == second
    text = json.dumps(first)
    for place in (str(ROOT), str(tmp_path), str(Path.home())):
        assert place not in text
