{{/*
The proxy beside the endpoint picker (mode standalone).

Every request and answer flows through the picker (ext_proc, full duplex), which names the pod in a header;
the cluster `pods` connects to that address. Bodies are never held back, so there is no limit on their size.
Only fields that Envoy 1.33 knows are used.
*/}}
{{- define "llmd.envoy" -}}
{{- $proxy := .Values.router.proxy -}}
{{- $http := "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" -}}
{{- $router := "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" -}}
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: {{ include "llmd.port.admin" . }}}
static_resources:
  listeners:
    - name: inference
      address:
        {{- include "llmd.envoy.address" (list $proxy (include "llmd.port.proxy" .)) | nindent 8 }}
      per_connection_buffer_limit_bytes: 32768
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {{ $http }}
                stat_prefix: inference
                codec_type: AUTO
                use_remote_address: true
                # the caller's x-request-id is the one in all logs
                preserve_external_request_id: true
                server_header_transformation: PASS_THROUGH
                normalize_path: true
                merge_slashes: true
                common_http_protocol_options:
                  # some programs behind read them as dashes; a refusal would reach clients as a closed connection
                  headers_with_underscores_action: DROP_HEADER
                # the wait for a first token counts as idle, and so does the picker's queue
                stream_idle_timeout: {{ $proxy.streamIdleTimeout }}
                request_timeout: 0s
                early_header_mutation_extensions:
                  # only picker and sidecars may say where a request goes
                  - name: envoy.http.early_header_mutation.header_mutation
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
                      mutations:
                        - remove: x-gateway-destination-endpoint
                        - remove: x-prefiller-host-port
                        - remove: x-encoder-hosts-ports
                        - remove: x-data-parallel-host-port
                access_log:
                  {{- include "llmd.envoy.accessLog" . | nindent 18 }}
                route_config:
                  name: inference
                  virtual_hosts:
                    - name: pods
                      domains: ["*"]
                      routes:
                        - match: {prefix: /}
                          route:
                            cluster: pods
                            # no limit on a whole answer: long generations are normal
                            timeout: 0s
                            idle_timeout: {{ $proxy.streamIdleTimeout }}
                http_filters:
                  - name: envoy.filters.http.ext_proc
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
                      grpc_service:
                        envoy_grpc: {cluster_name: picker}
                      # without a picker no pod is known: fail, do not guess
                      failure_mode_allow: false
                      # a request may lie in the picker's queue; the idle limit above ends it sooner
                      message_timeout: 1000s
                      processing_mode:
                        request_header_mode: SEND
                        request_body_mode: FULL_DUPLEX_STREAMED
                        request_trailer_mode: SEND
                        response_header_mode: SEND
                        response_body_mode: FULL_DUPLEX_STREAMED
                        response_trailer_mode: SEND
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": {{ $router }}
                      suppress_envoy_headers: true
    - name: health
      address:
        {{- include "llmd.envoy.address" (list $proxy (include "llmd.port.proxyHealth" .)) | nindent 8 }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {{ $http }}
                stat_prefix: health
                route_config:
                  name: health
                  virtual_hosts:
                    - name: admin
                      domains: ["*"]
                      routes:
                        - match: {path: /stats/prometheus}
                          route: {cluster: admin}
                http_filters:
                  - name: envoy.filters.http.health_check
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
                      pass_through_mode: false
                      headers:
                        - name: ":path"
                          string_match: {exact: /ready}
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": {{ $router }}
  clusters:
    - name: pods
      type: ORIGINAL_DST
      lb_policy: CLUSTER_PROVIDED
      connect_timeout: {{ $proxy.connectTimeout }}
      original_dst_lb_config:
        use_http_header: true
        http_header_name: x-gateway-destination-endpoint
      circuit_breakers:
        {{- include "llmd.envoy.manyRequests" . | nindent 8 }}
      # vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE): a request that meets such an end is lost
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          common_http_protocol_options:
            idle_timeout: 4s
          explicit_http_config:
            http_protocol_options: {}
    - name: picker
      type: STATIC
      connect_timeout: 2s
      circuit_breakers:
        {{- include "llmd.envoy.manyRequests" . | nindent 8 }}
      # no keep-alive pings: the picker's gRPC server ends connections that ping more often than each five minutes
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options: {}
      load_assignment:
        cluster_name: picker
        endpoints:
          {{- include "llmd.envoy.loopback" (include "llmd.port.picker" .) | nindent 10 }}
    - name: admin
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: admin
        endpoints:
          {{- include "llmd.envoy.loopback" (include "llmd.port.admin" .) | nindent 10 }}
{{- end -}}

{{- define "llmd.envoy.address" -}}
{{- $proxy := index . 0 -}}
socket_address:
  address: {{ $proxy.listenAddress | quote }}
  port_value: {{ index . 1 }}
  {{- if contains ":" $proxy.listenAddress }}
  ipv4_compat: true
  {{- end }}
{{- end -}}

{{- define "llmd.envoy.loopback" -}}
- lb_endpoints:
    - endpoint:
        address:
          socket_address: {address: 127.0.0.1, port_value: {{ . }}}
{{- end -}}

{{- define "llmd.envoy.manyRequests" -}}
thresholds:
  - max_connections: 40000
    max_pending_requests: 40000
    max_requests: 40000
{{- end -}}

{{/* What failed, and where: without headers and bodies, so without prompts. */}}
{{- define "llmd.envoy.accessLog" -}}
- name: envoy.access_loggers.stdout
  filter:
    or_filter:
      filters:
        - status_code_filter:
            comparison:
              op: GE
              value: {default_value: 500, runtime_key: access_log.min_status}
        - response_flag_filter: {}
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
    log_format:
      formatters:
        - name: envoy.formatter.req_without_query
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery
      json_format:
        time: "%START_TIME%"
        method: "%REQ(:METHOD)%"
        path: "%REQ_WITHOUT_QUERY(:PATH)%"
        request_id: "%REQ(X-REQUEST-ID)%"
        status: "%RESPONSE_CODE%"
        details: "%RESPONSE_CODE_DETAILS%"
        flags: "%RESPONSE_FLAGS%"
        pod: "%UPSTREAM_HOST%"
        duration_ms: "%DURATION%"
{{- end -}}
