{{/*
What the endpoint picker goes by: an EndpointPickerConfig, which it reads at its start only.

Plug-ins and weights are upstream's defaults for the router release in Chart.yaml. Unknown plug-ins and unknown
fields keep a picker from starting, so both are pinned together. What upstream adds by itself (parsers, pickers,
metrics, the saturation detector) is not repeated.
*/}}
{{- define "llmd.pickerConfig" -}}
{{- $v := .Values -}}
{{- if $v.router.epp.pluginsConfig -}}
{{ $v.router.epp.pluginsConfig }}
{{- else -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
{{- if $v.router.flowControl.enabled }}
featureGates:
  - flowControl
flowControl:
  maxBytes: {{ $v.router.flowControl.maxBytes | quote }}
  defaultRequestTTL: {{ $v.router.flowControl.defaultRequestTTL | quote }}
{{- end }}
plugins:
  - type: queue-scorer
  - type: kv-cache-utilization-scorer
  - type: prefix-cache-scorer
  {{- if $v.disaggregation.enabled }}
  - type: prefill-filter
  - type: decode-filter
  # short prompts, and those whose start a pod knows, are not worth a transfer
  - type: prefix-based-pd-decider
    parameters:
      nonCachedTokens: {{ int64 $v.disaggregation.minPromptTokens }}
  - type: disagg-profile-handler
    parameters:
      deciders:
        prefill: prefix-based-pd-decider
  {{- end }}
schedulingProfiles:
  {{- if $v.disaggregation.enabled }}
  - name: prefill
    plugins:
      - pluginRef: prefill-filter
      {{- include "llmd.scorers" . | nindent 6 }}
  - name: decode
    plugins:
      - pluginRef: decode-filter
      {{- include "llmd.scorers" . | nindent 6 }}
  {{- else }}
  - name: default
    plugins:
      {{- include "llmd.scorers" . | nindent 6 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "llmd.scorers" -}}
- pluginRef: queue-scorer
  weight: 2
- pluginRef: kv-cache-utilization-scorer
  weight: 2
- pluginRef: prefix-cache-scorer
  weight: 3
{{- end -}}
