"""The simulated engine: an OpenAI or Anthropic server that computes nothing and fails on request.

It says what it is wherever it can: header `server`, `owned_by`, `system_fingerprint`, metrics.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from shared.kit.clock import Clock, monotonic, wall_time
from shared.testing.apis import answer_request
from shared.testing.asks import AskError
from shared.testing.dialect import Speaker, dump, model_json
from shared.testing.distortions import check_kinds, distort
from shared.testing.faults import (
    HEADER,
    Entry,
    FaultScript,
    parse_faults,
    read_entries,
    split_model,
)
from shared.testing.journal import Journal, Seen
from shared.testing.load import Slots, Tally, render_metrics
from shared.testing.messages import anthropic_model_json
from shared.testing.personas import (
    SERVER,
    VERSION,
    VLLM,
    Persona,
    error_json,
    loading,
    unauthorized,
    unknown_model,
    unknown_route,
)
from shared.testing.player import Player
from shared.testing.steps import Answer, Crash, Latency, Send, Steps, plan_answer
from shared.testing.wire import Exchange, Request, WireServer

JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine behaves when nothing goes wrong.

    `tokens`: the length of each answer; unset follows the prompt. `slots`: requests that run at
    the same time. `load_s`: until then `/health` and inference answer 503.
    """

    models: tuple[str, ...] = ("simulated",)
    persona: Persona = VLLM
    latency: Latency = field(default_factory=Latency)
    tokens: int | None = None
    seed: int = 0
    api_key: str = ""
    slots: int = 64
    load_s: float = 0.0
    context_tokens: int = 8192


