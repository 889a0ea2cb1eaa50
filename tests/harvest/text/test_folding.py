"""A phrase is found in any spelling, and its position is that in the original text."""

import unicodedata

import pytest

from harvest.text.folding import Phrase, folded


@pytest.mark.parametrize(
    "phrase, text, found",
    [
        ("日本", "私は日本語を学ぶ。", "日本"),
        ("NHK", "今日NHKは何時に", "NHK"),
        ("カー", "ｽｰﾊﾟｰｶｰ", "ｶｰ"),
        ("서울", "저는 서울에서 왔다", "서울"),
        ("ภาษา", "ฉันเรียนภาษาไทย", "ภาษา"),
        ("don't", "We don’t know", "don’t"),
        ("don’t", "We DON'T know", "DON'T"),
        ("rock 'n' roll", "rock ‘n’ roll", "rock ‘n’ roll"),
        ("well-known", "a well‑known man", "well‑known"),
        ("café", "the cafe\u0301s, a cafe\u0301.", "cafe\u0301"),
        ("cafe\u0301", "a CAFÉ.", "CAFÉ"),
        ("golden gate", "Ｇｏｌｄｅｎ　Ｇａｔｅ", "Ｇｏｌｄｅｎ　Ｇａｔｅ"),
        ("STRASSE", "die Straße dort", "Straße"),
        ("straße", "DIE STRASSE", "STRASSE"),
        ("istanbul", "in İSTANBUL.", "İSTANBUL"),
        ("İstanbul", "in Istanbul.", "Istanbul"),
        ("ΟΔΟΣ", "η οδός είναι οδος", "οδος"),
        ("office", "an o\ufb03ce", "o\ufb03ce"),
        ("cooperate", "to co\u00adoperate", "co\u00adoperate"),
        ("हिन्दी", "यह हिन्दी है", "हिन्दी"),
        ("한", "하 \u1112\u1161\u11ab", "\u1112\u1161\u11ab"),
        ("the hat", "a red\nHAT.", "HAT"),
        ("C++", "in C++, mostly", "C++"),
    ],
)
def test_a_phrase_is_found_in_any_form(phrase, text, found):
    wanted = Phrase(phrase)
    assert wanted.held_by(text)
    assert [text[start:end] for start, end in wanted.mentions(text)] == [found]
    assert not wanted.held_by(wanted.cut_from(text))


@pytest.mark.parametrize(
    "phrase, text",
    [
        ("hat", "that hats hat_ 7hat"),
        ("cafe", "un café, un cafe\u0301"),
        ("हिन", "यह हिन्दी है"),
        ("하", "한국어 \u1112\u1161\u11ab"),
        ("don't", "dont don t"),
        ("日本", "日曜日の本"),
    ],
)
def test_other_words_are_not_found(phrase, text):
    assert not Phrase(phrase).held_by(text) and Phrase(phrase).mentions(text) == []


TEXT = "ﬁ ½ … ŉ İ ẞ 👩‍👩‍👧 \u00ad ﷺ don’t — e\u0301\u0323 ｶﾞ don't 한국 DON＇T"
FORMS = {"as it is": TEXT} | {form: unicodedata.normalize(form, TEXT) for form in ("NFD", "NFKC")}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_mentions_have_positions_in_the_original_text(text):
    assert [text[a:b].lower()[:3] for a, b in Phrase("don't").mentions(text)] == ["don"] * 3
    assert folded(text) == folded(TEXT)
