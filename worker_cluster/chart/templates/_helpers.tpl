{{/* Name of the release's objects. The picker is NAME-epp, as the upstream router chart calls it. */}}
{{- define "llmd.name" -}}
{{- default .Release.Name .Values.nameOverride | lower | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "llmd.epp" -}}
{{- if eq .Values.router.source "external" -}}
{{- .Values.router.external.release | lower | trunc 40 }}-epp
{{- else -}}
{{- include "llmd.name" . }}-epp
{{- end -}}
{{- end -}}

{{/* The InferencePool; upstream's chart calls it as its release. */}}
{{- define "llmd.poolName" -}}
{{- if eq .Values.router.source "external" }}{{ .Values.router.external.release }}{{ else }}{{ include "llmd.name" . }}{{ end -}}
{{- end -}}

{{/* Ports that nobody needs to choose; the picker's are the upstream chart's. */}}
{{- define "llmd.port.proxy" -}}8081{{- end -}}
{{- define "llmd.port.proxyHealth" -}}19001{{- end -}}
{{- define "llmd.port.admin" -}}19000{{- end -}}
{{- define "llmd.port.picker" -}}9002{{- end -}}
{{- define "llmd.port.pickerHealth" -}}9003{{- end -}}
{{- define "llmd.port.pickerMetrics" -}}9090{{- end -}}
{{/* Of the Gateway; its pods listen on the same one. */}}
{{- define "llmd.port.listener" -}}8000{{- end -}}
{{/* On which pods offer each other their KV cache. */}}
{{- define "llmd.port.nixl" -}}5600{{- end -}}
{{/* The engine's own port where the routing sidecar has the pod's. */}}
{{- define "llmd.port.behindSidecar" -}}8200{{- end -}}

{{- define "llmd.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: llm-d
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* What makes a pod a member of the pool; the picker and an InferencePool select by it. */}}
{{- define "llmd.poolLabels" -}}
llm-d.ai/guide: {{ include "llmd.name" . | quote }}
{{- end -}}

{{/* A model's name as a label has to be. */}}
{{- define "llmd.modelLabel" -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]+" .Values.model.name "-" | trunc 63 | trimAll "-._" | quote -}}
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

{{/* The pod of `helm test`, as a NetworkPolicyPeer: a client like others. */}}
{{- define "llmd.smokePeer" -}}
# helm test
- podSelector:
    matchLabels:
      app.kubernetes.io/instance: {{ .Release.Name | quote }}
      app.kubernetes.io/component: smoke
{{- end -}}

{{/* The CRDs without which mode gateway can't be installed, and what each defines. */}}
{{- define "llmd.gatewayCrds" -}}
gateways.gateway.networking.k8s.io: gateway.networking.k8s.io/v1/Gateway
httproutes.gateway.networking.k8s.io: gateway.networking.k8s.io/v1/HTTPRoute
inferencepools.inference.networking.k8s.io: inference.networking.k8s.io/v1/InferencePool
{{- if .Values.router.objectives }}
inferenceobjectives.llm-d.ai: llm-d.ai/v1alpha2/InferenceObjective
{{- end }}
{{- if eq .Values.gateway.className "istio" }}
destinationrules.networking.istio.io: networking.istio.io/v1/DestinationRule
{{- end }}
{{- end -}}

{{/* The body of the smoke test's request. */}}
{{- define "llmd.question" -}}
{{- $model := .Values.model.name -}}
{{- with .Values.model.servedNames }}{{ $model = first . }}{{ end -}}
{{- $message := dict "role" "user" "content" "Say hello." -}}
{{- dict "model" $model "max_tokens" 8 "messages" (list $message) | toJson -}}
{{- end -}}
