"""Ways to install the chart: its profiles, and those in which everything else is switched on."""

from __future__ import annotations

from collections.abc import Mapping

PROFILES = ("sim", "cpu", "gpu-small", "gpu-pd", "gateway-agentgateway", "gateway-istio")

_PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
_SWITCHED_ON: Mapping[str, object] = {
    "metrics": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "annotations": True,
    },
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {"enabled": True, "clients": [_PEER], "allowFrom": [_PEER]},
    "imagePullSecrets": [{"name": "registry"}],
    "service": {"annotations": {"example.com/team": "inference"}},
}
_VLLM: Mapping[str, object] = {
    "engine": {"type": "vllm"},
    "model": {"name": "org/Model-1B", "revision": "0a1b2c3", "servedNames": ["one", "two"]},
    "secrets": {
        "hfToken": {"existingSecret": "llm-d-hf-token", "mountAs": "file"},
        "apiKey": {"existingSecret": "llm-d-key"},
    },
    "modelCache": {"enabled": True, "storageClassName": "fast"},
    "modelServer": {
        "gpu": {"count": 2, "runtimeClassName": "nvidia"},
        "tensorParallelSize": 2,
        "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}],
        "podAnnotations": {"example.com/owner": "me"},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "podSecurityContext": {"fsGroup": 2000},
        "containerSecurityContext": {"runAsUser": 2000},
    },
}
KEDA = {"enabled": True, "prometheusAddress": "http://prometheus.monitoring:9090"}
_OBJECTIVES = [{"name": "premium", "priority": 100}, {"name": "batch", "priority": -10}]

MORE: Mapping[str, Mapping[str, object]] = {
    "defaults": {},
    "none": {"mode": "none", **_SWITCHED_ON},
    "standalone-all": {
        **_SWITCHED_ON,
        **_VLLM,
        "autoscaling": KEDA,
        "router": {"flowControl": {"enabled": True}},
    },
    "gateway-all": {
        "mode": "gateway",
        **_SWITCHED_ON,
        **_VLLM,
        "disaggregation": {"enabled": True},
        "autoscaling": {"enabled": True, "kind": "hpa"},
        "gateway": {"className": "istio"},
        "router": {"flowControl": {"enabled": True}, "objectives": _OBJECTIVES},
    },
    "sim-disaggregated": {"disaggregation": {"enabled": True}, "autoscaling": KEDA},
    "token-made": {
        "engine": {"type": "vllm-cpu"},
        "model": {"maxModelLen": "auto"},
        "secrets": {"hfToken": {"create": True, "value": "hf_made_up"}},
    },
    "external": {"router": {"source": "external"}, **_SWITCHED_ON},
    "external-gateway": {"mode": "gateway", "router": {"source": "external"}},
    "node-port": {
        "service": {"type": "NodePort", "nodePort": 30800},
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}, "data": {}}
        ],
    },
}
ALL = (*PROFILES, *MORE)
