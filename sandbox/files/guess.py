"""Guess of a text's encoding from its bytes, where nothing in them says which one it is.

Each encoding is tried. The winner is the one whose text is most likely in a language that is written in it: characters
have the logarithm of their frequency, and what seldom occurs in words (a symbol between letters) costs something.
"""

import codecs
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

KEEP = "keep-bytes"
"""Error handler of codecs that decodes each invalid byte to a character of its own, and encodes that to the byte."""
KEPT = "\udc00-\udcff"
"""Those characters, as a range in a regular expression."""

_SAMPLE_BYTES = 4096
"""Number of bytes, in lines that are not ASCII, that are tried."""

# Letters beyond ASCII, the most frequent ones first.
_WESTERN = {
    "fr": "éàèêçùôîâûïœë’",
    "de": "üäößé",
    "es": "óíáéñúü¡¿",
    "pt": "ãçáéíóêõâúàô",
    "it": "èàùòìé’",
    "sv": "äåöé",
    "da": "øåæé",
    "is": "íáðéóþöæúý",
    "nl": "ëéïöèóü",
    "ca": "óàèéíçòúïü·",
    "en": "’“”–£—é‘€…•°",
}
_CENTRAL = {
    "pl": "łąęóżśćńź",
    "cs": "íáéěřšžýčůúóťňď",
    "sk": "áíéčýžúšľťôňďäóŕĺ",
    "hu": "áéöóőíüúű",
    "ro": "ăîşţâșț",
    "hr": "čšžćđ",
    "de": "üäößé",
}
_BALTIC = {"lt": "ėšūžįųčąę", "lv": "āīēšūņļģčķž", "et": "äõüöšž"}
_TURKISH = {"tr": "ıüşğçİöâî"}
_CYRILLIC = {
    "ru": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё№",
    "uk": "оаинвіетрслкудмпьязбгчйхїжюєшцщфґ",
    "bg": "аеоинтрсвлкдпмузябъгчжшцщхфйюь",
    "sr": "аоеинрсјтукдвмплгзбчцшхжљњђћфџ",
    "be": "аенірсокдлтпмувяыьгзбчйхшжюцўэфё",
}
_GREEK = {"el": "αοιετσνηυρπκμλςάωίόδγέχήφύθώξβζψϊϋΐ"}
_HEBREW = {"he": "יוהלאמרבתשנדכםחקפעסטגזצןףךץ"}
_ARABIC = {"ar": "المينرتوبعدسفةكهحقجشصطخأذضغثئظىءؤإآ،", "fa": "ایرنمدتوهسبلکشزفگعخقجپحصآطچضظغثژئ"}
_THAI = {"th": "านร่อกเงม้ั์ิีวยลุดทสตะปบคหแจูพชขำใไโื็ึผณถธศซษภฐญฟฉฎ๊ฏฝ๋"}

# Encodings with one byte a character: their languages, and how much rarer they are than the most common ones.
_SINGLE_BYTE: tuple[tuple[str, Mapping[str, str], float], ...] = (
    ("iso-8859-1", _WESTERN, 0.0),
    ("windows-1252", _WESTERN, 0.1),
    ("iso-8859-15", _WESTERN, 1.0),
    ("windows-1250", _CENTRAL, 0.6),
    ("iso-8859-2", _CENTRAL, 0.5),
    ("windows-1251", _CYRILLIC, 0.0),
    ("koi8-r", _CYRILLIC, 0.5),
    ("koi8-u", _CYRILLIC, 1.5),
    ("iso-8859-5", _CYRILLIC, 2.5),
    ("iso-8859-9", _TURKISH, 1.0),
    ("windows-1254", _TURKISH, 1.1),
    ("iso-8859-7", _GREEK, 1.0),
    ("windows-1253", _GREEK, 1.1),
    ("windows-1255", _HEBREW, 1.0),
    ("windows-1256", _ARABIC, 1.0),
    ("iso-8859-6", _ARABIC, 2.0),
    ("windows-1257", _BALTIC, 3.0),
    ("iso-8859-13", _BALTIC, 3.5),
    ("tis-620", _THAI, 0.7),
    ("cp874", _THAI, 0.8),
    ("cp866", _CYRILLIC, 2.0),
    ("cp850", _WESTERN, 3.0),
    ("cp437", _WESTERN, 3.5),
    ("cp852", _CENTRAL, 3.5),
    ("mac-roman", _WESTERN, 4.0),
    ("mac-cyrillic", _CYRILLIC, 4.0),
)

