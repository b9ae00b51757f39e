"""Encodings of real text files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.documents.encodings import decoded


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "naïve"),
        ("utf-16", "plain"),
        ("utf-32", "plain"),
        ("utf-16-le", "plain text without a mark"),
        ("cp932", "名前,年齢,住所\n佐藤太郎,30,東京"),
        ("cp932", "名前,年齢,住所\r\n三木英子,25,大阪\r\n髙橋淳,35,名古屋\r\n"),
        ("euc_jp", "これは日本語のテストです"),
        ("gb18030", "这是一个中文测试文件，用来检测编码。"),
        ("big5", "這是一個繁體中文測試檔案"),
        ("cp949", "안녕하세요 이것은 한국어 시험입니다"),
        ("cp1251", "Привет, мир! Это русский текст для проверки."),
        ("koi8_r", "Привет, мир! Это русский текст для проверки."),
        ("cp1252", "Café déjà vu, naïve façade über Straße “q”"),
        ("iso8859-2", "Zażółć gęślą jaźń i co dalej będzie się działo w tej książce"),
        ("cp1253", "Καλημέρα κόσμε, αυτό είναι ένα κείμενο"),
        ("cp1256", "هذا نص عربي للتجربة"),
    ],
)
def test_a_text_comes_back(encoding, text):
    assert decoded(text.encode(encoding))[0] == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_utf_8_is_utf_8(text):
    data = text.encode()
    assert decoded(b"a" * 64 + data) == ("a" * 64 + text, "utf-8")


@given(st.binary(max_size=300))
def test_any_bytes_give_some_text(data):
    text, encoding = decoded(data)
    assert isinstance(text, str) and encoding
