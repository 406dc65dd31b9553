"""Encodings and line ends: detection, reading, replacing and appending without loss."""

import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.files import reading, replacing, writing
from sandbox.files.guess import guess
from sandbox.files.paths import ResolvedPath
from sandbox.web import Failure

WESTERN = "latin-1 cp1252 iso8859-15 cp850 mac-roman"
CENTRAL = "cp1250 iso8859-2 cp852"
CYRILLIC = "cp1251 koi8-r iso8859-5 cp866 mac-cyrillic"
LANGUAGES = {
    "Le café est très bon; déjà vu, à bientôt, où êtes-vous? Ça ne fait rien, garçon.": WESTERN,
    "Grüße aus Köln, schöne Mädchen, übermäßig große Äpfel für Österreich.": WESTERN,
    "El niño pequeño comió una manzana. ¿Dónde está la estación? Mañana será otro día.": WESTERN,
    "A situação não é fácil: você também precisa de informações sobre a nação, avó e mãe.": WESTERN,
    "Perché la città è così bella? Più o meno è già lì, però non può essere.": WESTERN,
    "Många människor åker från Malmö till Göteborg på sommaren, även när det är kallt.": WESTERN,
    "Rødgrød med fløde på bordet, og så går vi en tur på gården, hvor æblerne er røde.": WESTERN,
    "It’s a “quoted” word – and the price is £5… it doesn’t matter.": "cp1252",
    "Zażółć gęślą jaźń; proszę, że również się cieszę na świąteczną kolację w Łodzi.": CENTRAL,
    "Příliš žluťoučký kůň úpěl ďábelské ódy, řekl děda a šel domů.": CENTRAL,
    "Árvíztűrő tükörfúrógép, a férfi szőlőt és körtét evett a kertjében.": CENTRAL,
    "Îmi place să mănânc mâine şi să văd ţara în această dimineaţă.": CENTRAL,
    "Čovjek je išao kući, a žena je čekala ispred željezničke stanice; već je kasno.": CENTRAL,
    "Türkiye'nin başkenti Ankara'dır; çocuklar dışarıda oynuyor, ığdır güzel şehir.": "cp1254 iso8859-9",
    "Lietuvos sostinė yra Vilnius; žmonės mėgsta šį gražų miestą ir jo aikštes.": "cp1257 iso8859-13",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Привет, мир!": CYRILLIC,
    "София е столицата на България и най-големият град в страната.": CYRILLIC,
    "Київ є столицею України, де живуть мільйони людей і їхні діти.": "cp1251 koi8-u",
    "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας και η μεγαλύτερη πόλη της.": "cp1253 iso8859-7",
    "ירושלים היא בירת ישראל והעיר הגדולה ביותר במדינה.": "cp1255 iso8859-8",
    "القاهرة هي عاصمة مصر وأكبر مدينة في العالم العربي.": "cp1256 iso8859-6",
    "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทยและมีประชากรมาก": "cp874 tis-620",
    "今天天气很好,我们去公园散步吧。北京是中国的首都。": "gbk gb18030",
    "今天天氣很好,我們去公園散步吧。臺北是一個大城市。": "big5 cp950",
    "これは日本語の文章です。文字コードを判定します。東京は日本の首都です。": "shift_jis cp932 euc_jp",
    "이것은 한국어 문장입니다. 서울은 대한민국의 수도이며 가장 큰 도시입니다.": "euc_kr cp949",
}
SHORT = {
    "caf\u00e9": "latin-1 cp850 mac-roman",
    "Prénom;Ville\nRené;Orléans": "latin-1",
    "ÉTÉ": "latin-1",
    "10 €": "cp1252 iso8859-15",
    "Grüße": "latin-1 cp850",
    "MÜLLER": "latin-1",
    "¿Qué?": "latin-1",
    "coração": "latin-1",
    "smørrebrød": "latin-1",
    "Łódź": CENTRAL,
    "Dvořák": CENTRAL,
    "İstanbul": "cp1254 iso8859-9",
    "Привет": "cp1251 koi8-r cp866 iso8859-5",
    "МОСКВА": "cp1251 koi8-r cp866",
    "Имя;Город\nИван;Москва": "cp1251 koi8-r cp866",
    "Καλημέρα": "cp1253 iso8859-7",
    "שלום": "cp1255",
    "مرحبا": "cp1256",
    "价格,数量": "gbk",
    "姓名,年龄\n张三,25\n": "gbk",
    "价格 ✓ 😀 数量": "gb18030",
    "價格,數量": "big5",
    "日本語": "shift_jis euc_jp",
    "カタカナ": "euc_jp",
    "가격,수량": "euc_kr",
    "서울": "euc_kr",
}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(text, name) for texts in (LANGUAGES, SHORT) for text, names in texts.items() for name in names.split()],
)
def test_text_of_a_common_language_is_decoded(text, encoding):
    data = text.encode(encoding)
    assert data.decode(guess(data)) == text


