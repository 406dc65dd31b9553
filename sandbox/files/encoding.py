"""Encodings of text files: detected, or named by the caller. Binary files are refused."""

import codecs
import os
import unicodedata
from dataclasses import dataclass

from sandbox.files.guess import common_characters, guess
from sandbox.web import Failure

SAMPLE_BYTES = 64 * 1024
"""Number of bytes at the start of a file that detection looks at."""
_SCAN_BYTES = 16 * 1024 * 1024
"""Number of bytes at the start of a file that are checked for valid UTF-8."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"%PDF-", "PDF document"),
    (b"PK\x03\x04", "ZIP archive or office document"),
    (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"),
    (b"\xfd7zXZ\x00", "xz archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"\x7fELF", "ELF program"),
    (b"SQLite format 3\x00", "SQLite database"),
    (b"OggS", "Ogg media"),
    (b"ID3", "MP3 audio"),
)
_CONTROLS = bytes(range(7)) + bytes(range(14, 27)) + bytes(range(28, 32))
# Codecs whose text depends on what precedes it, and codecs for other purposes than files.
_UNFIT = frozenset({"utf-7", "idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "hz"})


@dataclass(frozen=True)
class Encoding:
    """An encoding of a file. `name`: its Python codec; `bom`: bytes before the text."""

    name: str
    bom: bytes = b""
    is_guess: bool = False
    """Whether the bytes do not say which encoding it is."""
    is_ascii: bool = False
    """Whether the text that was looked at is ASCII, so that many encodings would do."""

    @property
    def described(self) -> str:
        """The name for error texts and notes."""
        mark = " with a byte order mark" if self.bom else ""
        return f"{self.name}{mark}{' (a guess)' if self.is_guess else ''}"


def file_encoding(fd: int, path: str, asked: str | None = None) -> Encoding:
    """Return the encoding of an open file: `asked` if it is given. The file's position stays the same.

    Raises:
        Failure: 400 if the file is binary and no encoding is asked for, or if there is no such encoding.
    """
    sample = os.pread(fd, SAMPLE_BYTES, 0)
    if asked:
        return _of_existing(asked, sample)
    for bom, name in _BOMS:
        if sample.startswith(bom):
            return Encoding(name, bom)
    invalid = _first_invalid_utf8(fd)
    has_nul = b"\0" in sample
    kind = next((kind for magic, kind in _MAGIC if sample.startswith(magic)), "")
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    # UTF-16 may be valid UTF-8, but then it has control characters.
    wide = _wide_encoding(sample) if not kind and (controls or invalid is not None) else ""
    if wide:
        return Encoding(wide, is_guess=True)
    if invalid is None and not has_nul:
        return Encoding("utf-8", is_ascii=sample.isascii())
    if kind or has_nul or controls > len(sample) // 100:
        raise binary_failure(kind, os.fstat(fd).st_size, path)
    start = max((invalid or 0) - SAMPLE_BYTES // 2, 0)
    around = os.pread(fd, SAMPLE_BYTES, start)
    return Encoding(guess(around[around.find(b"\n") + 1 :] if start else around), is_guess=True)


def new_encoding(asked: str | None) -> Encoding:
    """Return the encoding of a file to create: UTF-8 unless `asked` is given.

    Raises:
        Failure: 400 if there is no such encoding.
    """
    name = _codec(asked or "utf-8")
    if name in ("utf-16", "utf-32"):
        name += "-le"
        return Encoding(name, next(bom for bom, its in _BOMS if its == name))
    return Encoding("utf-8", codecs.BOM_UTF8) if name == "utf-8-sig" else Encoding(name)


def encode(text: str, encoding: Encoding, path: str) -> bytes:
    """Return `text` in an encoding, without a byte order mark.

    Raises:
        Failure: 400 if the encoding cannot hold the text.
    """
    # Some codecs write a similar character, such as a backslash for a yen sign.
    data = text.encode(encoding.name, "ignore")
    if data.decode(encoding.name) == text:
        return data
    name = encoding.name
    missing = "".join(char for char in dict.fromkeys(text) if char.encode(name, "ignore").decode(name) != char)
    raise Failure(
        400,
        f"nothing was written: {encoding.described} cannot hold {missing[:9]!r}. Convert the file first, such as with "
        f"`iconv -f {name} -t utf-8`, or pass the right `encoding`: {path}",
    )


def _codec(asked: str) -> str:
    try:
        name = codecs.lookup(asked).name
        "".encode(name)  # a LookupError if it is not for text
    except (LookupError, ValueError):
        name = ""
    if not name or name in _UNFIT or name.startswith("iso2022"):
        names = "utf-8, utf-16, iso-8859-1, windows-1252, gb18030, shift_jis"
        raise Failure(400, f"no encoding {asked!r} here: pass one such as {names}, or convert the file with iconv")
    return name


def _of_existing(asked: str, sample: bytes) -> Encoding:
    name = _codec(asked).removesuffix("-sig")
    for bom, its in _BOMS:
        if sample.startswith(bom) and its.startswith(name):
            return Encoding(its, bom)
    return Encoding(f"{name}-le" if name in ("utf-16", "utf-32") else name)


def binary_failure(kind: str, size: int, path: str) -> Failure:
    """Return the failure that describes a binary file."""
    described = f"{kind}, {format_size(size)}" if kind else format_size(size)
    return Failure(400, f"binary file ({described}), text only if you pass its `encoding`: {path}")


def format_size(size: int) -> str:
    """Return a size for people, such as `1.2 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.0f} {unit}" if size >= 10 * factor else f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _first_invalid_utf8(fd: int) -> int | None:
    """Return about where a file stops to be valid UTF-8; None if it is valid as far as it is looked at."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    try:
        while position < _SCAN_BYTES:
            chunk = os.pread(fd, 1024 * 1024, position)
            decoder.decode(chunk, final=not chunk)
            if not chunk:
                break
            position += len(chunk)
    except UnicodeDecodeError as error:
        return position + error.start
    return None


def _wide_encoding(sample: bytes) -> str:
    """Return the UTF-16 or UTF-32 without byte order mark that a text is in; empty if none."""
    scores = {name: _plausibility(sample, name) for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")}
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] > 0.7 else ""


def _plausibility(sample: bytes, name: str) -> float:
    """Return the share of frequent characters in a text; 0 if it is very short, or has some that no text has."""
    width = 4 if "32" in name else 2
    try:
        text = sample[: min(len(sample), 4096) // width * width].decode(name)
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return 0
        text = sample[: error.start].decode(name)
    if len(text) < 4 or any(
        unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") for char in set(text) - set("\t\n\r\f")
    ):
        return 0
    frequent = common_characters()
    return sum(char < "\u0700" or "\u0e00" <= char <= "\u0e7f" or char in frequent for char in text) / len(text)
