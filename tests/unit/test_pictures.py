"""Tools that show the model pictures."""

import base64
import io
from dataclasses import dataclass, field, replace

import pytest
from PIL import Image as PillowImage

from app.domain.errors import SandboxFailure
from app.domain.models.browser import PageView
from app.domain.models.sandbox import FileImage
from app.domain.models.tool import Image, ToolResult
from app.domain.services.tools.base import RunCall, ToolContext, ToolDependencies
from app.domain.services.tools.registry import EXECUTING
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper


def jpeg(width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (width, height)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@dataclass
class PictureTools:
    """A session whose workspace and browser have pictures, and the tools of a model that sees or not."""

    sandboxes: MemorySandboxProvider = field(default_factory=MemorySandboxProvider)
    browsers: MemoryBrowsers = field(default_factory=MemoryBrowsers)
    screenshots: MemoryScreenshotKeeper = field(default_factory=MemoryScreenshotKeeper)

    async def call(self, name: str, arguments: str = "{}", *, vision: bool = True) -> ToolResult:
        shared = ToolDependencies(
            sandboxes=self.sandboxes, browsers=self.browsers, screenshots=self.screenshots, engine=FakeSearch()
        )
        bound = EXECUTING[name].bind(arguments, ToolContext(session_id="s", shared=shared, vision=vision))
        assert isinstance(bound, RunCall)
        return await bound.run()


@pytest.fixture
def tools() -> PictureTools:
    tools = PictureTools()
    tools.sandboxes.prepare("s").images["/home/ubuntu/a.png"] = FileImage(
        file="/home/ubuntu/a.png", jpeg=jpeg(1024, 512), original_width=4000, original_height=2000
    )
    tools.browsers.prepare("s").pages = [PageView(url="u", title="t", text="x", screenshot=jpeg(1000, 700))]
    return tools


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + b"x" * 3000}])
def test_size_of_a_jpeg_is_read_from_its_header(options: dict[str, object]) -> None:
    image = Image.of_jpeg(jpeg(640, 480, **options))
    assert image is not None
    assert (image.media_type, image.width, image.height) == ("image/jpeg", 640, 480)
    assert base64.b64decode(image.base64) == jpeg(640, 480, **options)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8jpeg", b"GIF89a" * 9, jpeg(9, 9)[:40]]
)
def test_what_is_no_jpeg_is_no_picture(content: bytes) -> None:
    assert Image.of_jpeg(content) is None


async def test_image_view_returns_picture_size_and_screenshot_address(tools: PictureTools) -> None:
    result = await tools.call("image_view", '{"file": "~/a.png"}')
    assert result.text == "4000 x 2000 pixels, shown at 1024 x 512"
    assert [(image.width, image.height) for image in result.images] == [(1024, 512)]
    assert result.data == {"file": "/home/ubuntu/a.png", "width": 4000, "height": 2000}
    assert result.content == {"content": result.text, **result.data, "screenshot": "/pictures/s/1"}
    assert tools.screenshots.kept["/pictures/s/1"] == base64.b64decode(result.images[0].base64)


async def test_image_view_succeeds_when_the_picture_cannot_be_stored_for_clients(tools: PictureTools) -> None:
    tools.screenshots.trouble = "the disk is full"
    result = await tools.call("image_view", '{"file": "~/a.png"}')
    assert result.images
    assert "screenshot" not in (result.content or {})


async def test_image_view_of_what_is_no_picture_fails(tools: PictureTools) -> None:
    with pytest.raises(SandboxFailure, match="no such file: ~/b"):
        await tools.call("image_view", '{"file": "~/b"}')
    images = tools.sandboxes.sandboxes["s"].images
    images["/home/ubuntu/a.png"] = replace(images["/home/ubuntu/a.png"], jpeg=b"<html>")
    with pytest.raises(SandboxFailure, match="no picture"):
        await tools.call("image_view", '{"file": "~/a.png"}')


async def test_browser_view_returns_picture_to_a_model_that_sees(tools: PictureTools) -> None:
    seen = await tools.call("browser_view")
    unseen = await tools.call("browser_view", vision=False)
    assert [(image.width, image.height) for image in seen.images] == [(1000, 700)]
    assert unseen.images == ()
    assert seen.text == unseen.text
    assert (await tools.call("browser_scroll_down")).images == ()


@pytest.mark.parametrize("screenshot", [None, b"", b"\xff\xd8no", jpeg(9, 9) + b"\0" * 500_000])
async def test_browser_view_without_a_usable_screenshot_returns_text(
    tools: PictureTools, screenshot: bytes | None
) -> None:
    tools.browsers.prepare("s").pages = [PageView(url="u", title="t", text="x", screenshot=screenshot)]
    assert (await tools.call("browser_view")).images == ()
