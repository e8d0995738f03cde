{{/* What model servers are started with. */}}

{{- define "llmd.isSim" -}}
{{- eq .Values.engine.type "sim" -}}
{{- end -}}

{{/* Numbers of a million and more would be written as 1e+06. */}}
{{- define "llmd.maxModelLen" -}}
{{- $asked := .Values.model.maxModelLen -}}
{{- if kindIs "string" $asked }}{{ $asked }}{{ else }}{{ int64 $asked }}{{ end -}}
{{- end -}}

{{/* Arguments; takes the root context and the port. */}}
{{- define "llmd.engineArgs" -}}
{{- $root := index . 0 -}}
{{- $port := index . 1 -}}
{{- $v := $root.Values -}}
{{- if eq (include "llmd.isSim" $root) "true" -}}
- --model
- {{ $v.model.name | quote }}
- --port={{ $port }}
- --max-model-len={{ include "llmd.maxModelLen" $root }}
- --max-num-seqs={{ int64 $v.model.maxNumSeqs }}
- --mode={{ $v.sim.mode }}
- --latency-calculator=constant
- --time-to-first-token={{ $v.sim.ttft }}
- --inter-token-latency={{ $v.sim.itl }}
# no tokenizer is fetched, nothing is asked outside the cluster
- --force-dummy-tokenizer
- --max-request-body-size-mb=64
{{- else -}}
- {{ $v.model.name | quote }}
- --port={{ $port }}
- --max-model-len={{ include "llmd.maxModelLen" $root }}
- --max-num-seqs={{ int64 $v.model.maxNumSeqs }}
- --dtype={{ $v.model.dtype }}
- --disable-access-log-for-endpoints=/health,/metrics,/v1/models
{{- with $v.model.revision }}
- --revision={{ . }}
{{- end }}
{{- if eq $v.engine.type "vllm" }}
- --gpu-memory-utilization={{ $v.model.gpuMemoryUtilization }}
- --tensor-parallel-size={{ int64 $v.modelServer.tensorParallelSize }}
{{- end }}
{{- if $v.disaggregation.enabled }}
- {{ `--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}` | quote }}
{{- end }}
{{- end }}
{{- with $v.model.servedNames }}
- --served-model-name
{{- range . }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- range $v.model.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "llmd.engineEnv" -}}
{{- $v := .Values -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- if ne (include "llmd.isSim" .) "true" }}
# Python looks the user up; images have no entry for arbitrary ones
- name: USER
  value: llm-d
- name: HF_HOME
  value: {{ $v.modelCache.mountPath }}
# compiled kernels outlive a container as well
- name: VLLM_CACHE_ROOT
  value: {{ $v.modelCache.mountPath }}/vllm
- name: TRITON_CACHE_DIR
  value: {{ $v.modelCache.mountPath }}/triton
- name: VLLM_NO_USAGE_STATS
  value: "1"
- name: HF_HUB_DISABLE_TELEMETRY
  value: "1"
{{- if eq $v.engine.type "vllm-cpu" }}
- name: VLLM_CPU_KVCACHE_SPACE
  value: {{ $v.modelServer.cpuKvCacheGiB | quote }}
{{- end }}
{{- if $v.disaggregation.enabled }}
- name: VLLM_NIXL_SIDE_CHANNEL_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: VLLM_NIXL_SIDE_CHANNEL_PORT
  value: {{ include "llmd.port.nixl" . | quote }}
{{- end }}
{{- with include "llmd.hfSecret" . }}
{{- if eq $v.secrets.hfToken.mountAs "file" }}
- name: HF_TOKEN_PATH
  value: /etc/llm-d/hf/{{ $v.secrets.hfToken.key }}
{{- else }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ $v.secrets.hfToken.key | quote }}
{{- end }}
{{- end }}
{{- with $v.secrets.apiKey.existingSecret }}
- name: VLLM_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ $v.secrets.apiKey.key | quote }}
{{- end }}
{{- end }}
{{- with $v.modelServer.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The token's Secret: named, or made by this release, or none. */}}
{{- define "llmd.hfSecret" -}}
{{- $token := .Values.secrets.hfToken -}}
{{- if $token.existingSecret }}{{ $token.existingSecret }}
{{- else if $token.create }}{{ include "llmd.name" . }}-hf-token
{{- end -}}
{{- end -}}

{{/* vLLM asks for its key below /v1, so a kubelet can't ask there. */}}
{{- define "llmd.readyPath" -}}
{{- if .Values.secrets.apiKey.existingSecret }}/health{{ else }}/v1/models{{ end -}}
{{- end -}}

{{- define "llmd.engineSecurity" -}}
{{- $own := include "llmd.restricted" . | fromYaml -}}
{{- if eq (include "llmd.isSim" .) "true" -}}
{{- $own = merge $own (dict "runAsNonRoot" true "readOnlyRootFilesystem" true) -}}
{{- end -}}
{{ toYaml (mergeOverwrite $own .Values.modelServer.containerSecurityContext) }}
{{- end -}}

{{- define "llmd.engineProbes" -}}
startupProbe:
  httpGet:
    path: {{ include "llmd.readyPath" . }}
    port: modelserver
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ div (add .Values.modelServer.startupTimeoutSeconds 4) 5 }}
readinessProbe:
  httpGet:
    path: {{ include "llmd.readyPath" . }}
    port: modelserver
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 3
livenessProbe:
  httpGet:
    path: /health
    port: modelserver
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* Requests and limits, with GPUs where the engine uses them. */}}
{{- define "llmd.engineResources" -}}
{{- $v := .Values -}}
{{- if eq (include "llmd.isSim" .) "true" -}}
{{ toYaml $v.sim.resources }}
{{- else -}}
{{- $all := deepCopy $v.modelServer.resources -}}
{{- if and (eq $v.engine.type "vllm") (gt (int $v.modelServer.gpu.count) 0) -}}
{{- $gpus := dict $v.modelServer.gpu.resource (toString (int $v.modelServer.gpu.count)) -}}
{{- $_ := set $all "requests" (merge (deepCopy $gpus) (default dict $all.requests)) -}}
{{- $_ := set $all "limits" (merge (deepCopy $gpus) (default dict $all.limits)) -}}
{{- end -}}
{{ toYaml $all }}
{{- end -}}
{{- end -}}

