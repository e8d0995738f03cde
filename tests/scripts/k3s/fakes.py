"""Programs that record their command line and answer from canned output: no cluster, no Docker, no root.

What they print is shaped as the real ones print it: `k3d cluster list -o json` after k3d v5.9.0's
`cmd/cluster/clusterList.go` and `pkg/types/types.go`, `helm status -o json` after Helm's
`pkg/cmd/status.go`, `kubectl get … -o json` after the Kubernetes API (`v1.List`), `nvidia-smi -L` after
NVIDIA's manual page, `docker inspect` after Docker's API.
"""

from __future__ import annotations

HEAD = """#!/bin/sh
name=${0##*/}
printf '%s %s\\n' "$name" "$*" >>"$STAGE/log"
for rule in "$STAGE"/says/"$name"/*; do
  [ -d "$rule" ] || continue
  pattern=$(cat "$rule/pattern")
  case "$*" in $pattern)
    cat "$rule/output"; cat "$rule/error" >&2; exit "$(cat "$rule/code")" ;;
  esac
done
"""

K3D = """
row() {
  printf '[{"name":"iir","nodes":[{"name":"k3d-iir-server-0","role":"server"}],'
  printf '"serversRunning":%s,"serversCount":1,"agentsRunning":0,"agentsCount":0}]\\n' "$1"
}
case "$*" in
  "cluster list -o json")
    if [ ! -f "$STAGE/cluster" ]; then echo '[]'; else row "$(cat "$STAGE/cluster")"; fi ;;
  "cluster create"*" --no-lb "*)
    case "$*" in *"--port "*"@server:0:direct "*) ;; *)
      echo "FATA[0000] failed to transform ports: port-mapping of type 'proxy' specified, but loadbalancer is disabled"
      exit 1 ;;
    esac
    echo 1 >"$STAGE/cluster"; serve ;;
  "cluster start"*) echo 1 >"$STAGE/cluster"; serve ;;
  "cluster stop"*) echo 0 >"$STAGE/cluster"; hush ;;
  "cluster delete"*) rm "$STAGE/cluster"; rm -f "$STAGE/release" "$STAGE/namespace"; hush ;;
  "kubeconfig get"*) echo "kind: Config # k3d's" ;;
  *) echo "unexpected: k3d $*" >&2; exit 9 ;;
esac
"""

KUBECTL = """
case "$*" in
  *" config view --raw"*) cat "$STAGE/view.json" ;;
  *" wait --for=condition=Ready node"*) ;;
  *" get namespace "*) cat "$STAGE/namespace" 2>/dev/null; exit 0 ;;
  *" create -f -") cat >"$STAGE/namespace" ;;
  *" apply -f -" | *" apply --server-side --force-conflicts -f -") cat >"$STAGE/applied.$(ls "$STAGE" | grep -c applied)" ;;
  *" delete namespace "*) rm -f "$STAGE/namespace" ;;
  *" get secret "*) echo 'Error from server (NotFound): secrets "llm-d-hf-token" not found' >&2; exit 1 ;;
  *" get runtimeclass nvidia "*) echo runtimeclass.node.k8s.io/nvidia ;;
  *" get service "*) cat "$STAGE/service.json" ;;
  *" get nodes -o name") echo node/box ;;
  *" get nodes -o json")
    if [ -f "$STAGE/applied.0" ]; then cat "$STAGE/nodes-gpu.json"; else cat "$STAGE/nodes.json"; fi ;;
  *" get pods --namespace "*" -o json") echo '{"items":[]}' ;;
  *" get pods --namespace "*) echo "NAME READY STATUS" ;;
  *" get events "*) echo '{"items":[]}' ;;
  *" port-forward "*) exec "$PYTHON" -I -S "$STAGE/server.py" "$SERVED_PORT" ;;
  *) echo "unexpected: kubectl $*" >&2; exit 9 ;;
esac
"""

HELM = """
case "$*" in
  "version "*) printf v4.1.4 ;;
  *" status llm-d "*)
    [ -f "$STAGE/release" ] || { echo "Error: release: not found" >&2; exit 1; }
    printf '{"name":"llm-d","info":{"status":"%s"}}\\n' "$(cat "$STAGE/release")" ;;
  *" upgrade --install llm-d "*) echo deployed >"$STAGE/release" ;;
  *" rollback llm-d "*) echo deployed >"$STAGE/release" ;;
  *" uninstall llm-d "*) rm -f "$STAGE/release" ;;
  *" test llm-d "*) [ -f "$STAGE/release" ] ;;
  *) echo "unexpected: helm $*" >&2; exit 9 ;;
esac
"""

DOCKER = """
case "$*" in
  "info "*) echo 28.2.2 ;;
  "inspect "*) cat "$STAGE/labels.json" ;;
  *) exit 9 ;;
esac
"""

SERVE = """
serve() {
  "$PYTHON" -I -S "$STAGE/server.py" "$SERVED_PORT" >/dev/null 2>&1 </dev/null &
  echo $! >"$STAGE/server.pid"
}
hush() {
  [ ! -f "$STAGE/server.pid" ] || kill "$(cat "$STAGE/server.pid")"
  rm -f "$STAGE/server.pid"
}
"""

PROGRAMS = {"k3d": SERVE + K3D, "kubectl": KUBECTL, "helm": HELM, "docker": DOCKER}
NVIDIA_SMI = "echo 'GPU 0: NVIDIA L4 (UUID: GPU-4e9d3d54-0000-0000-0000-000000000000)'\n"
SUDO = 'exec "$@"\n'

SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"data": [{"id": "a-model"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

INSTALLER = """#!/bin/sh
# what k3s's own does, as far as it shows: the environment it keeps, the unit, the kubeconfig
env | grep -E '^(K3S|INSTALL_K3S)_' >"$STAGE/installer.env"
echo "ExecStart=/usr/local/bin/k3s $INSTALL_K3S_EXEC" >"$STAGE/k3s.service"
echo "kind: Config # k3s's" >"$STAGE/k3s.yaml"
printf '#!/bin/sh\\nrm "%s/k3s.service" "%s/k3s.yaml"\\n' "$STAGE" "$STAGE" >"$STAGE/k3s-uninstall.sh"
chmod 755 "$STAGE/k3s-uninstall.sh"
"""
