"""A headless Chromium over its DevTools protocol, for tests of pages."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import websockets

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    """The path of the browser; None where there is none. CHROMIUM may name one."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One tab, and what it complained of."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        """Exceptions, errors in the console and violations of the content security policy."""
        self.dialogs = 0
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
                continue
            method, told = message["method"], message["params"]
            if method == "Page.javascriptDialogOpening":
                self.dialogs += 1
            elif method == "Runtime.exceptionThrown" or (
                method == "Log.entryAdded" and told["entry"]["level"] == "error"
            ):
                self.complaints.append(json.dumps(told))

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(30):
            message = await self._answers[number]
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    async def value(self, expression: str) -> Any:
        """The value of an expression in the page; a promise's, where it gives one."""
        told = await self.do(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in told:
            raise RuntimeError(json.dumps(told["exceptionDetails"]))
        return told["result"].get("value")

    async def open(self, url: str) -> None:
        """Goes to an address, until its page is whole; asks again where nothing listens yet."""
        whole = f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        async with asyncio.timeout(30):
            while "errorText" in await self.do("Page.navigate", url=url):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await self.until(whole)

    async def until(self, expression: str, within: float = 30) -> Any:
        """The value of an expression once it is truthy."""
        async with asyncio.timeout(within):
            while not (found := await self.value(expression)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return found

    async def close(self) -> None:
        """Ends the reading."""
        await self._socket.close()
        await asyncio.gather(self._reader, return_exceptions=True)


@asynccontextmanager
async def browsing(path: str) -> AsyncIterator[Tab]:
    """A tab of a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(  # noqa: ASYNC220  # it returns at once
            [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={folder}",
             "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = Path(folder) / "DevToolsActivePort"
            async with asyncio.timeout(60):
                while not port.exists() or "\n" not in port.read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            number = port.read_text().split("\n")[0]
            url = await _first_tab(int(number))
            socket = await websockets.connect(url, max_size=None)
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log"):
                await tab.do(f"{domain}.enable")
            yield tab
            await tab.close()
        finally:
            process.terminate()
            process.wait(20)


async def _first_tab(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
    assert length
    targets = json.loads(await reader.readexactly(int(length[1])))
    writer.close()
    url: str = next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
    return url