@pytest.fixture
def place(tmp_path) -> ResolvedPath:
    return _place(tmp_path / "f")


def _place(path: Path) -> ResolvedPath:
    return ResolvedPath(path.name, str(path), str(path))


def _read(place: ResolvedPath, asked: str | None = None) -> reading.FileText:
    return reading.read(place, reading.Selection(), asked)


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("text", [*list(LANGUAGES)[::4], "Привет", "你好世界", "plain\r\ntext\r\n"])
def test_unicode_is_recognized_with_and_without_mark(place, name, text):
    file = Path(place.real)
    file.write_bytes(MARKED[name] + text.encode(name))
    found = _read(place)
    assert (found.content, found.encoding.name) == (text.replace("\r\n", "\n"), name)
    assert (found.encoding.bom, found.encoding.is_guess) == (MARKED[name], False)
    file.write_bytes(text.encode(name))
    found = _read(place)
    assert (found.content, found.encoding.name) == (text.replace("\r\n", "\n"), name)
    assert (found.encoding.bom, found.encoding.is_guess) == (b"", name != "utf-8")


def test_encoding_behind_a_long_ascii_start_is_detected(place):
    start = b"plain ascii\n" * 40_000
    Path(place.real).write_bytes(start + "Grüße aus Köln\n".encode("latin-1"))
    assert _read(place).content.endswith("Grüße aus Köln\n")
    Path(place.real).write_bytes(start + "Grüße aus Köln\n".encode())
    assert not _read(place).encoding.is_guess


def test_utf8_with_invalid_bytes_stays_utf8_and_counts_them(place):
    Path(place.real).write_bytes("Grüße, Köln, Äpfel\n".encode() + b"\xff\xfe bad \xe4\n")
    found = _read(place)
    assert (found.content, found.encoding.name) == ("Grüße, Köln, Äpfel\n\ufffd\ufffd bad \ufffd\n", "utf-8")
    assert found.invalid == 3
    replacing.replace(place, "bad", "good")
    assert Path(place.real).read_bytes() == "Grüße, Köln, Äpfel\n".encode() + b"\xff\xfe good \xe4\n"


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"one\rtwo\rthree\r", "one\ntwo\nthree\n"),
        (b"one\r\ntwo\n\rthree", "one\ntwo\n\rthree"),
        ("form\x0cfeed\x0b\u2028 \u2029 \x85 \x1c\n".encode(), "form\x0cfeed\x0b\u2028 \u2029 \x85 \x1c\n"),
    ],
)
def test_only_line_ends_are_shown_as_newlines(place, data, content):
    Path(place.real).write_bytes(data)
    found = _read(place)
    assert (found.content, found.line_count) == (content, len(content.rstrip("\n").split("\n")))


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        ("one\r\ntwo\nthree\nfour\n", "three\nfour", "three\nb\nfour", "one\r\ntwo\nthree\nb\nfour\n"),
        ("one\r\ntwo\nthree\nfour\n", "one\ntwo\nthree", "1\n2\n3", "1\r\n2\n3\nfour\n"),
        ("one\r\ntwo\nthree\r\n", "one\n", "one\nnew\n", "one\r\nnew\r\ntwo\nthree\r\n"),
        ("one\ntwo\r\nx", "x", "x\ny", "one\ntwo\r\nx\r\ny"),
        ("one\r\ntwo\r\n", "one\ntwo\n", "", ""),
        ("one\r\ntwo\r\n", "\n", "\r\n", "one\r\ntwo\r\n"),
        ("one\r\ntwo\r\n", "\r\n", "\n", "one\ntwo\n"),
        ("one\ntwo\n", "\n", "\r\n", "one\r\ntwo\r\n"),
        ("one\ntwo\n", "one\r\ntwo", "one\r\n2", "one\r\n2\n"),
        ("one\rtwo\rthree", "one\ntwo", "1\n1b\n2", "1\r1b\r2\rthree"),
        ("a  \t\r\n\r\nb  ", "a", "c", "c  \t\r\n\r\nb  "),
        ("x,y", ",", ",\n", "x,\ny"),
        ("a\r\na\na\r\n", "a\n", "b\n", "b\r\nb\nb\r\n"),
        ("progress 1%\r2%\rdone\n", "done", "end", "progress 1%\r2%\rend\n"),
    ],
)
def test_replacement_takes_the_line_ends_of_its_surroundings(place, before, old, new, after):
    Path(place.real).write_bytes(before.encode())
    replacing.replace(place, old, new)
    assert Path(place.real).read_bytes() == after.encode()


