"""PUBLIC: the keeper as an agent uses it, over its unix socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import Denied, Invalid, Missing, Refused, TdieError, Waiting
from agent.keeper import codec
from agent.keeper.address import unix_address
from agent.keeper.protocol import HostOrder, HostRow

PATIENCE = 10.0
_KINDS: dict[int, type[TdieError]] = {403: Denied, 404: Missing, 409: Refused, 422: Invalid}


class KeeperClient:
    """Implements Protocol Keeper. Calls may overlap: they share one connection, which is made anew when it broke."""

    def __init__(self, socket_path: Path, *, timeout: float = PATIENCE) -> None:
        self._path, self._timeout = Path(socket_path), timeout
        self._numbers = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._connecting = asyncio.Lock()

    async def start(self, order: HostOrder) -> None:
        await self._ask_order("start", order)

    async def stop(self, replica: str) -> None:
        await self._ask({"do": "stop", "replica": replica})

    async def reconfigure(self, order: HostOrder) -> None:
        await self._ask_order("reconfigure", order)

    async def adjust(self, order: HostOrder) -> None:
        await self._ask_order("adjust", order)

    async def rename(self, replica: str, order: HostOrder) -> None:
        await self._ask_order("rename", order, replica=replica)

    async def forget(self, replica: str) -> None:
        await self._ask({"do": "forget", "replica": replica})

    async def extend(self, deadline: float) -> None:
        await self._ask({"do": "extend", "deadline": deadline})

    async def agree(self, replica: str, deadline: float) -> None:
        await self._ask({"do": "agree", "replica": replica, "deadline": deadline})

    async def fence(self, replica: str, code: str) -> None:
        await self._ask({"do": "fence", "replica": replica, "code": code})

    async def rows(self) -> tuple[HostRow, ...]:
        return tuple(codec.row_from(raw) for raw in await self._ask({"do": "rows"}))

    async def about(self) -> dict[str, Any]:
        """The keeper itself: `pid, code, zygote {pid, ready, replaced}, problems [{code, detail}], sandbox, hosts, protocol`."""
        found: dict[str, Any] = await self._ask({"do": "about"})
        return found

    async def upgrade(self, command: Sequence[str], code: str, *, timeout: float = 60.0) -> dict[str, Any]:
        """The keeper's process runs this command from now on, its hosts unharmed: `before, after, hosts, took` (seconds).

        `code` is what the command runs. Refused when it cannot be: the keeper then goes on as it was.
        """
        asked = {"do": "upgrade", "command": list(command), "code": code}
        done: dict[str, Any] = await self._ask(asked, timeout=timeout)
        return done

    async def problems(self) -> Mapping[str, str]:
        about = await self.about()
        found: dict[str, str] = {}
        for each in about["problems"]:
            before = found.get(each["code"])
            found[each["code"]] = f"{before}; {each['detail']}" if before else str(each["detail"])
        if code_and_text := str(about["sandbox"]):
            code, _, text = code_and_text.partition(" ")
            found[code] = text
        return found

    async def shutdown(self, *, timeout: float | None = 60.0) -> tuple[str, ...]:
        """All hosts are stopped and the keeper has ended; comes back with replicas that could not be killed."""
        left = await self._ask({"do": "shutdown"}, timeout=timeout)
        await self.aclose()
        return tuple(left)

    async def events(self) -> AsyncIterator[HostRow]:
        """Every row once, then each row whenever it changes; ends with Waiting when the keeper is gone."""
        reader, writer = await self._connect()
        try:
            writer.write(codec.line({"id": 0, "do": "events"}))
            await writer.drain()
            while text := await reader.readline():
                said = codec.read_object(text)
                if "row" in said:
                    yield codec.row_from(said["row"])
        except (OSError, ValueError) as error:
            raise Waiting(f"the keeper at {self._path} broke off", code="KEEPER_GONE") from error
        finally:
            writer.close()
        raise Waiting(f"the keeper at {self._path} is gone", code="KEEPER_GONE")

    async def aclose(self) -> None:
        """The connection is closed; a later call opens a new one."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def __aenter__(self) -> KeeperClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _ask_order(self, do: str, order: HostOrder, **more: str) -> None:
        await self._ask({"do": do, **more}, order=codec.order_text(order))

    async def _ask(self, request: dict[str, Any], *, order: str = "", timeout: float | None = -1.0) -> Any:
        writer = await self._ready()
        number = next(self._numbers)
        text = codec.text({"id": number, **request})
        if order:
            text = f'{text[:-1]},"order":{order}}}'
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout if timeout == -1.0 else timeout):
                writer.write(text.encode() + b"\n")
                await writer.drain()
                return await answer
        except (OSError, TimeoutError) as error:
            raise Waiting(f"the keeper at {self._path} does not answer", code="KEEPER_GONE") from error
        finally:
            self._answers.pop(number, None)

    async def _ready(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None or self._reading is None or self._reading.done():
                reader, self._writer = await self._connect()
                self._reading = asyncio.create_task(self._read(reader, self._writer), name="keeper-answers")
            return self._writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            with unix_address(self._path) as address:
                async with asyncio.timeout(self._timeout):
                    return await asyncio.open_unix_connection(address, limit=codec.MAX_LINE)
        except (OSError, TimeoutError) as error:
            raise Waiting(f"no keeper at {self._path}", code="KEEPER_GONE") from error

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while text := await reader.readline():
                said = codec.read_object(text)
                answer = self._answers.get(said.get("id", 0))
                if answer is None or answer.done():
                    continue
                if (error := said.get("error")) is None:
                    answer.set_result(said.get("result"))
                else:
                    kind = _KINDS.get(error.get("status", 500), TdieError)
                    answer.set_exception(kind(error["detail"], code=error["code"], hint=error.get("hint", "")))
        except (OSError, ValueError, TdieError):
            pass  # every waiting call is told below
        finally:
            writer.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(Waiting(f"the keeper at {self._path} is gone", code="KEEPER_GONE"))
