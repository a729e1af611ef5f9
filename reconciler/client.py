"""PUBLIC: the controller's API for commands and programs; foreign errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from agent.correlation import HEADER, current
from agent.errors import Denied, Invalid, Missing, Refused, TdieError, Waiting

_KINDS: dict[int, type[TdieError]] = {401: Denied, 403: Denied, 404: Missing, 409: Refused, 422: Invalid, 503: Waiting}


UPLOAD = 600.0  # seconds for a whole package


class MasterClient:
    """One controller. Every method raises Waiting when it does not answer."""

    def __init__(self, api: str, token: str | None = None) -> None:
        self.api = api.rstrip("/")
        headers = {HEADER: current(), **({"Authorization": f"Bearer {token}"} if token else {})}
        self._http = httpx.Client(base_url=self.api, headers=headers, timeout=httpx.Timeout(15.0), trust_env=False)

    def __enter__(self) -> MasterClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, *, timeout: float = 15.0, **params: Any) -> Any:
        """The JSON document at this path below /api/master."""
        return self._call("GET", path, params=params, timeout=timeout).json()

    def text(self, path: str, **params: Any) -> str:
        """The text at this path below /api/master."""
        return self._call("GET", path, params=params, timeout=15.0).text

    def stream(self, path: str, **params: Any) -> Iterator[str]:
        """The text at this path below /api/master as it comes, until the other side ends it."""
        try:
            timeout = httpx.Timeout(15.0, read=None)
            with self._http.stream("GET", f"/api/master{path}", params=params, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                yield from response.iter_text()
        except httpx.HTTPError as error:
            raise Waiting(f"the controller at {self.api} went away: {error}") from error

    def post(self, path: str, body: Any = None) -> Any:
        """What the controller answers to this request of a person."""
        return self._call("POST", path, json=body, timeout=15.0).json()

    def put(self, path: str, body: Any = None) -> Any:
        """What the controller answers to this wish of a person."""
        return self._call("PUT", path, json=body, timeout=15.0).json()

    def delete(self, path: str) -> Any:
        """What the controller answers when a person takes something back."""
        return self._call("DELETE", path, timeout=15.0).json()

    def upload(self, path: str, archive: Path) -> Any:
        """What the controller answers to this package."""
        with archive.open("rb") as file:
            headers = {"Content-Type": "application/zip", "Content-Length": str(archive.stat().st_size)}
            return self._call("POST", path, content=file, headers=headers, timeout=UPLOAD).json()

    def _call(self, method: str, path: str, *, timeout: float, **kind: Any) -> httpx.Response:
        try:
            response = self._http.request(method, f"/api/master{path}", timeout=timeout, **kind)
        except httpx.HTTPError as error:
            raise Waiting(f"the controller at {self.api} does not answer: {error}", hint="is it running?") from error
        if response.is_success:
            return response
        raise _error(response)


def _error(response: httpx.Response) -> TdieError:
    """The RFC 9457 problem as one of our errors."""
    try:
        problem = response.json()
        code, detail = str(problem["code"]), str(problem.get("detail") or problem.get("title"))
        hint = str(problem.get("hint") or "")
    except (ValueError, KeyError, TypeError):
        code, detail, hint = "BAD_ANSWER", f"HTTP {response.status_code} without a problem document", ""
    return _KINDS.get(response.status_code, TdieError)(detail, code=code, hint=hint)
