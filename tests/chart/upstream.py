"""What the llm-d Router v0.10.0 knows: names that are found at run time only, so a typo would show in a cluster."""

from __future__ import annotations

RELEASE = "v0.10.0"

PICKER_FLAGS = {
    "config-file",
    "enable-pprof",
    "endpoint-selector",
    "endpoint-target-ports",
    "grpc-health-port",
    "metrics-endpoint-auth",
    "metrics-port",
    "pool-group",
    "pool-name",
    "pool-namespace",
    "secure-serving",
    "tracing",
    "v",
    "zap-encoder",
}
"""Of `pkg/epp/server/options.go`, those that the chart uses."""

SIDECAR_FLAGS = {
    "enable-ssrf-protection",
    "inference-pool",
    "kv-connector",
    "model-server-port",
    "pool-group",
    "port",
    "secure-proxy",
}
"""Of `pkg/sidecar/proxy/options.go`; `vllm-port` is deprecated there."""

SIM_FLAGS = {
    "force-dummy-tokenizer",
    "inter-token-latency",
    "latency-calculator",
    "max-model-len",
    "max-num-seqs",
    "max-request-body-size-mb",
    "mode",
    "model",
    "port",
    "served-model-name",
    "time-to-first-token",
}
"""Of llm-d-inference-sim v0.10.2, `docs/configuration.md`."""

PLUGINS = {
    "active-request-scorer",
    "always-disagg-pd-decider",
    "approx-prefix-cache-producer",
    "concurrency-detector",
    "decode-filter",
    "disagg-profile-handler",
    "kv-cache-utilization-scorer",
    "max-score-picker",
    "no-hit-lru-scorer",
    "prefill-filter",
    "prefix-based-pd-decider",
    "prefix-cache-scorer",
    "queue-scorer",
    "single-profile-handler",
    "token-load-scorer",
    "utilization-detector",
}
"""Plug-ins of stability Beta (`cmd/epp/runner/runner.go`); Alpha ones need a flag, deprecated ones go."""

CONFIG_FIELDS = {
    "apiVersion",
    "kind",
    "featureGates",
    "flowControl",
    "plugins",
    "schedulingProfiles",
}
FLOW_CONTROL_FIELDS = {"maxBytes", "defaultRequestTTL"}
"""Of `apix/config/v1alpha1/endpointpickerconfig_types.go`, those that the chart uses."""

QUEUE_METRIC = "llm_d_epp_flow_control_queue_size"
"""Its label `inference_pool` is `--pool-name` (`cmd/epp/runner/runner.go`): empty with `--endpoint-selector`."""

CHART_LABELS = {
    "standalone": ("llm-d-router-standalone", "llm-d.ai/igw-mode", "llm-d-router-standalone"),
    "gateway": ("llm-d-router-gateway", "llm-d.ai/igw-mode", "llm-d-router-gateway"),
}
"""By mode: the label whose value is `RELEASE-epp`, the other label and its value
(`config/charts/routerlib/templates/_helpers.tpl`)."""

CHART_PROXY_PORT = 8081
"""On which the proxy of upstream's chart listens (`llm-d-router-standalone/values.yaml`)."""

_SHARED = {
    "router.modelServers.matchLabels.llm-d\\.ai/guide",
    "router.modelServers.targetPorts[0].number",
}
CHART_VALUES = {
    "standalone": {*_SHARED, "router.inferencePool.create"},
    "gateway": {
        *_SHARED,
        "httpRoute.create",
        "httpRoute.inferenceGatewayName",
        "httpRoute.requestTimeout",
        "provider.name",
    },
}
"""Values of upstream's charts that our notes set, by mode (`config/charts/*/values.yaml`)."""
