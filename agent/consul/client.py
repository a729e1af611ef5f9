"""PUBLIC: the Consul Protocol spoken to a real server (or the embedded one) through py-consul."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from consul.callback import CB

from agent.consul import decode
from agent.consul.address import Address, Tls, Token
from agent.consul.caller import Caller
from agent.consul.connection import Connection
from agent.consul.errors import UNAVAILABLE
from agent.consul.protocol import (
    CheckGone,
    CheckHealth,
    CheckState,
    KeyValue,
    Service,
    ServiceHealth,
    SessionGone,
    SessionInfo,
    TxnOp,
)
from agent.errors import Missing, Waiting
from agent.keys import CLUSTER_META, ROOT

MAX_TXN = 64


class ConsulClient:
    """One Consul through its HTTP API. Connections open at the first call; `close` ends them."""

    def __init__(
        self,
        address: Address,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        tls: Tls | None = None,
        rpc_timeout: float = 10.0,
    ) -> None:
        self._caller = Caller(address, Token(token, token_file), tls or Tls(), rpc_timeout)

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], *, address: Address | None = None, token_file: Path | None = None
    ) -> ConsulClient:
        """The Consul that the CONSUL_… variables name, as for the `consul` program; what is given besides goes over them."""
        token = Token(file=token_file) if token_file else Token.from_environ(environ)
        where = address or Address.from_environ(environ)
        return cls(where, token=token.value, token_file=token.file, tls=Tls.from_environ(environ))

    @property
    def address(self) -> Address:
        return self._caller.address

    # --- keys ---------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        _, raw = await self._caller.ask(f"read {key}", lambda c: c.kv.get(key, consistency="consistent"))
        return decode.key_value(raw) if raw else None

    async def get_all(self, prefix: str) -> tuple[KeyValue, ...]:
        _, raw = await self._caller.ask(
            f"read keys below {prefix}", lambda c: c.kv.get(prefix, recurse=True, consistency="consistent")
        )
        return tuple(decode.key_value(each) for each in raw or ())

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        return _flag(await self._caller.ask(f"write {key}", lambda c: c.kv.put(key, value, cas=cas)))

    async def delete(self, key: str, *, cas: int | None = None, recurse: bool = False) -> bool:
        return _flag(await self._caller.ask(f"delete {key}", lambda c: c.kv.delete(key, recurse=recurse, cas=cas)))

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        return _flag(await self._caller.ask(f"lock {key}", lambda c: c.kv.put(key, value, acquire=session)))

    async def release(self, key: str, value: bytes, session: str) -> bool:
        return _flag(await self._caller.ask(f"unlock {key}", lambda c: c.kv.put(key, value, release=session)))

    async def txn(self, ops: Sequence[TxnOp]) -> tuple[KeyValue, ...]:
        if len(ops) > MAX_TXN:
            raise ValueError(f"a transaction has at most {MAX_TXN} operations, not {len(ops)}")
        body = json.dumps([decode.txn_op(op) for op in ops])
        # py-consul's txn.put takes no token.
        answer = await self._caller.ask("carry out a transaction", lambda c: _put(c, "/v1/txn", body, CB.json()))
        return tuple(decode.key_value(result["KV"]) for result in answer["Results"] or ())

    async def watch(self, key: str, index: int, wait: float) -> tuple[int, KeyValue | None]:
        new, raw = await self._caller.watch(
            f"watch {key}", ("key", key), index, wait, lambda c, i, w: c.kv.get(key, index=i, wait=w)
        )
        return new, decode.key_value(raw) if raw else None

    async def watch_all(self, prefix: str, index: int, wait: float) -> tuple[int, tuple[KeyValue, ...]]:
        new, raw = await self._caller.watch(
            f"watch keys below {prefix}",
            ("keys", prefix),
            index,
            wait,
            lambda c, i, w: c.kv.get(prefix, recurse=True, index=i, wait=w),
        )
        return new, tuple(decode.key_value(each) for each in raw or ())

    # --- sessions -----------------------------------------------------------------------------------------------

    async def session_create(
        self,
        name: str,
        *,
        ttl: float | None,
        lock_delay: float,
        behavior: Literal["release", "delete"] = "release",
        service_checks: Sequence[str] = (),
    ) -> str:
        # py-consul can neither leave out the node's serfHealth check nor ask for a TTL that a server's settings allow.
        request: dict[str, Any] = {
            "Name": name,
            "LockDelay": decode.duration(lock_delay),
            "Behavior": behavior,
            "NodeChecks": [],
            "ServiceChecks": [{"ID": check} for check in service_checks],
        }
        if ttl is not None:
            request["TTL"] = decode.duration(ttl)
        body = json.dumps(request)
        session = await self._caller.ask(
            f"create session {name}", lambda c: _put(c, "/v1/session/create", body, CB.json(is_id=True))
        )
        return str(session)

    async def session_renew(self, session: str) -> None:
        try:
            await self._caller.ask(f"renew session {session}", lambda c: c.session.renew(session), pool="renew")
        except Missing as error:
            raise SessionGone(error.detail) from error

    async def session_destroy(self, session: str) -> None:
        await self._caller.ask(f"end session {session}", lambda c: c.session.destroy(session))

    async def session_info(self, session: str) -> SessionInfo | None:
        _, raw = await self._caller.ask(
            f"read session {session}", lambda c: c.session.info(session, consistency="consistent")
        )
        return decode.session_info(raw) if raw else None

    # --- services and checks at the local agent -----------------------------------------------------------------

    async def register(self, service: Service) -> None:
        checks = [decode.check_definition(check) for check in service.checks]
        await self._caller.ask(
            f"register {service.id}",
            lambda c: c.agent.service.register(
                service.name,
                service_id=service.id,
                address=service.address,
                port=service.port,
                tags=list(service.tags),
                meta=dict(service.meta),
                check=checks[0] if checks else None,
                extra_checks=checks[1:],
                replace_existing_checks=True,  # a check that is no longer wanted must not stay and turn critical
            ),
        )

    async def deregister(self, service_id: str) -> None:
        try:
            await self._caller.ask(f"deregister {service_id}", lambda c: c.agent.service.deregister(service_id))
        except Missing:
            return  # newer Consuls say 404, older ones accept it: gone is what was wanted

    async def check_update(self, check_id: str, status: CheckState, output: str) -> None:
        body = json.dumps({"Status": status, "Output": output})
        try:
            # py-consul only has ttl_pass and its kind, which put the sentence into the URL.
            await self._caller.ask(
                f"update check {check_id}", lambda c: _put(c, f"/v1/agent/check/update/{check_id}", body, CB.boolean())
            )
        except CheckGone:
            raise
        except Missing as error:
            raise CheckGone(error.detail) from error

    async def local_services(self) -> Mapping[str, Service]:
        raw = await self._caller.ask("list this Consul agent's services", lambda c: c.agent.services())
        if not isinstance(raw, dict):
            raise Waiting("cannot list this Consul agent's services: no answer", code=UNAVAILABLE)
        return {each["ID"]: decode.local_service(each) for each in raw.values()}

    # --- catalog and health -------------------------------------------------------------------------------------

    async def watch_service(
        self, name: str, cluster: str, index: int, wait: float
    ) -> tuple[int, tuple[ServiceHealth, ...]]:
        wanted = f'Service.Meta["{CLUSTER_META}"] == "{cluster}"'
        new, raw = await self._caller.watch(
            f"watch service {name}",
            ("service", name, cluster),
            index,
            wait,
            lambda c, i, w: c.health.service(name, index=i, wait=w, filter_expr=wanted),
        )
        return new, tuple(sorted((decode.service_health(each) for each in _list(raw)), key=lambda each: each.id))

    async def watch_checks(self, cluster: str, index: int, wait: float) -> tuple[int, tuple[CheckHealth, ...]]:
        # The server thins out what belongs to others; what it lets through is compared exactly.
        own = f"{ROOT}{cluster}/"
        wanted = f'ServiceID matches "^{re.sub("[^a-z0-9/-]", ".", own)}"'
        new, raw = await self._caller.watch(
            f"watch checks of {cluster}",
            ("checks", cluster),
            index,
            wait,
            lambda c, i, w: c.health.state("any", index=i, wait=w, filter_expr=wanted),
        )
        found = (decode.check_health(each) for each in _list(raw))
        mine = (each for each in found if each.service_id.startswith(own))
        return new, tuple(sorted(mine, key=lambda each: each.id))

    # --- the server itself --------------------------------------------------------------------------------------

    async def leader(self) -> str:
        leader = await self._caller.ask("ask for the leader", lambda c: c.status.leader())
        if not leader:
            raise Waiting(f"Consul at {self.address} has no leader", code=UNAVAILABLE)
        return str(leader)

    async def describe(self) -> str:
        about = await self._caller.ask("ask Consul who it is", lambda c: c.agent.self())
        if not isinstance(about, dict):
            raise Waiting(f"{self.address} answers, but not as a Consul does", code=UNAVAILABLE)
        kind = "embedded Consul API" if "tdie-embedded" in (about.get("Meta") or {}) else "Consul"
        config = about["Config"]
        return f"{kind} {config['Version']}, node {config['NodeName']}, at {self.address}"

    async def ready(self, node: str) -> None:
        """Returns when there is a leader and it knows this node; raises Waiting before.

        A Consul that just started has a leader first, and refuses sessions until its own node is in the catalog.
        """
        await self.leader()
        _, nodes = await self._caller.ask("list nodes", lambda c: c.catalog.nodes(consistency="consistent"))
        if node not in {each.get("Node") for each in _list(nodes)}:
            raise Waiting(f"Consul at {self.address} does not know its node {node} yet", code=UNAVAILABLE)

    async def close(self) -> None:
        await self._caller.close()


def _put(connection: Connection, path: str, body: str, callback: Callable[[Any], Any]) -> Any:
    """What py-consul does inside, for the requests it cannot build."""
    return connection.http.put(callback, path, headers=connection.prepare_headers(), data=body)


def _flag(answer: object) -> bool:
    if not isinstance(answer, bool):
        raise Waiting(f"Consul answered {str(answer)[:80]!r} where yes or no was asked for", code=UNAVAILABLE)
    return answer


def _list(raw: Any) -> list[Any]:
    """A health read is a list also when it is empty; anything else is an error, never "nothing there"."""
    if not isinstance(raw, list):
        raise Waiting("Consul's health answer is not a list", code=UNAVAILABLE)
    return raw