class SimulatedEngine:
    """One engine; `running` or `WireServer(engine.handle)` puts it on a port.

    Attributes:
        script: faults for requests to come.
        journal: what was seen.
        options: what it was made with.
    """

    def __init__(
        self,
        options: EngineOptions | None = None,
        *,
        clock: Clock = monotonic,
        wall: Clock = wall_time,
        crash: Callable[[Crash], None] | None = None,
    ) -> None:
        """Make an engine; `crash` ends the process, by default only its server."""
        self.options = options or EngineOptions()
        self.script = FaultScript()
        self.journal = Journal(clock)
        self.slots = Slots(self.options.slots)
        self.tally = Tally()
        self.crashed = asyncio.Event()
        self._crash = crash or self._stop
        self._clock = clock
        self._wall = wall
        self._ready_s = clock() + self.options.load_s
        self._answers = 0

    @property
    def requests(self) -> list[Seen]:
        """The requests seen so far."""
        return list(self.journal.entries)

    def reset(self) -> None:
        """Forget the requests and the faults to come."""
        self.script.clear()
        self.journal.entries.clear()

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        if request.path.startswith("/sim/"):
            await self._play(exchange, None, plan_answer(self._control(request), Latency()))
            return
        with self.journal.entry(exchange) as seen:
            await self._serve(exchange, seen)

    async def _serve(self, exchange: Exchange, seen: Seen) -> None:
        request = exchange.request
        seen.body = _parse(request.body)
        persona = self.options.persona.at(request.path)
        is_inference = request.path in persona.paths and request.method == "POST"
        try:
            faults = self._faults(request, seen.body, is_inference=is_inference)
        except ValueError as error:
            refused = self._error(persona, 400, f"{SERVER}: {error}")
            await self._play(exchange, seen, plan_answer(refused, Latency()))
            return
        seen.faults = tuple(fault.kind for fault in faults)
        refusal = self._refusal(request, persona)
        if refusal is not None or not is_inference:
            await self._run(exchange, seen, refusal or self._route(request), faults)
            return
        async with self.slots.slot():
            found = self._infer(request, seen.body, persona)
            self.tally.prompt_tokens += found.prompt_tokens
            await self._run(exchange, seen, found, faults)

    async def _run(self, exchange: Exchange, seen: Seen, found: Answer, faults: Entry) -> None:
        latency = self.options.latency if found.finish_reason else Latency()
        persona = self.options.persona.at(exchange.request.path)
        try:
            steps = distort(plan_answer(found, latency), faults, persona)
        except ValueError as error:
            found = self._error(persona, 400, f"{SERVER}: {error}")
            steps = plan_answer(found, Latency())
        outcome = "abort"
        try:
            is_whole = await self._play(exchange, seen, steps) and seen.status == found.status
            outcome = found.finish_reason if is_whole else "error"
        finally:
            self.tally.finished[outcome] += 1 if found.finish_reason else 0

    async def _play(self, exchange: Exchange, seen: Seen | None, steps: Steps) -> bool:
        player = Player(self.options.persona.headers, self.journal, self.tally, crash=self._crash)
        return await player.play(steps, exchange, seen)

    def _faults(self, request: Request, body: object, *, is_inference: bool) -> Entry:
        model = body.get("model") if isinstance(body, dict) else None
        suffixed = split_model(model)[1] if isinstance(model, str) else ()
        asked = parse_faults(request.header(HEADER) or "")
        return (*suffixed, *asked, *self.script.take(request.path, is_inference=is_inference))

    def _refusal(self, request: Request, persona: Persona) -> Answer | None:
        """Return why no route is asked at all: key, version, or a model that still loads."""
        key, needs_key = self.options.api_key, request.path.startswith("/v1/")
        if key and needs_key and _key_of(request, persona) != key:
            return _plain(401, unauthorized(persona))
        if needs_key and persona.name == "anthropic" and not request.header("anthropic-version"):
            return self._error(persona, 400, "anthropic-version: header is required")
        if self._clock() < self._ready_s and (needs_key or request.path == "/health"):
            return _plain(503, loading(persona))
        return None

    def _route(self, request: Request) -> Answer:
        options, path = self.options, request.path
        routes: dict[str, Callable[[], Answer]] = {
            "/health": lambda: _plain(200, options.persona.health_body),
            "/v1/models": self._models,
        }
        if options.persona.version_route:
            routes["/version"] = lambda: _plain(200, dump({"version": VERSION}))
        if options.persona.metrics_prefix:
            routes["/metrics"] = self._metrics
        for model in options.models:
            routes[f"/v1/models/{model}"] = partial(_plain, 200, self._model(model))
        if path in routes or path in options.persona.paths:
            if request.method in {"GET", "HEAD"} and path in routes:
                return routes[path]()
            return _plain(405, unknown_route(options.persona.at(path), 405))
        if path.startswith("/v1/models/"):
            return self._unknown_model(options.persona, path.removeprefix("/v1/models/"))
        return _plain(404, unknown_route(options.persona.at(path)))

    def _infer(self, request: Request, body: object, persona: Persona) -> Answer:
        options = self.options
        if not isinstance(body, dict):
            return self._error(persona, 400, "1 validation error: the body is not a JSON object")
        asked = body.get("model", options.models[0])
        model = split_model(asked)[0] if isinstance(asked, str) else ""
        if persona.knows_only_its_models and model not in options.models:
            return self._unknown_model(persona, model)
        self._answers += 1
        own_id = request.header("x-request-id") if persona.repeats_request_id else None
        speaker = Speaker(
            persona=persona,
            model=model,
            id=own_id or f"sim-{self._answers}",
            created=int(self._wall()),
            seed=options.seed,
            tokens=options.tokens,
            context_tokens=options.context_tokens,
        )
        try:
            return answer_request(request.path, body, speaker)
        except AskError as error:
            return self._error(persona, 400, str(error), error.param)

    def _control(self, request: Request) -> Answer:
        route = (request.method, request.path)
        if route == ("GET", "/sim/requests"):
            return _plain(200, dump([seen.as_json() for seen in self.journal.entries]))
        if route == ("POST", "/sim/reset"):
            self.reset()
            return _plain(200, b"{}")
        persona = self.options.persona
        if request.path != "/sim/faults":
            return self._error(persona, 404, "known: /sim/requests, /sim/faults, /sim/reset")
        if request.method == "DELETE":
            self.script.clear()
        elif request.method == "POST":
            try:
                entries = read_entries(_parse(request.body))
                check_kinds([fault for entry in entries for fault in entry])
                self.script.add(*entries)
            except ValueError as error:
                return self._error(persona, 400, str(error))
        return _plain(
            200, dump([[fault.kind for fault in entry] for entry in self.script.pending()])
        )

    def _models(self) -> Answer:
        listed = [json.loads(self._model(model)) for model in self.options.models]
        if self.options.persona.name == "anthropic":
            ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
            return _plain(200, dump({"data": listed, "has_more": False, **ends}))
        return _plain(200, dump({"object": "list", "data": listed}))

    def _model(self, model: str) -> bytes:
        if self.options.persona.name == "anthropic":
            return dump(anthropic_model_json(model, int(self._wall())))
        return dump(model_json(model, int(self._wall()), self.options.context_tokens))

    def _metrics(self) -> Answer:
        text = render_metrics(self.options.persona, self.options.models[0], self.slots, self.tally)
        headers = (("content-type", "text/plain; version=0.0.4; charset=utf-8"),)
        return replace(_plain(200, text), headers=headers)

    def _unknown_model(self, persona: Persona, model: str) -> Answer:
        return _plain(404, unknown_model(persona, model, self.options.models))

    def _error(
        self, persona: Persona, status: int, message: str, param: str | None = None
    ) -> Answer:
        return _plain(status, error_json(persona, status, message, param=param))

    def _stop(self, crash: Crash) -> None:
        self.crashed.set()


@asynccontextmanager
async def running(
    engine: SimulatedEngine, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve an engine inside this event loop; yields `http://HOST:PORT` (without `/v1`).

    Raises:
        Exception: whatever a handler raised by mistake, when the block ends.
    """
    server = WireServer(engine.handle)
    base_url = await server.start(host, port)
    watch = asyncio.get_running_loop().create_task(_close_on_crash(engine, server))
    try:
        yield base_url
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await server.close()
    if server.failures:
        raise server.failures[0]


async def _close_on_crash(engine: SimulatedEngine, server: WireServer) -> None:
    await engine.crashed.wait()
    await server.close()


def _plain(status: int, body: bytes) -> Answer:
    return Answer(status=status, headers=JSON, parts=(Send(body),))


def _key_of(request: Request, persona: Persona) -> str | None:
    named = request.header("x-api-key") if persona.name == "anthropic" else None
    if named is not None:
        return named
    scheme, _, key = (request.header("authorization") or "").partition(" ")
    return key if scheme == "Bearer" else None


def _parse(raw: bytes) -> object:
    """Return the JSON, or `None` for what is none or can't be written again."""
    try:
        data: object = json.loads(raw)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return data
