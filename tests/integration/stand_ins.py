"""Images of others that can't be pulled everywhere: the same programs from Debian, started as theirs are.

User, entry point, arguments and volume are what the named image has, and nothing else that
docker-compose.yml could lean on.
"""

from __future__ import annotations

from typing import Any

import httpx

from tests.integration.stack import output_of

REDIS = "iir-test/redis"
PROMETHEUS = "iir-test/prometheus"
_BUILD_LIMIT_S = 300.0
_DOCKERFILES = {
    # as the image redis, version 7
    REDIS: r"""
FROM debian:bookworm-slim
RUN groupadd --system --gid 1000 redis \
 && useradd --system --uid 999 --gid redis --no-create-home --home-dir /data redis
RUN apt-get update && apt-get install -y --no-install-recommends redis-server
RUN printf '#!/bin/sh\nset -e\numask 0077\nexec "$@"\n' > /usr/bin/docker-entrypoint.sh \
 && chmod 755 /usr/bin/docker-entrypoint.sh \
 && install --directory --owner=redis --group=redis /data
VOLUME /data
WORKDIR /data
ENTRYPOINT ["docker-entrypoint.sh"]
EXPOSE 6379
CMD ["redis-server"]
""",
    # as the image prom/prometheus, whose tools are BusyBox's
    PROMETHEUS: r"""
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus busybox
RUN ln -s busybox /bin/wget \
 && rm -rf /etc/prometheus/* \
 && touch /etc/prometheus/prometheus.yml \
 && install --directory --owner=nobody --group=nogroup /prometheus
USER nobody
EXPOSE 9090
VOLUME ["/prometheus"]
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
""",
}


def build_stand_in(tag: str) -> None:
    """Build one of them."""
    words = ["docker", "build", "--quiet", "--tag", tag, "-"]
    output_of(words, limit_s=_BUILD_LIMIT_S, says=_DOCKERFILES[tag])


class Prometheus:
    """A Prometheus as its users ask it, by HTTP."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def targets(self) -> dict[str, tuple[str, str]]:
        """Return by job what is scraped, and how that went; `unknown` before the first time."""
        return {
            target["labels"]["job"]: (target["labels"]["instance"], target["health"])
            for target in self._ask("targets")["activeTargets"]
        }

    def problem(self, job: str) -> str:
        """Return why a job's target was not scraped the last time."""
        (found,) = [
            str(target["lastError"])
            for target in self._ask("targets")["activeTargets"]
            if target["labels"]["job"] == job
        ]
        return found

    def value(self, query: str) -> float | None:
        """Return what a query for one number finds."""
        found = self._ask("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def _ask(self, path: str, **params: str) -> Any:
        try:
            answer = httpx.get(f"{self._url}/{path}", params=params, trust_env=False, timeout=10)
        except httpx.HTTPError:
            return {"activeTargets": [], "result": []}  # it starts
        assert answer.status_code in {200, 503}, answer.text
        body = answer.json() if answer.status_code == 200 else {}
        return body.get("data", {"activeTargets": [], "result": []})
