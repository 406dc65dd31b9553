"""Pictures as a model reads them: decoded, scaled, and encoded as a small JPEG.

Decoders of pictures have bugs, and a small file can unpack to gigabytes. So `read_image` runs in a process of its own
(see `process`), which it limits before it decodes anything.
"""

import base64
import io
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.files.encoding import format_size
from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import open_regular
from sandbox.web import Failure

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
"""Formats that are decoded."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Maximum size of a picture's file, in bytes."""
MAX_PIXELS = 50_000_000
"""Maximum number of pixels of a picture."""
MAX_JPEG_BYTES = 200_000
"""Maximum size of the JPEG that is returned, in bytes."""
MEMORY_BYTES = 768 * 1024 * 1024
"""Maximum address space of the process, in bytes."""
CPU_SECONDS = 15
"""Maximum processor time of the process, in seconds."""
_QUALITIES = (75, 55, 35)
"""Qualities of the JPEG to try, from the best one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledImage:
    """A JPEG in base64, its size in pixels, and the size of the picture in the file."""

    base64: str
    width: int
    height: int
    original_width: int
    original_height: int


def read_image(place: ResolvedPath, max_side: int) -> ScaledImage:
    """Return the picture in a file, with sides of at most `max_side` pixels. Limits this process for good.

    Raises:
        Failure: The file is no picture, damaged or too large.
        OSError: The operating system refused.
    """
    fd, found = open_regular(place)
    with os.fdopen(fd, "rb") as file:
        if found.st_size > MAX_FILE_BYTES:
            raise Failure(413, f"the file has {format_size(found.st_size)}, which is too large: {place.given}")
        _limit_process()
        return _read(file, place.given, max_side)


def _limit_process() -> None:
    """Limit memory and processor time, and give up the rights of root: the file is open, and is not to be trusted."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        os.setgroups([])
        os.setgid(int(os.environ["SUDO_GID"]))
        os.setuid(int(os.environ["SUDO_UID"]))


def _read(file: io.BufferedReader, given: str, max_side: int) -> ScaledImage:
    from PIL import Image, ImageOps, UnidentifiedImageError  # slow to import and rarely needed

    Image.MAX_IMAGE_PIXELS = None  # checked here, with a message that says what to do
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Failure(413, f"{width} x {height} pixels are too many, scale it down first: {given}")
            image.draft("RGB", (max_side, max_side))  # a JPEG is decoded at a fraction of its size
            ImageOps.exif_transpose(image, in_place=True)
            if image.width != image.height and (image.width > image.height) != (width > height):
                width, height = height, width
            scaled = _flattened(image)
            scaled.thumbnail((max_side, max_side), reducing_gap=2.0)
    except UnidentifiedImageError:
        names = ", ".join(FORMATS)
        raise Failure(
            400, f"not a picture that can be read ({names}); the browser shows more formats: {given}"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Failure(400, f"the picture is damaged ({error}): {given}") from None
    except MemoryError:
        raise Failure(413, f"the picture needs too much memory, scale it down first: {given}") from None
    return ScaledImage(
        base64=base64.b64encode(_encode(scaled)).decode(),
        width=scaled.width,
        height=scaled.height,
        original_width=width,
        original_height=height,
    )


def _flattened(image: "Image.Image") -> "Image.Image":
    """Return the picture in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits a pixel, which `convert` would cut off instead of scaling
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")  # pyright: ignore[reportUnknownMemberType] - may take a numpy array
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # `convert` copies, and a copy is large
    opaque = Image.new("RGB", image.size, "white")
    visible = image if image.mode == "RGBA" else image.convert("RGBA")
    opaque.paste(visible, mask=visible)
    return opaque


def _encode(image: "Image.Image") -> bytes:
    """Return a JPEG of at most `MAX_JPEG_BYTES`. The picture is scaled further if it takes that."""
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= MAX_JPEG_BYTES:
                return buffer.getvalue()
        image.thumbnail((image.width * 3 // 4, image.height * 3 // 4))