NAMES = st.sampled_from(
    "utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-be latin-1 cp1252 cp1251 koi8-r iso8859-2 cp437 gbk "
    "gb18030 shift_jis cp932 euc_jp big5 cp950 big5-hkscs euc_kr cp949".split()
)
PIECES = st.lists(
    st.text(max_size=6)
    | st.sampled_from([*LANGUAGES])
    | st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\x0c", "\ufeff"]),
    max_size=12,
).map("".join)
MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)


@MANY
@given(NAMES, PIECES, PIECES, st.binary(max_size=3), st.sampled_from(["#", "@\n@", "@\n"]))
def test_replacement_leaves_all_other_bytes_as_they_are(place, name, before, behind, stray, marker):
    """The bytes around the marker come from any text and have some that are not valid in the encoding."""
    codec = codecs.lookup(name).name
    mark = next((MARKED[f"{codec}-le"] for each in ("utf-16", "utf-32") if each == codec), b"")
    codec = f"{codec}-le" if mark else codec
    wide = "16" in codec or "32" in codec
    head, tail = (part.translate({35: None, 64: None}).encode(codec, "ignore") for part in (before, behind))
    head = mark + (head if wide or marker != "#" else head + b"\n" + stray.replace(b"#", b"") + b"\n")
    plain = codec.removesuffix("-sig") if codec == "utf-8-sig" else codec
    file = Path(place.real)
    file.write_bytes(head + marker.encode(plain) + tail)
    count = replacing.replace(place, marker, "new", name).count
    assert (count, file.read_bytes()) == (1, head + "new".encode(plain) + tail)


@MANY
@given(NAMES, PIECES)
def test_written_text_is_read_again(place, name, text):
    text = text.lstrip("\ufeff")  # at the start it is a byte order mark
    if text.encode(name, "ignore").decode(name) != text:
        with pytest.raises(Failure, match="nothing was written"):
            writing.write(place, text, name)
        return
    writing.write(place, text, name)
    found = _read(place, name)
    assert reading.has_cr_ends(text) or found.content == text.replace("\r\n", "\n")
    assert found.invalid == 0


@MANY
@given(PIECES, st.data())
def test_part_of_the_text_as_it_was_read_is_found(place, text, data):
    """Replacing it by itself changes nothing, and by something else only what is between unchanged ends."""
    text = text.replace("#", "")
    file = Path(place.real)
    file.write_bytes(text.encode())
    shown = _read(place, "utf-8").content
    if not shown:
        return
    start = data.draw(st.integers(0, len(shown) - 1))
    part = shown[start : data.draw(st.integers(start + 1, len(shown)))]
    exact = "\r" in part and part in text  # carriage returns that are meant as they are
    assert replacing.replace(place, part, part, "utf-8").count == (text if exact else shown).count(part)
    assert file.read_bytes() == text.encode()
    if shown.count(part) == 1 and part not in text:
        replacing.replace(place, part, f"{part}#", "utf-8")
        assert file.read_bytes().replace(b"#", b"") == text.encode()


@pytest.mark.parametrize("call", ["append", "leading", "replace", "write"])
@pytest.mark.parametrize("encoding", ["latin-1", "koi8-r", "gbk", "shift_jis", "euc_kr", "big5"])
async def test_text_that_the_encoding_cannot_hold_is_refused(box, call, encoding):
    text = next(text for text, names in LANGUAGES.items() if encoding in names.split()) + "\n"
    file = box.home / "f"
    file.write_bytes(text.encode(encoding))
    change = "✓ \u4e16😀\n"
    if call == "replace":
        message = await box.file("replace", 400, file="f", old_str=text[:5], new_str=change)
    else:
        options = {"encoding": encoding} if call == "write" else {"append": True, "leading_newline": call == "leading"}
        message = await box.file("write", 400, file="f", content=change, **options)
    assert "nothing was written" in message and "😀" in message and "iconv" in message and "`encoding`" in message
    assert file.read_bytes() == text.encode(encoding)


