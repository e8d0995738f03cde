{{/* Name of the release's objects. The picker is NAME-epp, as the upstream router chart calls it. */}}
{{- define "llmd.name" -}}
{{- default .Release.Name .Values.nameOverride | lower | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "llmd.epp" -}}
{{- include "llmd.name" . }}-epp
{{- end -}}

{{/* Ports that nobody needs to choose; the picker's are the upstream chart's. */}}
{{- define "llmd.port.proxy" -}}8081{{- end -}}
{{- define "llmd.port.proxyHealth" -}}19001{{- end -}}
{{- define "llmd.port.admin" -}}19000{{- end -}}
{{- define "llmd.port.picker" -}}9002{{- end -}}
{{- define "llmd.port.pickerHealth" -}}9003{{- end -}}
{{- define "llmd.port.pickerMetrics" -}}9090{{- end -}}
{{/* The engine's own port where the routing sidecar has the pod's. */}}
{{- define "llmd.port.behindSidecar" -}}8200{{- end -}}

{{- define "llmd.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: llm-d
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* What makes a pod a member of the pool; the picker and an InferencePool select by it. */}}
{{- define "llmd.poolLabels" -}}
llm-d.ai/guide: {{ include "llmd.name" . }}
{{- end -}}

{{/* The pods that listen on the Service's behalf, by mode: the upstream router charts' labels. */}}
{{- define "llmd.routerLabels" -}}
{{- if eq .Values.mode "gateway" -}}
llm-d-router-gateway: {{ include "llmd.epp" . }}
{{- else -}}
llm-d-router-standalone: {{ include "llmd.epp" . }}
{{- end -}}
{{- end -}}

{{/* Whether picker and proxy are this chart's. */}}
{{- define "llmd.hasRouter" -}}
{{- and (ne .Values.mode "none") (eq .Values.router.source "builtin") -}}
{{- end -}}
