"""Detection of text encodings and of binary files."""

import codecs
from dataclasses import dataclass

from sandbox.web import Failure

SAMPLE_BYTES = 64 * 1024
"""Number of bytes at the start of a file that detection looks at."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
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
# Families that charset-normalizer recognizes even in short texts, because their bytes follow patterns.
_MULTIBYTE = frozenset({"gb18030", "gb2312", "gbk", "big5", "big5hkscs", "shift_jis", "cp932", "euc_jp", "euc_kr"})
_MIN_HIGH_BYTES = 24
"""Number of non-ASCII bytes from which the guess of a single-byte encoding is reliable."""


@dataclass(frozen=True)
class Encoding:
    """An encoding. `name`: its Python codec; `bom`: bytes before the text."""

    name: str
    bom: bytes = b""


def detect(sample: bytes, size: int, path: str, *, whole: bool) -> Encoding:
    """Return the encoding of a text from its start. `whole`: the sample is the whole file.

    Raises:
        Failure: 400 if the file is binary.
    """
    for bom, name in _BOMS:
        if sample.startswith(bom):
            return Encoding("utf-8" if name == "utf-8-sig" else name, bom)
    kind = next((kind for magic, kind in _MAGIC if sample.startswith(magic)), "")
    if kind and not _is_utf8(sample, whole=whole):
        raise binary_failure(kind, size, path)
    if b"\0" in sample:
        return _detect_utf16_without_bom(sample, kind, size, path)
    if _is_utf8(sample, whole=whole):
        return Encoding("utf-8")
    if sum(sample.count(byte) for byte in _CONTROLS) > len(sample) // 100:
        raise binary_failure(kind, size, path)
    return Encoding(_guess(sample))


def binary_failure(kind: str, size: int, path: str) -> Failure:
    """Return the failure that describes a binary file."""
    described = f"{kind}, {format_size(size)}" if kind else format_size(size)
    return Failure(400, f"binary file ({described}): {path}")


def format_size(size: int) -> str:
    """Return a size for people, such as `1.2 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.0f} {unit}" if size >= 10 * factor else f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _is_utf8(sample: bytes, *, whole: bool) -> bool:
    if b"\0" in sample:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=whole)
    except UnicodeDecodeError:
        return False
    return True


def _detect_utf16_without_bom(sample: bytes, kind: str, size: int, path: str) -> Encoding:
    """Detect UTF-16 without a byte order mark, in which ASCII text has a zero in every other byte."""
    half = max(len(sample) // 2, 1)
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if not kind and len(sample) % 2 == 0 and zeros > half * 0.6 and others < half * 0.02:
            return Encoding(name)
    raise binary_failure(kind, size, path)


def _guess(sample: bytes) -> str:
    from charset_normalizer import from_bytes  # slow to import and rarely needed

    high = sum(1 for byte in sample if byte >= 0x80)
    best = from_bytes(sample).best()
    if best is not None and (best.encoding in _MULTIBYTE or high >= _MIN_HIGH_BYTES) and best.encoding != "ascii":
        return best.encoding
    # Too little text to detect it: assume the most common single-byte encoding of Western languages.
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"
