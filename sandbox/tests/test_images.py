"""Pictures of the file API: real files of each format, and hostile ones."""

import base64
import io
import os
import random
import struct
import zlib

import pytest
from PIL import Image

from sandbox.files import images, process


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: dict) -> Image.Image:
    jpeg = base64.b64decode(data["base64"])
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (data["width"], data["height"]))
    assert data["media_type"] == "image/jpeg" and len(jpeg) <= images.MAX_JPEG_BYTES
    return image


def near(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int]) -> bool:
    return all(abs(found - wanted) < 12 for found, wanted in zip(image.getpixel(at), color, strict=True))


@pytest.mark.parametrize("kind", images.FORMATS)
async def test_picture_of_each_format_is_scaled_to_the_longest_side(box, kind):
    (box.home / "picture").write_bytes(saved(Image.new("RGB", (3000, 1500), (200, 30, 30)), kind))
    data = await box.file("image", file="~/picture")
    assert (data["file"], data["width"], data["height"]) == (f"{box.home}/picture", 1024, 512)
    assert (data["original_width"], data["original_height"]) == (3000, 1500)
    assert near(opened(data), (500, 200), (200, 30, 30))
    assert opened(await box.file("image", file="picture", max_side=64)).size == (64, 32)


async def test_small_picture_keeps_its_size(box):
    (box.home / "dot.png").write_bytes(saved(Image.new("RGB", (1, 1)), "PNG"))
    assert opened(await box.file("image", file="dot.png")).size == (1, 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16"])
async def test_picture_of_each_mode_keeps_its_brightness(box, mode):
    image = Image.new("I;16", (64, 64), 65_535) if mode == "I;16" else Image.new("RGB", (64, 64), "white").convert(mode)
    (box.home / "f").write_bytes(saved(image, "TIFF"))
    assert near(opened(await box.file("image", file="f")), (32, 32), (255, 255, 255))


async def test_transparent_parts_are_white(box):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    for kind in ("PNG", "GIF", "WEBP"):
        (box.home / "f").write_bytes(saved(image, kind))
        shown = opened(await box.file("image", file="f"))
        assert near(shown, (56, 32), (255, 255, 255)) and near(shown, (8, 32), (0, 0, 255))


async def test_photo_is_turned_as_its_camera_says(box):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    (box.home / "photo.jpg").write_bytes(saved(Image.new("RGB", (2000, 1000)), "JPEG", exif=exif))
    data = await box.file("image", file="photo.jpg")
    assert opened(data).size == (512, 1024)
    assert (data["original_width"], data["original_height"]) == (1000, 2000)


async def test_first_frame_of_an_animation_is_shown(box):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    (box.home / "f").write_bytes(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert near(opened(await box.file("image", file="f")), (16, 16), (255, 0, 0))


async def test_noise_is_made_small_enough(box):
    noise = random.Random(1).randbytes(1024 * 1024 * 3)
    (box.home / "f").write_bytes(saved(Image.frombytes("RGB", (1024, 1024), noise), "PNG"))
    assert opened(await box.file("image", file="f", max_side=2048)).width <= 1024


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Return a grayscale PNG whose header may promise more than there is."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"plain text", 400, "not a picture"),
        (b"", 400, "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "the browser shows more formats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 400, "not a picture"),
        (b"%PDF-1.4\n", 400, "not a picture"),
        (saved(Image.new("RGB", (64, 64)), "JPEG")[:-200], 400, "damaged"),
        (png(64, 64, b"\0" * 10), 400, "damaged"),
        (png(60_000, 60_000, b"\0" * 10), 413, "60000 x 60000 pixels are too many"),
        (png(2**31 - 1, 2**31 - 1, b""), 413, "too many"),
    ],
)
async def test_file_that_cannot_be_shown_is_refused_with_the_reason(box, content, status, reason):
    (box.home / "f").write_bytes(content)
    message = await box.file("image", status, file="~/f")
    assert reason in message and message.endswith(": ~/f")


async def test_large_picture_within_the_limit_is_shown(box):
    (box.home / "f").write_bytes(saved(Image.new("RGBA", (10_000, 5_000), (9, 9, 9, 255)), "PNG"))
    assert opened(await box.file("image", file="f")).size == (1024, 512)


async def test_huge_file_missing_file_folder_and_pipe_are_refused(box):
    with open(box.home / "huge", "wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    os.mkfifo(box.home / "pipe")
    assert "too large" in await box.file("image", 413, file="huge")
    assert "no such file" in await box.file("image", 404, file="none.png")
    assert "is a folder" in await box.file("image", 400, file="~")
    assert "pipe" in await box.file("image", 400, file="pipe")
    assert "no sudo" in await box.file("image", 400, file="huge", sudo=True)
    assert "max_side" in await box.file("image", 400, file="huge", max_side=5_000)


async def test_picture_outside_the_roots_is_refused(make_box, box, tmp_path):
    inner = await make_box(roots=(tmp_path / "home1",))
    (box.home / "f").write_bytes(saved(Image.new("RGB", (9, 9)), "PNG"))
    os.symlink(box.home / "f", inner.home / "link")
    assert "outside the folders" in await inner.file("image", 400, file=f"{box.home}/f")
    assert "outside the folders" in await inner.file("image", 400, file="link")


async def test_process_at_its_limit_is_reported(box, monkeypatch):
    program = process._PROGRAM.replace("main()", "from sandbox.files import images; images.CPU_SECONDS = 0; main()")
    monkeypatch.setattr(process, "_PROGRAM", program)
    (box.home / "f").write_bytes(saved(Image.new("RGB", (64, 64)), "PNG"))
    assert "too much time or memory" in await box.file("image", 400, file="f")