# The most frequent characters, the most frequent ones first.
_SIMPLIFIED = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
    "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
    "明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"
    "世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太"
    "量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象"
    "完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运价称编号址单码备注测试项"
)
_TRADITIONAL = (
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作里用道行所然家種事成方"
    "多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情"
    "明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給"
    "世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變四神總何電數安少報才結反受目太"
    "量再感建務做接必場件計管期市直德資命山金指克許統區保至隊形社便空決治展馬科司五基眼書非則聽白卻界達光放強即像難且權思王象"
    "完設式色路記南品住告類求據程北邊死張該交規萬取拉格望覺術領共確傳師觀清今切院讓識候帶導爭運價稱編號址單碼備註測試項臺灣"
)
_JAPANESE = (
    "のにはをたがでてとしれさいるなっもらりンこまスルかトんきリイくラうすアシあせけそクつドよレフみえおちどわだろめじばへほふぶねげテデーッジャメサニハオエケグバビネノパポボウカキセソチナヒホモヤュョワ日一国会人年大十二本中長"
    "出三同時政事自行社見月分議後前民生連五発間対上部東者党地合市業内相方四定今回新場金員九入選立開手米力学問高代明実円関決子動"
    "京全目表戦経通外最言氏現理調体化田当八六約主題下首意法不来作性的要用制治度務強気小七成期公野協取都和統以機平総加山思家話世"
    "受区領多県続進正安設保改数記院女初北午指権心界支第産結百点教報済書府活原先共得解名交資予川向際査面委告軍文反元重近千考判認"
    "画海参売利組知案道信策集在件団別物任引使求所次水半品論計死増係感特情投示変打男基私各始島直両朝価タコマカプロ式確村提運終果西台広容必応"
    "電住能無再位置真流格有口過局少放検町常校料状工建語空証土与急止送供可役構木割聞身費付切由説転食比難車何南石足番術号漢字文"
)
_KOREAN = (
    "이다는에의을가로하고한지은도를사대해기인있자리서시나아어라보수일정부제장그들과니전게조만스여주상으면것구원무생오소공세동화신"
    "관우국성경비방학요회모안선위와내개문었년분적실중않했마말발거때습입진업용설계단행러영식물결되품없격체교미차명치재양통산연금심"
    "두려더같날데야번호름각강간트드저환직속달림권감민음출알건활류존후남최당령불태복표반바따추집르터할된본"
)

# Encodings with several bytes a character: frequent characters, and codecs from the smallest one. With the bytes that
# begin its frequent characters in another codec: the characters outside the list differ a lot in frequency.
_MULTI_BYTE: tuple[tuple[tuple[str, ...], str, tuple[str, int, int]], ...] = (
    (("gbk", "gb18030"), _SIMPLIFIED, ("gb2312", 0xB0, 0xD7)),
    (("big5", "cp950", "big5-hkscs"), _TRADITIONAL, ("big5", 0xA4, 0xC6)),
    (("shift_jis", "cp932"), _JAPANESE, ("euc-jp", 0xB0, 0xCF)),
    (("euc-jp",), _JAPANESE, ("euc-jp", 0xB0, 0xCF)),
    (("euc-kr", "cp949"), _KOREAN, ("euc-kr", 0xB0, 0xC8)),
)

_TYPOGRAPHY = frozenset("’‘“”„‚–—…•«»‹›€£§°©®™·½²³×№\xa0¿¡ªº")
_WIDE_TYPOGRAPHY = frozenset("、。，．：；？！（）「」『』《》“”‘’…—　～〜・ー【】·")
_INVALID = -12.0
_UNUSUAL = -9.5
_ODD = 4.0
_SCRIPTS = ("Cyrillic", "Greek", "Hebrew", "Arabic", "Thai")


def guess(data: bytes) -> str:
    """Return the name of the most likely encoding of a text that is not ASCII."""
    sample = _sample(data)
    scores = {name: _score_single_byte(sample, name, languages) - rarity for name, languages, rarity in _SINGLE_BYTE}
    for names, frequent, level in _MULTI_BYTE:
        for step, name in enumerate(names):
            scores[name] = _score_multi_byte(sample, name, frequent, level) - step / 100
    scores["utf-8"] = _score_utf8(sample)
    return max(scores, key=scores.__getitem__)


def common_characters() -> frozenset[str]:
    """Return the frequent characters of the languages that have thousands of them."""
    return frozenset(_SIMPLIFIED + _TRADITIONAL + _JAPANESE + _KOREAN) | _WIDE_TYPOGRAPHY


def _sample(data: bytes) -> bytes:
    lines = [line for line in data.splitlines(keepends=True) if not line.isascii()]
    sample = b"".join(lines)
    if len(sample) <= _SAMPLE_BYTES:
        return sample
    return sample[
        : max(sample.rfind(b"\n", 0, _SAMPLE_BYTES), sample.rfind(b" ", 0, _SAMPLE_BYTES)) + 1 or _SAMPLE_BYTES
    ]


