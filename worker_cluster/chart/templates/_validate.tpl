{{/*
What values.schema.json cannot say, or not so that one knows what to do. Each message names the value and a way out.
*/}}
{{- define "llmd.validate" -}}
{{- include "llmd.validate.images" . -}}
{{- include "llmd.validate.router" . -}}
{{- include "llmd.validate.engine" . -}}
{{- include "llmd.validate.capacity" . -}}
{{- include "llmd.validate.rest" . -}}
{{- end -}}

{{- define "llmd.validate.images" -}}
{{- $images := dict
  "engine.image.sim" .Values.engine.image.sim
  "engine.image.vllm" .Values.engine.image.vllm
  "engine.image.vllm-cpu" (index .Values.engine.image "vllm-cpu")
  "disaggregation.sidecarImage" .Values.disaggregation.sidecarImage
  "router.epp.image" .Values.router.epp.image
  "router.proxy.image" .Values.router.proxy.image
  "test.image" .Values.test.image -}}
{{- range $key, $image := $images -}}
{{- if hasSuffix ":latest" $image -}}
{{- fail (printf "%s=%s: name a version or a digest; what `latest` is changes under running pods" $key $image) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmd.validate.router" -}}
{{- $v := .Values -}}
{{- if eq $v.mode "none" -}}
{{- if $v.disaggregation.enabled -}}
{{- fail "disaggregation.enabled=true needs a router that tells pods apart: set mode=standalone or mode=gateway" -}}
{{- end -}}
{{- if eq $v.router.source "external" -}}
{{- fail "router.source=external has no meaning with mode=none: set mode=standalone or mode=gateway" -}}
{{- end -}}
{{- if $v.router.flowControl.enabled -}}
{{- fail "router.flowControl.enabled=true needs the picker: set mode=standalone or mode=gateway" -}}
{{- end -}}
{{- end -}}
{{- if gt (int $v.router.epp.replicas) 1 -}}
{{- fail (printf "router.epp.replicas=%d: of several pickers only the one that leads is ever ready, so that `helm --wait` and the Deployment would wait for the others for ever. Set 1: Kubernetes starts another one when it ends" (int $v.router.epp.replicas)) -}}
{{- end -}}
{{- if and $v.router.objectives (ne $v.mode "gateway") -}}
{{- fail "router.objectives are InferenceObjectives, which belong to an InferencePool: set mode=gateway" -}}
{{- end -}}
{{- if eq $v.router.source "external" -}}
{{- if or $v.router.objectives $v.router.epp.pluginsConfig -}}
{{- fail "router.source=external: set objectives and plug-ins in upstream's chart" -}}
{{- end -}}
{{- if eq $v.router.external.release .Release.Name -}}
{{- fail (printf "router.external.release=%s is this release's own name: upstream's chart needs a release of its own" .Release.Name) -}}
{{- end -}}
{{- end -}}
{{- if $v.router.flowControl.enabled -}}
{{- $ttl := trimSuffix "s" $v.router.flowControl.defaultRequestTTL | atoi -}}
{{- $idle := trimSuffix "s" $v.router.proxy.streamIdleTimeout | atoi -}}
{{- if and (eq $v.mode "standalone") (ge $ttl $idle) -}}
{{- fail (printf "router.flowControl.defaultRequestTTL=%ds has to be below router.proxy.streamIdleTimeout=%ds: the proxy would cut requests that still wait" $ttl $idle) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmd.validate.engine" -}}
{{- $v := .Values -}}
{{- $isSim := eq $v.engine.type "sim" -}}
{{- if and $isSim (kindIs "string" $v.model.maxModelLen) -}}
{{- fail "model.maxModelLen=auto needs engine.type=vllm or vllm-cpu: the simulator has no memory to fill" -}}
{{- end -}}
{{- if and $isSim $v.secrets.apiKey.existingSecret -}}
{{- fail "secrets.apiKey needs engine.type=vllm or vllm-cpu: the simulator asks nobody for a key" -}}
{{- end -}}
{{- if and $v.disaggregation.enabled (eq $v.engine.type "vllm-cpu") -}}
{{- fail "disaggregation.enabled=true needs engine.type=vllm (or sim): CPUs have no connector for KV caches" -}}
{{- end -}}
{{- $port := int $v.modelServer.port -}}
{{- if and $v.disaggregation.enabled (eq $port (include "llmd.port.behindSidecar" . | int)) -}}
{{- fail (printf "modelServer.port=%d is the engine's own port behind the sidecar: choose another one" $port) -}}
{{- end -}}
{{- if and $v.disaggregation.enabled (not $isSim) (eq $port (include "llmd.port.nixl" . | int)) -}}
{{- fail (printf "modelServer.port=%d is the port by which pods offer each other their KV cache: choose another one" $port) -}}
{{- end -}}
{{- $gpus := int $v.modelServer.gpu.count -}}
{{- $parts := int $v.modelServer.tensorParallelSize -}}
{{- if and (eq $v.engine.type "vllm") (gt $gpus 0) (gt $parts $gpus) -}}
{{- fail (printf "modelServer.tensorParallelSize=%d needs as many GPUs: modelServer.gpu.count=%d" $parts $gpus) -}}
{{- end -}}
{{- if ge (int $v.modelServer.drainSeconds) (int $v.modelServer.terminationGracePeriodSeconds) -}}
{{- fail (printf "modelServer.drainSeconds=%d has to be below modelServer.terminationGracePeriodSeconds=%d" (int $v.modelServer.drainSeconds) (int $v.modelServer.terminationGracePeriodSeconds)) -}}
{{- end -}}
{{- if and $v.secrets.hfToken.create (not $v.secrets.hfToken.value) -}}
{{- fail "secrets.hfToken.create=true needs secrets.hfToken.value; better make the Secret yourself and name it in secrets.hfToken.existingSecret" -}}
{{- end -}}
{{- if and $v.secrets.hfToken.create $v.secrets.hfToken.existingSecret -}}
{{- fail "secrets.hfToken: either create or existingSecret" -}}
{{- end -}}
{{- if and $v.secrets.hfToken.value (not $v.secrets.hfToken.create) -}}
{{- fail "secrets.hfToken.value is used with secrets.hfToken.create=true only" -}}
{{- end -}}
{{- end -}}

{{/* Tokens of KV cache that the GPUs of one model server have room for: vLLM needs one whole request's. */}}
{{- define "llmd.validate.capacity" -}}
{{- $v := .Values -}}
{{- $c := $v.capacityCheck -}}
{{- if and $c.enabled (eq $v.engine.type "vllm") (not (kindIs "string" $v.model.maxModelLen)) -}}
{{- range $key := list "gpuMemoryGiB" "weightsGiB" "kvKiBPerToken" -}}
{{- if not (gt (float64 (index $c $key)) 0.0) -}}
{{- fail (printf "capacityCheck.enabled=true needs capacityCheck.%s" $key) -}}
{{- end -}}
{{- end -}}
{{- $gpus := float64 $v.modelServer.tensorParallelSize -}}
{{- $usable := mulf (subf (mulf $c.gpuMemoryGiB $v.model.gpuMemoryUtilization) $c.overheadGiB) $gpus -}}
{{- $free := subf $usable $c.weightsGiB -}}
{{- if not (gt $free 0.0) -}}
{{- fail (printf "capacityCheck: %v GiB of weights do not fit into %.1f GiB of GPU memory: take more or bigger GPUs, or a quantised model" $c.weightsGiB $usable) -}}
{{- end -}}
{{- $fits := int64 (floor (divf (mulf $free 1048576.0) $c.kvKiBPerToken)) -}}
{{- if gt (int64 $v.model.maxModelLen) $fits -}}
{{- fail (printf "model.maxModelLen=%d does not fit: %.1f GiB are left for the KV cache, about %d tokens. Set model.maxModelLen=%d or less, or auto, or take more GPUs or a quantised model" (int64 $v.model.maxModelLen) $free $fits $fits) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llmd.validate.rest" -}}
{{- $v := .Values -}}
{{- if not (regexMatch "^[a-z]" (include "llmd.name" .)) -}}
{{- fail (printf "a Service's name begins with a letter: set nameOverride, since the release is called %s" .Release.Name) -}}
{{- end -}}
{{- if and $v.service.nodePort (ne $v.service.type "NodePort") -}}
{{- fail (printf "service.nodePort=%d needs service.type=NodePort" (int $v.service.nodePort)) -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas=%d is above autoscaling.maxReplicas=%d" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "keda") (not $v.autoscaling.prometheusAddress) -}}
{{- fail "autoscaling.kind=keda needs autoscaling.prometheusAddress, for example http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- end -}}
{{- end -}}