{{/* vLLM's images have a shell's programs, the simulator's has not, and ends within a moment. */}}
{{- define "llmd.engineDrain" -}}
{{- if and (ne (include "llmd.isSim" .) "true") (gt (int .Values.modelServer.drainSeconds) 0) -}}
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ .Values.modelServer.drainSeconds | quote }}]
{{- end -}}
{{- end -}}

{{- define "llmd.engineVolumeMounts" -}}
- name: shm
  mountPath: /dev/shm
- name: model-cache
  mountPath: {{ .Values.modelCache.mountPath }}
{{- if and (include "llmd.hfSecret" .) (eq .Values.secrets.hfToken.mountAs "file") }}
- name: hf-token
  mountPath: /etc/llm-d/hf
  readOnly: true
{{- end }}
{{- end -}}

{{- define "llmd.engineVolumes" -}}
{{- $cache := .Values.modelCache -}}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.modelServer.shmSize }}
- name: model-cache
  {{- if $cache.enabled }}
  persistentVolumeClaim:
    claimName: {{ $cache.existingClaim | default (include "llmd.cacheClaim" .) | quote }}
  {{- else }}
  # outlives a crash of the container, not the pod
  emptyDir: {}
  {{- end }}
{{- if and (include "llmd.hfSecret" .) (eq .Values.secrets.hfToken.mountAs "file") }}
- name: hf-token
  secret:
    secretName: {{ include "llmd.hfSecret" . | quote }}
    items:
      - key: {{ .Values.secrets.hfToken.key | quote }}
        path: {{ .Values.secrets.hfToken.key | quote }}
{{- end }}
{{- end -}}

{{- define "llmd.cacheClaim" -}}
{{- include "llmd.name" . }}-model-cache
{{- end -}}

{{/*
The sidecar of pods that decode: takes the pod's port, has the prompt computed where the picker says, passes the
rest on. It follows a header; where there is an InferencePool it follows it to members of the pool only.
*/}}
{{- define "llmd.sidecar" -}}
{{- $v := .Values -}}
- name: routing-proxy
  image: {{ $v.disaggregation.sidecarImage }}
  imagePullPolicy: {{ $v.engine.imagePullPolicy }}
  restartPolicy: Always
  args:
    - --port={{ $v.modelServer.port }}
    - --model-server-port={{ include "llmd.port.behindSidecar" . }}
    - --kv-connector={{ $v.disaggregation.kvConnector }}
    - --secure-proxy=false
    {{- if eq $v.mode "gateway" }}
    - --enable-ssrf-protection=true
    - --inference-pool={{ .Release.Namespace }}/{{ include "llmd.poolName" . }}
    - --pool-group=inference.networking.k8s.io
    {{- end }}
  env:
    - name: POD_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
  ports:
    - name: sidecar
      containerPort: {{ $v.modelServer.port }}
  resources:
    {{- toYaml $v.disaggregation.sidecarResources | nindent 4 }}
  securityContext:
    {{- include "llmd.restricted" . | nindent 4 }}
    runAsNonRoot: true
    readOnlyRootFilesystem: true
{{- end -}}
