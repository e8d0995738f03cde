"""What each error code means, whose fault it is, and what to do: the one table of them.

Router and agent serve it at `/errors/CODE`, to which their errors link, and `docs/errors.md` is made
from it. The agent's codes reach clients through the router, so both know all of them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple


class Explanation(NamedTuple):
    """One code in three sentences: what happened, who can change it, and how.

    `next_step` is Markdown; commands stand in backticks.
    """

    meaning: str
    fault: str
    next_step: str

    def page(self, code: str) -> str:
        """Return what is known of the code as plain text."""
        return f"{code}\n\n{self.meaning}\n\nWhose fault: {self.fault}\n\nWhat to do: {self.next_step}\n"


_CLIENT = "The request's."
_OPERATOR = "The operator's: who runs the router."
_AGENTS_OPERATOR = "The operator's: who runs the agent."
_CLUSTERS_OPERATOR = "The operator's: who runs the cluster."
_LOAD = "Nobody's: there is more work than room."
_PASSING = "Nobody's: it passes by itself."
_UPSTREAM = "The upstream's: the provider, or the engine behind an agent."
_OURS = "Ours: a defect of the router or the agent."

_TABLE: dict[str, Explanation] = {
    # the request
    "invalid_request": Explanation(
        "The request is not valid HTTP, lacks something, or has a value that is not taken.",
        _CLIENT,
        "The message names what and where, and `param` the field.",
    ),
    "invalid_json": Explanation(
        "The body is not one JSON object in UTF-8.",
        _CLIENT,
        "Send a JSON object. From a shell, put the body in single quotes.",
    ),
    "request_timeout": Explanation(
        "The request's head or body did not come in time.",
        "The client's, or its network's.",
        "Send it again; large bodies need a connection that does not stall.",
    ),
    "request_too_large": Explanation(
        "The body is over the limit.",
        _CLIENT,
        "Send less, or raise `ROUTER_MAX_BODY_MB`; the agent's own limit is 32 MiB.",
    ),
    "url_too_long": Explanation(
        "The URL is over 16 KiB.", _CLIENT, "Put what is long into the body."
    ),
    "headers_too_large": Explanation(
        "The head is over 64 KiB, or has over 256 headers.",
        "The client's, or a proxy's that adds headers.",
        "Send fewer; cookies are the usual cause in a browser.",
    ),
    "unsupported_media_type": Explanation(
        "The body is not `application/json`, or it is compressed.",
        _CLIENT,
        "Send `content-type: application/json` and no `content-encoding`.",
    ),
    "not_found": Explanation(
        "There is no such route or thing.",
        _CLIENT,
        "Compare the path with the API's page. An SDK's `base_url` ends in `/v1`; Anthropic's does not.",
    ),
    "method_not_allowed": Explanation(
        "The route exists, with other methods.", _CLIENT, "Use one that the header `allow` lists."
    ),
    "conflict": Explanation(
        "The request contradicts the present state: a name is taken, a model is loaded, pinned or "
        "being pulled, or a newer start of the agent has registered.",
        "The caller's, mostly a command's.",
        "The message says what stands in the way, and the command that ends it.",
    ),
    # who may do what
    "invalid_api_key": Explanation(
        "No key came, or one that is not known or was revoked. The first key that is made ends the "
        "open mode, in which programs on the router's machine need none.",
        "The request's; if nobody has the key any more, the operator's.",
        "Send `Authorization: Bearer sk-iir-…`. `iir keys list` shows which there are, "
        "`iir keys create --name NAME` makes one. For an agent: join its router again.",
    ),
    "forbidden": Explanation(
        "The key is known, but lacks the scope for this route, or the route is for the agent's own "
        "machine only.",
        "The request's, or the operator's who made the key.",
        "`iir keys create --name NAME --scope admin` for the operator's routes.",
    ),
    "host_not_allowed": Explanation(
        "The `Host` header is none of this service's names: a guard against pages that rebind DNS.",
        _OPERATOR,
        "Ask by an allowed name. Else add this one to the router's `ROUTER_ALLOWED_HOSTS`, or set the "
        "agent's `AGENT_URL` to a URL with it.",
    ),
    "cross_site_request": Explanation(
        "A web page of another origin sent the request, and none may without being listed.",
        _OPERATOR,
        "If the page is yours: `ROUTER_CORS_ORIGINS=https://page.example`. Else nothing: it works "
        "as it should.",
    ),
    "zone_refused": Explanation(
        "No endpoint of the model lies in the zone that `x-iir-zone` allows. The router does not go "
        "elsewhere for it.",
        "The request's, or the operator's who has no such endpoint.",
        "Ask for another model or zone; `iir models list` shows each model's zones.",
    ),
    # models
    "model_not_found": Explanation(
        "No model or alias has this name, and no prefix rule fits it. With `x-iir-error-origin: "
        "upstream` the provider says so.",
        _CLIENT,
        "`GET /v1/models` or `iir models list` shows the names. Is the agent connected: `iir agents list`?",
    ),
    "model_not_pulled": Explanation(
        "The model is known, but its weights are not on the agent's machine, or are on their way.",
        _AGENTS_OPERATOR,
        "Run the command in the message on that machine: `iir-agent pull MODEL`.",
    ),
    "unsupported_api": Explanation(
        "The model is known, but nothing that serves it speaks this route's API.",
        "The request's, or the operator's if the endpoint speaks more than was declared.",
        "Use the API that the message names, or declare it: `iir providers set NAME --api API`, for "
        "an agent's external server `apis:` in its file.",
    ),
    "model_loading": Explanation(
        "The model loads, or waits for memory, for longer than the request may wait.",
        _PASSING,
        "Ask again after `retry-after`; SDKs do. `error.progress` says how far it is. To have it "
        "always loaded: `preload` and `pin` in the agent's file.",
    ),
    "insufficient_memory": Explanation(
        "The model does not fit into the agent's memory beside what is pinned.",
        _AGENTS_OPERATOR,
        "`iir-agent plan MODEL` shows what would have to go (`error.plan` too): unpin or unload it, "
        "give the model less `context`, or raise `memory_budget`.",
    ),
    # too much
    "queue_full": Explanation(
        "All endpoints of the model have as many requests as they take, and as many wait as may.",
        _LOAD,
        "Ask again after `retry-after`. More room: another deployment, `--max-in-flight`, "
        "`ROUTER_QUEUE`, or `parallel` and `max_queue` in the agent's file.",
    ),
    "queue_timeout": Explanation(
        "The request waited for a place, and none came free in time.",
        _LOAD,
        "As for `queue_full`; the times are `ROUTER_QUEUE_S` and the agent's `queue_max_wait`.",
    ),
    "upstream_busy": Explanation(
        "Every endpoint of the model asked to be left alone for a while (429, 503, 529).",
        "Nobody's, or a provider's limit that is too small.",
        "Ask again after `retry-after`. Add another provider for the model, or raise the limit there.",
    ),
    "too_many_joins": Explanation(
        "One address tries to join agents too often.",
        _CLIENT,
        "Wait for `retry-after`, and check the token before the next try.",
    ),
    # nothing can serve it now
    "agent_unavailable": Explanation(
        "The model is on an agent that is not connected, or that fell silent while the request waited.",
        _AGENTS_OPERATOR,
        "Start it (`make dev`, `iir-agent serve`); it comes back by itself. `iir agents list` shows "
        "when it was heard last, `iir-agent doctor` on its machine why.",
    ),
    "no_endpoint": Explanation(
        "The model is known, but has no deployment, or none that is fit for the request now.",
        _OPERATOR,
        "`iir models list` shows where it is served; `iir models add ID --provider NAME` adds a place.",
    ),
    "circuit_open": Explanation(
        "Every endpoint of the model failed several times in a row and is spared for a moment.",
        _UPSTREAM,
        "Ask again after `retry-after`: one request at a time tries whether it is well. "
        "`iir usage --since 1h --by endpoint` and the log show what failed.",
    ),
    "provider_not_configured": Explanation(
        "The model's provider needs a credential or an address, and the router has none.",
        _OPERATOR,
        "Set the variable that the message names, in `.env` or the environment, and restart the router. "
        "It takes `LLMD_ENDPOINT` from `.env` at once.",
    ),
    # a cluster
    "cluster_contended": Explanation(
        "The llm-d cluster has as many requests as it takes, or the request waited there for as long as "
        "it may. No GPU has worked for it.",
        _LOAD,
        "Ask again after `retry-after`; SDKs do. More room: more replicas, another endpoint for the model, or "
        "an objective of a higher priority (`iir models set MODEL --provider llmd --objective NAME`).",
    ),
    "cluster_evicted": Explanation(
        "The llm-d cluster dropped the request for more important ones, maybe after it had worked on it.",
        _LOAD,
        "Ask again after `retry-after`, which is longer than usual. As for `cluster_contended`.",
    ),
    "cluster_cold": Explanation(
        "The llm-d cluster has no pod that could serve the model: it is scaled to zero, starts, or no pod "
        "becomes ready.",
        _CLUSTERS_OPERATOR,
        "Ask again after `retry-after`. If it goes on: `kubectl get pods` in the cluster's namespace shows "
        "what the pods wait for.",
    ),
    "cluster_unavailable": Explanation(
        "The llm-d cluster's gateway answers, but its endpoint picker or the pod that it picked does not.",
        _CLUSTERS_OPERATOR,
        "Ask again after `retry-after`: a restart takes seconds. If it goes on: `kubectl get pods` and "
        "`kubectl logs` of the endpoint picker.",
    ),
    "unavailable": Explanation(
        "The model or the registry can't do this now: the worker failed, can't run on this host, or "
        "the registry can't be written.",
        "The operator's: who runs the agent or the router.",
        "The message has the reason. `iir-agent ps` and `iir-agent logs MODEL` show more, "
        "`iir-agent reset MODEL` ends a quarantine once the cause is gone.",
    ),
    "worker_gone": Explanation(
        "The model's worker ended, under the request or before it, and is started again.",
        "The engine's, or the machine's if memory ran out.",
        "Ask again after `retry-after`. If it goes on: `iir-agent ps` has the reason, "
        "`iir-agent logs MODEL` what the engine printed.",
    ),
    "draining": Explanation(
        "The agent was told to take nothing new; another agent may serve the model.",
        "The operator's, on purpose.",
        "Ask again later. `iir-agent resume` on its machine ends it.",
    ),
    "shutting_down": Explanation(
        "The service stops before the answer is complete.",
        "The operator's, on purpose.",
        "Ask again in a moment. Running requests have `ROUTER_DRAIN_S` or `AGENT_DRAIN_S`.",
    ),
    # upstreams
    "upstream_unreachable": Explanation(
        "The endpoint did not take the connection, and no other one served the request.",
        _UPSTREAM,
        "Is the address right (`iir providers list`), and does it answer from the router's machine? "
        "`iir doctor` says what can be said.",
    ),
    "upstream_failed": Explanation(
        "The endpoint answered with what is no answer: not HTTP, not JSON, a redirect, too long, or "
        "no stream where one was asked for.",
        _UPSTREAM,
        "The message says which. Often the base URL leads to a web page or a proxy: `iir providers list`.",
    ),
    "upstream_interrupted": Explanation(
        "The endpoint broke off in the middle of its answer, or before it.",
        _UPSTREAM,
        "Ask again; what came of a stream so far is all there is of it. The log has the endpoint.",
    ),
    "upstream_timeout": Explanation(
        "The endpoint took the connection and gave no answer, or nothing more of it, in time.",
        _UPSTREAM,
        "Slow models need longer limits: `iir models add ID --provider NAME --first-byte-s 600`, or "
        "`ROUTER_FIRST_BYTE_TIMEOUT_S` and `ROUTER_IDLE_TIMEOUT_S` for all.",
    ),
    "deadline_exceeded": Explanation(
        "No endpoint gave a first byte within the time for all attempts and waits together.",
        "The upstreams', or the load's.",
        "Raise `ROUTER_DEADLINE_S`, or find the slow endpoint: `iir usage --since 1h --by endpoint`.",
    ),
    "upstream_credential_refused": Explanation(
        "The endpoint, or a proxy before it, does not take the router's own credential. A client's key "
        "has nothing to do with it.",
        _OPERATOR,
        "Renew the variable that `iir providers list` names, and restart the router.",
    ),
    "upstream_unpaid": Explanation(
        "The endpoint wants the operator's account to be paid first.",
        _OPERATOR,
        "Pay there, or give the model another provider.",
    ),
    "upstream_error": Explanation(
        "The endpoint answered with an error that has no code of its own; status and message are its own.",
        _UPSTREAM,
        "Read the message, and the endpoint's own documentation.",
    ),
    # agents
    "join_token_refused": Explanation(
        "The join token is not known, was used, or has expired.",
        "The operator's: tokens work once, within an hour unless `--expires` says otherwise.",
        "`iir agents invite` on the router's machine makes another.",
    ),
    "agent_address_refused": Explanation(
        "An agent gave an address that is not its own, or none that is taken (a name, a metadata address).",
        _AGENTS_OPERATOR,
        "Give `AGENT_URL` an IP address of its machine. If it calls from another one (NAT), list it "
        "in the router's `ROUTER_AGENT_HOSTS`.",
    ),
    "lease_protocol_unsupported": Explanation(
        "Agent and router speak different versions of the lease protocol.",
        _OPERATOR,
        "Install the same release on both sides: `iir --version`, `iir-agent --version`.",
    ),
    # ours
    "internal_error": Explanation(
        "Something went wrong that should not.",
        _OURS,
        "Look for the answer's `x-request-id` in the log, and report what stands there.",
    ),
}

EXPLANATIONS: Final = MappingProxyType(_TABLE)
"""Every code that router or agent answers with on their own, in the order of the page."""


def page_of(code: str) -> str:
    """Return the path of a code's page, on router and agent alike."""
    return f"/errors/{code}"
