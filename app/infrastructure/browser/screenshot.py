"""A screenshot of the viewport: small, and never a reason for an action to fail."""

import asyncio
import base64
import binascii
import logging

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.channel import Channel, Json, text

log = logging.getLogger(__name__)

QUALITY = 50
MAX_WIDTH = 1024
MAX_HEIGHT = 1024
FRAME_SECONDS = 1.0
STILL_SECONDS = 2.0


class Camera:
    """Takes screenshots of one tab."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._frame: asyncio.Future[str] | None = None
        channel.on("Page.screencastFrame", self._came)

    async def take(self) -> bytes | None:
        """The viewport as a JPEG; None when none can be had in time.

        The first frame of a screencast is scaled by the browser itself and costs half as much as a still, which a page
        gets of which no frame comes.
        """
        try:
            data = await self._first_frame() or await self._still()
            return base64.b64decode(data) or None
        except (BrowserFailure, binascii.Error) as error:
            log.info("no screenshot of the page: %s", error)
            return None

    async def _first_frame(self) -> str:
        frame = self._frame = asyncio.get_running_loop().create_future()
        size: Json = {"format": "jpeg", "quality": QUALITY, "maxWidth": MAX_WIDTH, "maxHeight": MAX_HEIGHT}
        try:
            async with asyncio.timeout(FRAME_SECONDS):
                await self._channel.send("Page.startScreencast", size)
                return await frame
        except TimeoutError:
            return ""
        finally:
            self._frame = None
            await self._channel.try_send("Page.stopScreencast")

    async def _still(self) -> str:
        how: Json = {"format": "jpeg", "quality": QUALITY, "optimizeForSpeed": True}
        return text(await self._channel.send("Page.captureScreenshot", how, seconds=STILL_SECONDS), "data")

    def _came(self, event: Json) -> None:
        if self._frame is not None and not self._frame.done():
            self._frame.set_result(text(event, "data"))
