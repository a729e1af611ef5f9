"""The endpoints of the embedded Consul, each a few lines over the store."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from agent.consul.embedded import shapes
from agent.consul.embedded.base import Kind
from agent.consul.embedded.http import MAX_BODY, Server, body_json, number
from agent.consul.embedded.keys import MAX_VALUE
from agent.consul.embedded.state import Rejected

VERSION = "1.8.7"  # of the API that is spoken here


def application(server: Server) -> web.Application:
    app = web.Application(middlewares=[server.guard], client_max_size=MAX_BODY)
    routes = Routes(server)
    for method, path, handler in (
        ("GET", "/v1/kv/{name:.*}", routes.kv_get),
        ("PUT", "/v1/kv/{name:.+}", routes.kv_put),
        ("DELETE", "/v1/kv/{name:.*}", routes.kv_delete),
        ("PUT", "/v1/txn", routes.txn),
        ("PUT", "/v1/session/create", routes.session_create),
        ("PUT", "/v1/session/renew/{name}", routes.session_renew),
        ("PUT", "/v1/session/destroy/{name}", routes.session_destroy),
        ("GET", "/v1/session/{which:info|node}/{name}", routes.sessions),
        ("GET", "/v1/session/{which:list}", routes.sessions),
        ("PUT", "/v1/agent/service/register", routes.service_register),
        ("PUT", "/v1/agent/service/deregister/{name:.+}", routes.service_deregister),
        ("PUT", "/v1/agent/check/register", routes.check_register),
        ("PUT", "/v1/agent/check/deregister/{name:.+}", routes.check_deregister),
        ("PUT", "/v1/agent/check/{verb:pass|warn|fail|update}/{name:.+}", routes.check_update),
        ("GET", "/v1/agent/service/{name:.+}", routes.agent_service),
        ("GET", "/v1/agent/{which:services|checks|self|members}", routes.agent),
        ("GET", "/v1/catalog/{which:services|nodes|datacenters}", routes.catalog),
        ("GET", "/v1/catalog/{which:service|node}/{name:.+}", routes.catalog),
        ("GET", "/v1/health/{which:service|checks|state|node}/{name:.+}", routes.health),
        ("GET", "/v1/status/{which:leader|peers}", routes.status),
        ("PUT", "/v1/event/fire/{name}", routes.event_fire),
        ("GET", "/v1/event/list", routes.events),
    ):
        app.router.add_route(method, path, handler)
    return app


class Routes:
    """One method per endpoint."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = server.store

    # --- keys ---------------------------------------------------------------------------------------------------

    async def kv_get(self, request: web.Request) -> web.Response:
        name, store, query = request.match_info["name"], self.store, request.query
        many = "recurse" in query or "keys" in query

        def relevant(kind: Kind, key: str) -> bool:
            return kind == "kv" and (key.startswith(name) if many else key == name)

        def index() -> int:
            return store.prefix_index(name) if many else store.key_index(name)

        def answer() -> Any:
            found = list(store.below(name)) if many else [store.entries[name]] if name in store.entries else []
            if "keys" in query:
                return _separated([entry.key for entry in found], name, query.get("separator", ""))
            if found and "raw" in query:
                return found[0].value
            return [shapes.entry(entry) for entry in found]

        response = await self.server.read(request, relevant, index, answer)
        if response.body == b"[]":
            return self.server.answer(None, index(), 404)
        return response

    async def kv_put(self, request: web.Request) -> web.Response:
        name, value, query = request.match_info["name"], await request.read(), request.query
        if len(value) > MAX_VALUE:
            raise Rejected(413, f"Request body({len(value)} bytes) too large, max size: {MAX_VALUE} bytes.")
        flags = number(request, "flags") or 0
        if "acquire" in query:
            done = self.store.acquire(name, value, query["acquire"], flags)
        elif "release" in query:
            done = self.store.release(name, value, query["release"], flags)
        else:
            done = self.store.put(name, value, flags, number(request, "cas"))
        return self.server.answer(done)

    async def kv_delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if "recurse" in request.query:
            self.store.delete_tree(name)
            return self.server.answer(True)
        if not name:
            raise Rejected(400, "Missing key name")
        return self.server.answer(self.store.delete(name, number(request, "cas")))

    async def txn(self, request: web.Request) -> web.Response:
        entries = self.store.transact(shapes.txn_request(await body_json(request)))
        return self.server.answer({"Results": [{"KV": shapes.entry(entry)} for entry in entries], "Errors": None})

    # --- sessions -----------------------------------------------------------------------------------------------

    async def session_create(self, request: web.Request) -> web.Response:
        given = shapes.fields(await body_json(request), "session")
        delay = shapes.time(given.get("lockdelay"), "LockDelay")
        session = self.store.create_session(
            str(given.get("name", "")),
            ttl=shapes.time(given.get("ttl"), "TTL"),
            lock_delay=15.0 if "lockdelay" not in given else delay or 0.0,
            behavior=str(given.get("behavior") or "release"),
            node_checks=given.get("nodechecks", given.get("checks")),
            service_checks=[str(shapes.fields(each, "check").get("id")) for each in given.get("servicechecks", ())],
            node=given.get("node"),
        )
        return self.server.answer({"ID": session.id})

    async def session_renew(self, request: web.Request) -> web.Response:
        return self.server.answer([shapes.session(self.store.renew_session(request.match_info["name"]))])

    async def session_destroy(self, request: web.Request) -> web.Response:
        self.store.destroy_session(request.match_info["name"])
        return self.server.answer(True)

    async def sessions(self, request: web.Request) -> web.Response:
        name, which = request.match_info.get("name", ""), request.match_info["which"]

        def answer() -> Any:
            key = {"info": "id", "node": "node", "list": ""}[which]
            rows = self.store.sessions.values()
            return [shapes.session(each) for each in rows if not key or getattr(each, key) == name]

        return await self.server.read(
            request, lambda kind, _: kind == "session", lambda: self.store.session_index, answer
        )

    # --- the agent ----------------------------------------------------------------------------------------------

    async def service_register(self, request: web.Request) -> web.Response:
        service, checks = shapes.service_request(await body_json(request))
        self.store.register(service, checks, replace_checks="replace-existing-checks" in request.query)
        return self.server.answer(None)

    async def service_deregister(self, request: web.Request) -> web.Response:
        self.store.deregister(request.match_info["name"])
        return self.server.answer(None)

    async def check_register(self, request: web.Request) -> web.Response:
        given = await body_json(request)
        self.store.add_check(shapes.check_request(given, str(shapes.fields(given, "check").get("serviceid", ""))))
        self.store.follow_aliases()
        return self.server.answer(None)

    async def check_deregister(self, request: web.Request) -> web.Response:
        self.store.remove_check(request.match_info["name"])
        self.store.follow_aliases()
        return self.server.answer(None)

    async def check_update(self, request: web.Request) -> web.Response:
        verb, name = request.match_info["verb"], request.match_info["name"]
        if verb == "update":
            given = shapes.fields(await body_json(request), "update")
            self.store.update_check(name, str(given.get("status", "")), str(given.get("output", "")))
        else:
            status = {"pass": "passing", "warn": "warning", "fail": "critical"}[verb]
            self.store.update_check(name, status, request.query.get("note", ""))
        return self.server.answer(None)

    async def agent_service(self, request: web.Request) -> web.Response:
        service = self.store.services.get(request.match_info["name"])
        if service is None:
            raise Rejected(404, f"unknown service ID: {request.match_info['name']}")
        return self.server.answer(shapes.service(service))

    async def agent(self, request: web.Request) -> web.Response:
        store, which = self.store, request.match_info["which"]
        if which in ("self", "members"):
            return self.server.answer(self._self() if which == "self" else [self._member()])

        def answer() -> Any:
            if which == "services":
                return {each.id: shapes.service(each) for each in store.services.values()}
            return {each.id: shapes.check(store, each) for each in store.checks.values()}

        return await self.server.read(request, lambda *_: True, lambda: store.catalog_index, answer)

    def _self(self) -> dict[str, Any]:
        config = {"Datacenter": shapes.DATACENTER, "NodeName": self.store.node, "Server": True, "Version": VERSION}
        return {
            "Config": {**config, "NodeID": shapes.NODE_ID, "Revision": "embedded"},
            "DebugConfig": {"SessionTTLMin": f"{self.store.session_ttl_min:g}s"},
            "Member": self._member(),
            "Meta": {"tdie-embedded": "1"},
            "Stats": {"agent": {"services": str(len(self.store.services)), "checks": str(len(self.store.checks))}},
        }

    def _member(self) -> dict[str, Any]:
        tags = {"role": "consul", "dc": shapes.DATACENTER, "build": f"{VERSION}:embedded", "vsn": "2", "segment": ""}
        return {
            "Name": self.store.node,
            "Addr": shapes.ADDRESS,
            "Port": self.server.http_port,
            "Tags": {**tags, "id": shapes.NODE_ID, "port": str(self.server.http_port)},
            "Status": 1,
            **{f"{kind}{edge}": 2 for kind in ("Protocol", "Delegate") for edge in ("Min", "Max", "Cur")},
        }

    # --- catalog, health, the rest ------------------------------------------------------------------------------

    async def catalog(self, request: web.Request) -> web.Response:
        store, which, name = self.store, request.match_info["which"], request.match_info.get("name", "")

        def answer() -> Any:
            if which == "datacenters":
                return [shapes.DATACENTER]
            if which == "nodes":
                return [shapes.node(store)]
            if which == "services":
                tags: dict[str, set[str]] = {"consul": set()}
                for each in store.services.values():
                    tags.setdefault(each.name, set()).update(each.tags)
                return {service: sorted(found) for service, found in sorted(tags.items())}
            if which == "service":
                return [shapes.catalog_service(store, each) for each in _named(store.services.values(), name)]
            services = {each.id: shapes.service(each) for each in store.services.values()}
            return {"Node": shapes.node(store), "Services": services} if name == store.node else None

        def index() -> int:
            return store.names.get(name, 1) if which == "service" else store.catalog_index

        return await self.server.read(request, lambda kind, _: kind in ("service", "name"), index, answer)

    async def health(self, request: web.Request) -> web.Response:
        store, which, name = self.store, request.match_info["which"], request.match_info["name"]
        if which == "state" and name not in ("any", "unknown", "passing", "warning", "critical"):
            raise Rejected(400, f"Invalid check state: {name}")
        tag = request.query.get("tag")

        def answer() -> Any:
            if which == "service":
                rows = [shapes.health(store, each) for each in _named(store.services.values(), name)]
                rows = [row for row in rows if tag is None or tag in row["Service"]["Tags"]]
                passing = "passing" in request.query
                return [row for row in rows if not passing or all(c["Status"] == "passing" for c in row["Checks"])]
            checks = [shapes.serf(store), *(shapes.check(store, each) for each in store.checks.values())]
            if which == "checks":
                return [each for each in checks if each["ServiceName"] == name]
            if which == "node":
                return checks if name == store.node else []
            return [each for each in checks if name in ("any", each["Status"])]

        def index() -> int:
            return store.names.get(name, 1) if which in ("service", "checks") else store.catalog_index

        return await self.server.read(request, lambda kind, _: kind in ("service", "check", "name"), index, answer)

    async def status(self, request: web.Request) -> web.Response:
        here = f"{shapes.ADDRESS}:{self.server.http_port}"
        return self.server.answer(here if request.match_info["which"] == "leader" else [here])

    async def event_fire(self, request: web.Request) -> web.Response:
        return self.server.answer(shapes.event(self.store.fire(request.match_info["name"], await request.read())))

    async def events(self, request: web.Request) -> web.Response:
        name = request.query.get("name", "")

        def answer() -> Any:
            return [shapes.event(each) for each in self.store.events if name in ("", each.name)]

        return await self.server.read(request, lambda kind, _: kind == "event", lambda: self.store.event_index, answer)


def _named(rows: Any, name: str) -> list[Any]:
    return [each for each in rows if each.name == name]


def _separated(keys: list[str], prefix: str, separator: str) -> list[str]:
    """Keys, those with the separator after the prefix cut off behind it and told once."""
    if not separator:
        return keys
    found: dict[str, None] = {}
    for key in keys:
        at = key.find(separator, len(prefix))
        found[key if at < 0 else key[: at + len(separator)]] = None
    return list(found)
