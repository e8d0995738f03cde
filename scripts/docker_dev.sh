#!/bin/sh
# make docker-dev, make docker-down: router and agent as containers, with the embedded model.
#   sh scripts/docker_dev.sh up | down
# It needs Docker with `docker compose` and nothing else; on a Mac Python too: containers have no GPU there, so the
# agent runs natively, as with make dev. DOCKER_AGENT=native|container chooses.
set -eu
cd "$(dirname "$0")/.."

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

need_docker() {
    command -v docker >/dev/null 2>&1 || fail "Docker is needed: https://docs.docker.com/get-docker/"
    docker compose version >/dev/null 2>&1 || fail "docker compose (v2) is needed: update Docker, or install its plug-in."
    docker compose config --quiet || fail "docker compose 2.24 or newer is needed, or a setting is wrong; above is why."
    docker info >/dev/null 2>&1 || fail "Docker does not answer: start it, or may you use it (docker info)?"
}

kind() { # native or container: where the agent runs
    if [ -n "${DOCKER_AGENT:-}" ]; then
        case $DOCKER_AGENT in
            native | container) echo "$DOCKER_AGENT" ;;
            *) fail "DOCKER_AGENT is native or container" ;;
        esac
    elif [ "$(uname -s)" = Darwin ]; then
        echo native
    else
        echo container
    fi
}

up() {
    agent=$(kind)
    need_docker
    services= # all of the profiles that are on
    if [ "$agent" = native ]; then
        PROMETHEUS_AGENTS=$(sh scripts/docker_native_agent.sh figures)
        export PROMETHEUS_AGENTS
        services=$(docker compose config --services | grep -vx agent)
        docker compose rm --stop --force agent >/dev/null 2>&1 || true
    else
        sh scripts/docker_native_agent.sh stop
    fi
    # shellcheck disable=SC2086 # one service a word
    docker compose up --detach --build --wait --remove-orphans $services || {
        docker compose logs --tail 15 router agent >&2 || true
        fail "It did not start; above is why. A port that is taken: ROUTER_PORT=8010 make docker-dev"
    }
    address=$(docker compose port router 8000)
    if [ "$agent" = native ]; then
        sh scripts/docker_native_agent.sh start "http://$address" || exit 1
    fi
    # shellcheck disable=SC2016 # the container's shell reads it
    key=$(docker compose exec -T router sh -c 'cat "$ROUTER_KEY_FILE"' 2>/dev/null) || key=YOUR_KEY
    if [ "$key" != YOUR_KEY ] && pulls_the_embedded_model "$agent"; then
        code=0
        docker compose exec -T router python - <scripts/docker_wait.py || code=$?
        if [ "$code" = 3 ]; then # the first key was revoked
            key=YOUR_KEY
        elif [ "$code" != 0 ]; then
            last_words "$agent" >&2
            fail "The router runs, but the embedded model does not answer yet; above is what the agent says."
        fi
    fi
    describe "http://$address" "$key" "$agent"
}

pulls_the_embedded_model() { # KIND: by itself, so that it is worth waiting for
    if [ "$1" = native ]; then
        pulled=$(sh scripts/docker_native_agent.sh pulled)
    else
        pulled=$(docker compose exec -T agent printenv AGENT_PULL 2>/dev/null) || return 1
    fi
    case ",$(printf %s "$pulled" | tr -d ' ')," in
        *,smollm2-135m,* | *,default,*) return 0 ;;
        *) return 1 ;;
    esac
}

last_words() { # KIND: the end of the agent's log
    if [ "$1" = native ]; then
        tail -n 15 "$(sh scripts/docker_native_agent.sh log)" || true
    else
        docker compose logs --tail 15 agent || true
    fi
}

describe() { # URL KEY KIND: what a newcomer needs next
    question='[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]'
    cat <<TEXT
ready: $1/v1

curl -s $1/v1/chat/completions -H 'content-type: application/json' -H 'authorization: Bearer $2' -d '{"model": "default", "temperature": 0, "messages": $question}'

from openai import OpenAI  # pip install openai
client = OpenAI(base_url="$1/v1", api_key="$2")
print(client.chat.completions.create(model="default", temperature=0, messages=$question).choices[0].message.content)

TEXT
    [ "$2" != YOUR_KEY ] || echo "the first key is gone; another one: docker compose exec router iir keys create --name NAME"
    [ "$3" = native ] || echo "a bigger model: docker compose exec agent iir-agent pull local_mistral-7b-instruct-q4"
    [ "$3" != native ] || echo "the agent's log: $(sh scripts/docker_native_agent.sh log)"
    echo "logs: docker compose logs -f"
    kept="keys, registry and weights"
    [ "$3" != native ] || kept="keys and registry" # the agent's weights are those of make dev
    echo "stop: make docker-down   (VOLUMES=1 make docker-down removes $kept too)"
}

down() {
    need_docker
    sh scripts/docker_native_agent.sh stop
    # the agent first: a stopping one ends the workers that it has in containers
    docker compose stop agent >/dev/null 2>&1 || true
    end_workers
    volumes=
    [ -z "${VOLUMES:-}" ] || volumes=--volumes
    # shellcheck disable=SC2086 # no option, or one
    docker compose --profile '*' down --remove-orphans $volumes
}

end_workers() { # those that a killed agent left in its network (docker-compose.siblings.yml)
    project=$(docker compose config 2>/dev/null | sed -n 's/^name: //p')
    left=$(docker ps --all --quiet --filter "network=${project:-iir}-workers" \
        --filter label=io.intelligent-inference-router.worker 2>/dev/null) || left=
    # shellcheck disable=SC2086 # one id a word
    [ -z "$left" ] || docker rm --force $left >/dev/null
}

case ${1:-} in
    up) up ;;
    down) down ;;
    *) fail "usage: docker_dev.sh up | down" ;;
esac
