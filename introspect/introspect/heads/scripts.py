"""What pictures of text are written in: words of many languages and scripts, as far as a tokenizer can write and a font can draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont

from introspect.errors import HeadScoresError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

WORDS = {
    "latin": (
        "river window green market seven letter summer bridge quiet stone paper morning garden silver north engine "
        "Straße Fenster Wasser Brücke Morgen grün Zeitung acht fenêtre maison lumière garçon été forêt rouge neuf "
        "ventana árbol niño puerta verde camino diez ciudad finestra libro città giallo strada mattina vento cento "
        "rzeka zielony książka źródło řeka okno žlutá köprü yeşil güneş fluture câmp"
    ),
    "greek": "ποτάμι παράθυρο πράσινο αγορά επτά γράμμα καλοκαίρι γέφυρα πέτρα χαρτί πρωί κήπος ασήμι βορράς δρόμος φως",
    "cyrillic": "река окно зелёный рынок семь письмо лето мост камень бумага утро сад місто ґанок їжак ключ прозорец вълна",
    "armenian": "գետ պատուհան կանաչ շուկա յոթ նամակ ամառ կամուրջ քար թուղթ առավոտ այգի արծաթ հյուսիս ճանապարհ լույս",
    "georgian": "მდინარე ფანჯარა მწვანე ბაზარი შვიდი წერილი ზაფხული ხიდი ქვა ქაღალდი დილა ბაღი ვერცხლი გზა",
    "han": "河流 窗户 绿色 市场 七 信 夏天 桥 石头 纸 早晨 花园 银 北方",
    "kana": "かわ まど みどり いちば なな てがみ なつ はし カメラ ノート テレビ バス",
    "hangul": "강 창문 초록 시장 일곱 편지 여름 다리 돌 종이 아침 정원 은 북쪽",
}
"""Words by script. What is written from right to left or joins its letters is left out: it cannot be laid out with Pillow alone."""

_FEWEST = 4
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "~/.fonts", "~/.local/share/fonts", "C:/Windows/Fonts")
_FAMILIES = ("DejaVu", "Liberation", "Noto", "FreeSans", "FreeSerif", "Arial", "Times", "Georgia", "Verdana", "Ubuntu", "Roboto")


@dataclass(frozen=True)
class Typeface:
    """One font with one script.

    Attributes:
        script: a key of `WORDS`.
        font: its file; Pillow's own without.
        words: those that the font can draw and the tokenizer can write.
    """

    script: str
    font: str | None
    words: tuple[str, ...]

    def at(self, size: int) -> Font:
        """The font in a size of pixels."""
        return font_of(self.font, size)


def typefaces(tokenizer: Any = None, fonts: Sequence[str | Path] = (), scripts: Sequence[str] = ()) -> list[Typeface]:
    """What can be written with, script by script.

    Args:
        tokenizer: must write a word so that it reads back the same; anything goes without.
        fonts: files to draw with and no others; Pillow's own and this machine's without.
        scripts: keys of `WORDS`; all that can be drawn and written without.

    Raises:
        HeadScoresError: a font cannot be read, a script is unknown, or cannot be both drawn and written.
    """
    unknown = sorted(set(scripts) - set(WORDS))
    if unknown:
        raise HeadScoresError(f"unknown scripts {unknown}; there are {', '.join(WORDS)}")
    given: list[str | None] = [str(font) for font in fonts] if fonts else [None, *machine_fonts()]
    found = []
    for script in scripts or WORDS:
        written = [word for word in WORDS[script].split() if tokenizer is None or _writes(tokenizer, word)]
        for font in given:
            words = tuple(word for word in written if all(draws(font, letter) for letter in word))
            if len(words) >= _FEWEST:
                found.append(Typeface(script, font, words))
    missing = sorted(set(scripts) - {face.script for face in found})
    if missing or not found:
        raise HeadScoresError(
            f"the tokenizer cannot write, or no font draws, words in {', '.join(missing or WORDS)}; give fonts that do or other scripts"
        )
    return found


@lru_cache(maxsize=1)
def machine_fonts() -> tuple[str, ...]:
    """Paths of TrueType text fonts of this machine, matplotlib's among them where it is installed, in order of name."""
    matplotlib = find_spec("matplotlib")
    brought = [] if matplotlib is None or matplotlib.origin is None else [str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf")]
    folders = [Path(folder).expanduser() for folder in (*_FOLDERS, *brought)]
    found = {path.stem: path for folder in folders for path in sorted(folder.rglob("*.ttf")) if path.stem.startswith(_FAMILIES)}
    plain = [path for stem, path in sorted(found.items()) if not any(part in stem for part in ("Emoji", "Math", "Symbol", "Display"))]
    return tuple(map(str, plain[:24]))


def font_of(path: str | None, size: int) -> Font:
    """A font in a size of pixels; Pillow's own without a path.

    Raises:
        HeadScoresError: the file is no font.
    """
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(path, size)
    except OSError as problem:
        raise HeadScoresError(f"cannot read the font {path}: {problem}") from problem


@cache
def draws(path: str | None, letter: str) -> bool:
    """Whether a font has a sign of its own for a letter."""
    try:
        return _ink(path, letter) not in (_ink(path, "\U0010ffff"), _ink(path, "\ufffe"), _ink(path, " "))
    except UnicodeEncodeError:  # Pillow without FreeType draws Latin-1
        return False


@cache
def _ink(path: str | None, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font_of(path, 24).getmask(letter)
    return mask.size, bytes(mask)


def _writes(tokenizer: Any, word: str) -> bool:
    ids = tokenizer(word, add_special_tokens=False).input_ids
    back: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return back.strip() == word
