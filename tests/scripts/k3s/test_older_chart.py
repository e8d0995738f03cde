"""A release that an older chart made: what Kubernetes does not change in place is made anew, with consent."""

from __future__ import annotations

import pytest

from tests.scripts.k3s import fakes
from tests.scripts.k3s.stage import Stage, said

# as the API server says it; before it stands what helm 3, and helm 4 with server-side apply, say
_EPP = (
    'Deployment.apps "llm-d-epp" is invalid: spec.selector: Invalid value: v1.LabelSelector{MatchLabels:'
    'map[string]string{"app.kubernetes.io/component":"endpoint-picker"}, '
    "MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable"
)
_DECODE = _EPP.replace("llm-d-epp", "llm-d-decode")
_STORIES = {
    f'cannot patch "llm-d-epp" with kind Deployment: {_EPP}': "llm-d-epp",
    f"server-side apply failed for object llm-d/llm-d-epp apps/v1, Kind=Deployment: {_EPP}": "llm-d-epp",
    f'cannot patch "llm-d-decode" with kind Deployment: {_DECODE}\n'
    f'cannot patch "llm-d-epp" with kind Deployment: {_EPP}': "llm-d-decode llm-d-epp",
}
_HELM = """
case "$*" in *" upgrade --install "*) [ ! -f "$STAGE/older" ] || { cat "$STAGE/older" >&2; exit 1; } ;; esac
"""
_KUBECTL = """
case "$*" in *" delete deployment "*) rm -f "$STAGE/older"; exit 0 ;; esac
"""


def older(stage: Stage, story: str) -> None:
    """Let a release be there whose change fails until what is in the way was deleted."""
    assert stage.up() == 0
    stage.forget()
    (stage.folder / "older").write_text(f"Error: UPGRADE FAILED: {story}")
    stage.program("helm", _HELM + fakes.PROGRAMS["helm"])
    stage.program("kubectl", _KUBECTL + fakes.PROGRAMS["kubectl"])
    info = {"status": "failed", "description": f'Upgrade "llm-d" failed: {story}'}
    stage.says("helm", "*status llm-d*", {"name": "llm-d", "info": info})


@pytest.mark.parametrize(("story", "names"), _STORIES.items())
def test_it_is_made_anew_with_consent(
    stage: Stage, capsys: pytest.CaptureFixture[str], story: str, names: str
) -> None:
    older(stage, story)
    said(capsys)
    delete = f"delete deployment {names} --namespace llm-d --cascade=foreground --timeout=180s"
    assert stage.run("up") == 1, "without a terminal nothing is agreed to"
    assert stage.ran("delete") == []
    for out in (said(capsys)[0], (stage.run("doctor"), said(capsys)[0])[1]):
        assert "An older chart made" in out
        assert f"{delete} && make k3s-up" in out
    assert stage.run("up", "--yes") == 0
    assert [delete in line for line in stage.ran(" delete ")] == [True]
    assert len(stage.ran("upgrade --install")) == 3


def test_what_stays_in_the_way_is_deleted_once(stage: Stage) -> None:
    older(stage, next(iter(_STORIES)))
    stage.says("kubectl", "*delete deployment*")
    assert stage.run("up", "--yes") == 1
    assert len(stage.ran("delete deployment")) == 1


def test_a_volume_is_never_deleted(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    claim = (
        'PersistentVolumeClaim "llm-d-model-cache" is invalid: spec: Forbidden: field is immutable'
    )
    older(stage, f'Deployment.apps "llm-d-epp" is invalid: spec.replicas: not a number, {claim}')
    assert stage.run("up", "--yes") == 1
    assert stage.ran(" delete ") == []
