"""Photographs the live page of ``make serve`` for the README: ``make picture``.

``python docs/photograph.py`` writes docs/pictures/live.png; it needs a Chromium, which CHROMIUM
may name, and takes two minutes of traffic.
"""

import asyncio
import base64
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from tests.support.browser import browsing, chromium  # noqa: E402  # beside this folder

PICTURE: Final = ROOT / "docs" / "pictures" / "live.png"
WIDTH, HEIGHT, SCALE = 1120, 1215, 0.9  # which keeps it below 200 kB
SECONDS: Final = 119
"""Seconds of traffic that the plots show at the least."""


async def photograph(seconds: int = SECONDS) -> bytes:
    """Serves the example with its traffic for a while; gives a PNG of its page.

    Raises RuntimeError where there is no Chromium.
    """
    program = chromium()
    if program is None:
        raise RuntimeError("there is no Chromium here; name one by CHROMIUM")
    server = await asyncio.create_subprocess_exec(
        sys.executable, ROOT / "examples" / "serve.py", "--port", "0", stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        url = ""
        while not url:
            line = (await server.stdout.readline()).decode()
            if not line:
                raise RuntimeError("examples/serve.py ended")
            url = "".join(re.findall(r"the live page: (\S+)", line))
        async with browsing(program) as tab:
            await tab.do("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT,
                         deviceScaleFactor=SCALE, mobile=False)  # fmt: skip
            await tab.do("Emulation.setScrollbarsHidden", hidden=True)
            await tab.open(url)
            points = "document.querySelector('#plot polyline').getAttribute('points')"
            await tab.until(f"({points} || '').split(' ').length >= {seconds}", within=seconds + 60)
            shot = await tab.do("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])
    finally:
        server.send_signal(signal.SIGINT)
        await server.wait()


if __name__ == "__main__":
    PICTURE.write_bytes(asyncio.run(photograph()))
