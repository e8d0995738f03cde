{{/* Parts of the router's pod. */}}

{{- define "llmd.proxyContainer" -}}
- name: proxy
  image: {{ .Values.router.proxy.image }}
  imagePullPolicy: {{ .Values.engine.imagePullPolicy }}
  command: [envoy]
  args:
    - --config-path
    - /etc/envoy/envoy.yaml
    - --service-node
    - {{ include "llmd.name" . }}-proxy
    - --service-cluster
    - {{ include "llmd.name" . }}
    - --concurrency
    - {{ .Values.router.proxy.concurrency | quote }}
    - --log-level
    - warn
    - --disable-hot-restart
  ports:
    - name: proxy-http
      containerPort: {{ include "llmd.port.proxy" . }}
    - name: proxy-health
      containerPort: {{ include "llmd.port.proxyHealth" . }}
  readinessProbe:
    httpGet:
      path: /ready
      port: proxy-health
    periodSeconds: 5
  livenessProbe:
    httpGet:
      path: /ready
      port: proxy-health
    periodSeconds: 10
    failureThreshold: 6
  {{- with include "llmd.routerDrain" . }}
  {{- . | nindent 2 }}
  {{- end }}
  resources:
    {{- toYaml .Values.router.proxy.resources | nindent 4 }}
  securityContext:
    {{- include "llmd.restricted" . | nindent 4 }}
    readOnlyRootFilesystem: true
  volumeMounts:
    - name: envoy
      mountPath: /etc/envoy
      readOnly: true
{{- end -}}

{{/*
Both containers wait before they end: streams go through either. Their images have no shell, so this is
Kubernetes' own sleep, which 1.29 has behind a feature gate only.
*/}}
{{- define "llmd.routerDrain" -}}
{{- if and (gt (int .Values.router.drainSeconds) 0) (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) -}}
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.router.drainSeconds }}
{{- end }}
{{- end -}}

{{- define "llmd.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "llmd.scrape" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ . | quote }}
prometheus.io/path: /metrics
{{- end -}}
