"""A Redis that runs our scripts: its connections, what was last heard of it, and what to do while it is away."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from eccos_integrations.errors import ConfigError, MissingExtraError
from eccos_integrations.serving.counters import MICRO
from eccos_integrations.serving.ledger import StoreError

logger = logging.getLogger("eccos")

SCRIPTS = ("reserve", "finish", "renew", "free")
CONNECTIONS = 16  # of an event loop; who finds none waits for one
TIMEOUT_S = 2.0  # for an answer
DRIFT = 1e-3  # that our clock and Redis's may differ by, per second
AWAY_S = 1.0  # after a failure, before the store is asked again


@cache
def script(name: str) -> str:
    """The whole text of a script."""
    folder = files("eccos_integrations.serving") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("common", name))


class Seen(NamedTuple):
    """The last answer: when it was asked for and heard by our clock; the ledger's time, epoch and number of leases."""

    asked_s: float
    heard_s: float
    now_us: int
    epoch: str
    granted: int


class Store:
    """A Redis that runs the scripts. While it is away, and for a second after, it is not asked again.

    Args:
        uri: See `RedisLedger`.
        name: Ledgers of one name share their records.
        blind_s: How long what was granted can still count: a ledger that forgot it stays shut for this long.
        clock: Seconds that only move forward.
    """

    def __init__(self, uri: str, name: str, blind_s: float, clock: Callable[[], float]) -> None:
        try:
            import redis
        except ImportError:
            raise MissingExtraError("redis", "redis") from None
        self._uri = uri
        self._prefix = f"eccos:{{{name}}}"
        self._keys = [f"{self._prefix}:{part}" for part in ("counts", "due", "leases")]
        self._blind_s = blind_s
        self._clock = clock
        self._seen: Seen | None = None
        self._away_until = -math.inf
        self._failures = (redis.RedisError, OSError)
        self._loops: dict[asyncio.AbstractEventLoop, tuple[Any, dict[str, Any]]] = {}
        try:
            parts = urlsplit(uri)
            asked = parse_qs(parts.query)
            words = [parts.password, parts.username, *asked.get("password", ()), *asked.get("username", ())]
            self._secrets = [unquote(word) for word in words if word]
            int(parts.path.strip("/") or 0)  # the number of a database, not the rest of a password with a slash in it
            self.place = f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}{parts.path}"
            self._client, self._scripts = self._connect(redis, redis.ConnectionPool)
        except ValueError:  # its words may hold a piece of a password
            raise ConfigError("uri: cannot be read; give redis://[[user]:password@]host[:port][/db]") from None

    def ask(self, name: str, arguments: Sequence[Any]) -> list[int] | StoreError:
        """What a script answers, or why there is no answer."""
        if waiting := self._gate():
            return waiting
        asked_s = self._clock()
        try:
            reply = self._scripts[name](self._keys, [*self._header(asked_s), *arguments])
        except self._failures as error:
            return self._lost(error)
        return self._found(asked_s, reply)

    async def aask(self, name: str, arguments: Sequence[Any]) -> list[int] | StoreError:
        """As `ask`, without blocking the event loop."""
        if waiting := self._gate():
            return waiting
        asked_s = self._clock()
        try:
            reply = await self._of_loop()[name](self._keys, [*self._header(asked_s), *arguments])
        except self._failures as error:
            return self._lost(error)
        return self._found(asked_s, reply)

    def recall(self, conversations: Sequence[str]) -> list[str | None] | StoreError:
        """What was noted of conversations."""
        if not conversations:
            return []
        if waiting := self._gate():
            return waiting
        try:
            found: list[str | None] = self._client.mget([self._key(name) for name in conversations])
        except self._failures as error:
            return self._lost(error)
        self._heard()
        return found

    def note(self, conversations: Mapping[str, str], keep_s: int) -> None:
        """Note something of conversations; lost where the store is away."""
        if not conversations or self._gate():
            return
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for name, text in conversations.items():
                    pipe.set(self._key(name), text, ex=keep_s)
                pipe.execute()
        except self._failures as error:
            self._lost(error)
        else:
            self._heard()

    def close(self) -> None:
        """Close the idle connections that belong to no event loop."""
        self._client.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close those of this event loop."""
        if mine := self._loops.pop(asyncio.get_running_loop(), None):
            await mine[0].connection_pool.disconnect()

    def _key(self, conversation: str) -> str:
        """Whoever reads the store learns no conversation's id."""
        return f"{self._prefix}:conversation:{sha256(conversation.encode()).hexdigest()}"

    def _connect(self, redis: Any, pool: Any, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """A client of `redis` or of `redis.asyncio`, and its scripts."""
        from redis.backoff import NoBackoff

        # A connection that broke while it lay idle is made anew, once; a step that ran twice changes nothing twice.
        retry = redis.retry.Retry(NoBackoff(), 1)
        timeouts = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
        made = pool.from_url(self._uri, retry=retry, decode_responses=True, **timeouts, **settings)
        client = redis.Redis(connection_pool=made)
        return client, {name: client.register_script(script(name)) for name in SCRIPTS}

    def _of_loop(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            import redis.asyncio

            for other in [other for other in list(self._loops) if other.is_closed()]:
                self._loops.pop(other, None)
            pool = redis.asyncio.BlockingConnectionPool
            self._loops[loop] = self._connect(redis.asyncio, pool, max_connections=CONNECTIONS, timeout=TIMEOUT_S)
        return self._loops[loop][1]

    def _header(self, now_s: float) -> list[Any]:
        seen = self._seen or Seen(now_s, now_s, 0, "", 0)
        granted = seen.granted if now_s - seen.asked_s < self._blind_s else 0  # what went out before then is over
        earliest_us = seen.now_us + int((now_s - seen.heard_s) * MICRO * (1 - DRIFT))
        latest_us = seen.now_us + int((now_s - seen.asked_s) * MICRO * (1 + DRIFT))
        return [seen.epoch, granted, earliest_us, latest_us, uuid4().hex, math.ceil(self._blind_s * MICRO)]

    def _found(self, asked_s: float, reply: list[Any]) -> list[int]:
        now_us, epoch, granted, forgot, *answer = reply
        self._heard()
        if forgot:
            logger.warning("the store of the limits lost its records and budgets start anew: %s", self.place)
        seen = self._seen
        if seen is None or epoch != seen.epoch or now_us >= seen.now_us:  # answers may overtake one another
            self._seen = Seen(asked_s, self._clock(), now_us, epoch, granted)
        return answer

    def _heard(self) -> None:
        if self._away_until > -math.inf:
            self._away_until = -math.inf
            logger.warning("the store of the limits is back: %s", self.place)

    def _gate(self) -> StoreError | None:
        now_s = self._clock()
        if now_s < self._away_until:
            return StoreError(f"{self.place} is away; it is asked again in {self._away_until - now_s:.1f} s")
        if self._away_until > -math.inf:
            self._away_until = now_s + AWAY_S  # one caller tries, the others go on without
        return None

    def _lost(self, error: Exception) -> StoreError:
        words = f"{type(error).__name__}: {error}"
        for secret in self._secrets:
            words = words.replace(secret, "***")
        if self._away_until == -math.inf:
            logger.warning("the store of the limits is away: %s (%s)", self.place, words)
        self._away_until = self._clock() + AWAY_S
        return StoreError(f"{self.place} is away ({words}); check that Redis runs there and that the URI fits")
