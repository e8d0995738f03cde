{{/*
What the endpoint picker goes by: an EndpointPickerConfig, which it reads at its start only.

The plug-ins are those of upstream's defaults for the router release in Chart.yaml; unknown ones, and unknown
fields, keep a picker from starting.
*/}}
{{- define "llmd.pickerConfig" -}}
{{- if .Values.router.epp.pluginsConfig -}}
{{ .Values.router.epp.pluginsConfig }}
{{- else -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: queue-scorer
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
{{- end -}}
{{- end -}}
