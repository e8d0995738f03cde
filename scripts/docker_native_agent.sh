#!/bin/sh
# The agent of make docker-dev where it runs beside the engine and not in it: on a Mac, for its GPU.
#   sh scripts/docker_native_agent.sh start ROUTER_URL | stop | pulled | log | figures
# The router reaches it as host.docker.internal. Its credential is its own; one for make dev stays.
set -eu
cd "$(dirname "$0")/.."

setting() { # NAME DEFAULT: what the environment says, else .env, else the default
    eval "is_set=\${$1+yes} value=\${$1-}"
    [ -n "$is_set" ] || ! grep -q "^$1=" .env 2>/dev/null || {
        is_set=yes
        value=$(sed -n "s/^$1=//p" .env | tail -n 1 | sed 's/^"\(.*\)"$/\1/')
    }
    if [ -n "$is_set" ]; then echo "$value"; else echo "$2"; fi
}

venv=${VENV:-.venv}
home=$(setting IIR_HOME data)
home=${home:-data}
port=$(setting AGENT_PORT 5055) # 5000 is AirPlay's on a Mac
pulled=$(setting AGENT_PULL smollm2-135m)
pid_file=$home/run/docker-agent.pid
log=$home/logs/docker-agent.log

running() { # the id of our agent, if it lives
    pid=$(cat "$pid_file" 2>/dev/null) || return 1
    ps -ww -p "$pid" -o command= 2>/dev/null | grep -q 'iir-agent serve' || return 1
    echo "$pid"
}

gateway() { # the address of this host that containers call host.docker.internal
    if [ "$(uname -s)" = Darwin ]; then
        echo 127.0.0.1 # the engine's virtual machine hands it on
    else
        docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}'
    fi
}

start() {
    if pid=$(running); then
        kill "$pid"
        wait_gone "$pid"
    fi
    VENV="$venv" sh scripts/setup.sh run
    mkdir -p "$home/run" "$home/logs"
    export IIR_HOME="$home" ROUTER_URL="$1" AGENT_TOKEN_FILE="$home/agent/docker-credential"
    AGENT_HOST=$(gateway)
    export AGENT_HOST AGENT_PORT="$port" AGENT_URL="http://host.docker.internal:$port"
    export AGENT_PULL="$pulled"
    AGENT_PUBLIC_ROUTES=$(setting AGENT_PUBLIC_ROUTES metrics) # for Prometheus, as in a container
    export AGENT_PUBLIC_ROUTES
    # each time anew: the router's registry may be another one by now. `local` is the agent in a container
    token=$(docker compose exec -T router iir agents invite --quiet --name native)
    rm -f "$AGENT_TOKEN_FILE"
    IIR_JOIN_TOKEN=$token "$venv/bin/iir-agent" join "$ROUTER_URL" --name native >/dev/null
    nohup "$venv/bin/iir-agent" serve >>"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    sleep 2
    running >/dev/null || {
        tail -n 5 "$log" >&2
        echo "The agent did not start; above is the end of $log" >&2
        exit 1
    }
}

wait_gone() {
    n=0
    while kill -0 "$1" 2>/dev/null && [ $n -lt 70 ]; do
        sleep 1
        n=$((n + 1))
    done
}

stop() {
    if pid=$(running); then
        kill "$pid"
        wait_gone "$pid"
    elif [ -f "$pid_file" ] && [ -x "$venv/bin/python" ]; then # it was killed, and its workers were not
        "$venv/bin/python" -m scripts.devstack.orphans "$home"
    fi
    rm -f "$pid_file"
}

figures() { # the file that tells Prometheus where the agent's are, unless there is one of the user's
    given=$(setting PROMETHEUS_AGENTS "")
    if [ -z "$given" ]; then
        mkdir -p "$home/run"
        given=$(cd "$home/run" && pwd)/prometheus-agents.yml
        echo "- targets: ['host.docker.internal:$port']" >"$given"
        chmod 644 "$given" # Prometheus is another user
    fi
    echo "$given"
}

case ${1:-} in
    start) start "$2" ;;
    stop) stop ;;
    pulled) echo "$pulled" ;; # the models that it pulls by itself
    log) echo "$log" ;;
    figures) figures ;;
    *) exit 2 ;;
esac