async def test_append_keeps_encoding_and_line_ends(box):
    file = box.home / "f"
    for encoding, end in (
        ("latin-1", "\r\n"),
        ("utf-16", "\n"),
        ("gbk", "\r\n"),
        ("cp1251", "\r"),
        ("utf-8-sig", "\r\n"),
    ):
        text = next(text for text, names in LANGUAGES.items() if encoding in names.split() or "latin-1" in names) + end
        text = (
            text if encoding not in ("gbk", "cp1251") else next(t for t, n in LANGUAGES.items() if encoding in n) + end
        )
        file.write_bytes((text * 2).encode(encoding))
        data = await box.file("write", file="f", content=f"{text[:9]}\n", append=True, leading_newline=True)
        assert file.read_bytes() == (text * 2 + end + text[:9] + end).encode(encoding)
        assert data["encoding_is_guess"] is (encoding in ("latin-1", "gbk", "cp1251"))
        assert ("is a guess" in data["note"]) is data["encoding_is_guess"]


async def test_asked_encoding_is_used_and_told(box):
    file = box.home / "f"
    data = await box.file("write", file="f", content="Łódź\n", encoding="ISO-8859-2")
    assert file.read_bytes() == "Łódź\n".encode("iso8859-2") and not data["encoding_is_guess"]
    assert (await box.file("read", file="f", encoding="latin-1"))["content"] == "£ód\xbc\n"
    await box.file("replace", file="f", old_str="ód", new_str="ąd", encoding="iso-8859-2")
    await box.file("write", file="f", content="ę", append=True, encoding="iso-8859-2")
    assert file.read_bytes() == "Łądź\nę".encode("iso8859-2")
    await box.file("write", file="g", content="a", encoding="utf-16")
    assert (box.home / "g").read_bytes() == b"\xff\xfea\x00"
    for name in ("klingon", "rot13", "utf-7", "idna", "base64", "unicode_escape", "iso2022_jp"):
        assert "no encoding" in await box.file("read", 400, file="f", encoding=name)
    (box.home / "b").write_bytes(b"\x7fELF\0text")
    assert "`encoding`" in await box.file("read", 400, file="b")
    assert (await box.file("read", file="b", encoding="latin-1"))["content"] == "\x7fELF\0text"


async def test_append_in_another_encoding_than_the_files_is_refused(box):
    (box.home / "f").write_text("Grüße\n")
    message = await box.file("write", 400, file="f", content="Köln\n", append=True, encoding="latin-1")
    assert "the file is utf-8" in message and (box.home / "f").read_text() == "Grüße\n"


async def test_new_content_of_a_file_tells_that_encoding_and_line_ends_changed(box):
    (box.home / "f").write_bytes("Grüße\r\nKöln\r\n".encode("latin-1"))
    note = (await box.file("write", file="f", content="Grüße\nBonn\n"))["note"]
    assert "it was iso-8859-1 (a guess) and is utf-8 now" in note and "CRLF and are LF now" in note
    assert (await box.file("write", file="f", content="Grüße\nBonn\n"))["note"] == ""


async def test_guess_invalid_bytes_and_line_ends_are_told(box):
    (box.home / "f").write_bytes("価格\r\n数量です\n".encode("shift_jis") + b"\xff\n")
    data = await box.file("read", file="f")
    assert (data["encoding"], data["encoding_is_guess"]) == ("shift_jis", True)
    assert "LF and CRLF" in data["note"] and "1 byte(s) are not valid" in data["note"] and "guess" in data["note"]
    message = await box.file("replace", 404, file="f", old_str="\ufffd", new_str="x")
    assert "bytes that are not valid" in message
    assert "guess" in await box.file("replace", 404, file="f", old_str="nothing", new_str="x")
    assert "guess" in (await box.file("replace", file="f", old_str="数量", new_str="値段"))["note"]
    assert (box.home / "f").read_bytes() == "価格\r\n値段です\n".encode("shift_jis") + b"\xff\n"