def _score_utf8(sample: bytes) -> float:
    text = sample.decode("utf-8", KEEP)
    invalid = len(re.findall(f"[{KEPT}]", text))
    return invalid * _INVALID + (len(re.findall(r"[^\x00-\x7f]", text)) - invalid) * -4.0


def _score_single_byte(sample: bytes, encoding: str, languages: Mapping[str, str]) -> float:
    # A word in capitals is a little less likely than one in small letters, whatever its length.
    text, words = _capitals().subn(lambda word: word[0].lower(), sample.decode(encoding, KEEP))
    counts = Counter(char for char in text if char > "\x7f")
    best = max(_likelihood(counts, _letters(letters)) for letters in languages.values())
    return best - 1.5 * words - _ODD * len(_odd_pairs().findall(text, overlapped=True))


def _likelihood(counts: Mapping[str, int], frequencies: Mapping[str, float]) -> float:
    return sum(count * (frequencies.get(char) or _rare(char)) for char, count in counts.items())


@cache
def _letters(letters: str) -> dict[str, float]:
    """Return the logarithms of the frequencies of letters, capital letters included."""
    weights = [math.exp(-3.5 * rank / len(letters)) for rank in range(len(letters))]
    found: dict[str, float] = {}
    for letter, weight in zip(letters, weights, strict=True):
        found[letter] = math.log(weight / sum(weights))
        found.setdefault(letter.upper(), found[letter] - 1.5)
    return found


def _rare(char: str) -> float:
    if "\udc00" <= char <= "\udcff" or char < "\xa0":
        return _INVALID
    return -6.5 if char in _TYPOGRAPHY else _UNUSUAL


@cache
def _capitals() -> "regex.Pattern[str]":
    import regex  # knows classes of Unicode; imported here because it is large

    return regex.compile(r"(?<!\p{L})\p{Lu}{2,}(?!\p{L})")


@cache
def _odd_pairs() -> "regex.Pattern[str]":
    import regex

    scripts = "|".join(f"[A-Za-z]\\p{{{name}}}|\\p{{{name}}}[A-Za-z]" for name in _SCRIPTS)
    return regex.compile(
        rf"""(?x) (?=[^\x00-\x7f]|.[^\x00-\x7f]|..[^\x00-\x7f]) (?:
        \p{{Ll}}\p{{Lu}}                          # a capital letter behind a small one
        | \p{{L}}[\p{{S}}\p{{No}}¿¡§¶‚„†‡‰ªº]\p{{L}}  # a symbol in a word
        | {scripts}                             # two scripts in a word
        | [À-ſ]{{3}}                            # accents in a row
        | (?<![\p{{L}}\p{{M}}])\p{{M}}            # a mark without its letter
        | (?![A-Za-z])\p{{L}}[0-9\\^_`{{|}}~@] )  # what seldom follows a letter
        """
    )


def _score_multi_byte(sample: bytes, encoding: str, frequent: str, level: tuple[str, int, int]) -> float:
    counts = Counter(char for char in sample.decode(encoding, KEEP) if char > "\x7f")
    ranks = _ranks(frequent)
    return sum(count * (ranks.get(char) or _infrequent(char, level)) for char, count in counts.items())


@cache
def _ranks(frequent: str) -> dict[str, float]:
    weights = [1 / (rank + 12) for rank in range(len(frequent))]
    total = sum(weights) / 0.7
    found = {char: math.log(weight / total) for char, weight in zip(frequent, weights, strict=True)}
    return dict.fromkeys(_WIDE_TYPOGRAPHY, -5.0) | found


def _infrequent(char: str, level: tuple[str, int, int]) -> float:
    if "\udc00" <= char <= "\udcff":
        return _INVALID
    if "\u30a1" <= char <= "\u30fa":  # katakana
        return -6.0
    if "\uff61" <= char <= "\uff9f":  # half as wide: one byte in Shift JIS
        return -7.0
    codec, first, last = level
    try:
        lead = char.encode(codec)[0]
    except UnicodeEncodeError:
        return -14.0
    if first <= lead <= last:
        return -8.5
    return -8.0 if "\uff01" <= char <= "\uff5e" else -12.0


def keep_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle errors as `KEEP` says."""
    if isinstance(error, UnicodeDecodeError):
        return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end
    if isinstance(error, UnicodeEncodeError):
        kept = error.object[error.start : error.end]
        if all("\udc00" <= char <= "\udcff" for char in kept):
            return bytes(ord(char) - 0xDC00 for char in kept), error.end
    raise error


codecs.register_error(KEEP, keep_bytes)
