import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.windows import split_windows

texts = st.text(st.sampled_from(list('abé漢.!?"»)\n\t\u00a0\u2028  ')), max_size=60)
counts = st.sampled_from(
    [len, lambda text: len(text.encode()), lambda text: len(text.split()), lambda text: len(text) // 2]
)


def words(text):
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "count", "limit", "expected"),
    [
        ("", len, 5, []),
        (" \n\t\u2003 ", len, 5, []),
        ("abc", len, 5, ["abc"]),
        ("  abc\n", len, 3, ["abc"]),
        ("One two. Three four. Five.", words, 4, ["One two. Three four.", "Five."]),
        ("One two. Three four. Five.", words, 2, ["One two.", "Three four.", "Five."]),
        ('He said "no." Then left.', words, 3, ['He said "no."', "Then left."]),
        ("«Non.» Oui.", words, 1, ["«Non.»", "Oui."]),
        ("Title\n\nFirst line\nSecond", words, 2, ["Title", "First line", "Second"]),
        ("one two three four", words, 2, ["one two", "three four"]),
        ("abcdefgh", len, 3, ["ab", "cd", "ef", "gh"]),
        ("abcdefgh  \n xy", len, 2, ["ab", "cd", "ef", "gh", "xy"]),
        ("漢字。かな。", len, 3, ["漢字。", "かな。"]),
        ("漢", lambda text: 3 * len(text), 2, ["漢"]),
    ],
)
def test_a_text_is_cut_into_these_windows(text, count, limit, expected):
    assert [text[a:b] for a, b in split_windows(text, count, limit)] == expected


@given(text=texts, count=counts, limit=st.integers(1, 20))
def test_windows_cover_all_but_white_space_in_order_and_fit(text, count, limit):
    end = 0
    for start, stop in split_windows(text, count, limit):
        assert end <= start < stop
        assert not text[end:start].strip()
        assert text[start:stop] == text[start:stop].strip() != ""
        assert count(text[start:stop]) <= limit or stop - start == 1
        end = stop
    assert not text[end:].strip()


@given(
    sentences=st.lists(st.lists(st.sampled_from(["Ana", "sees", "3.5", "été"]), min_size=1, max_size=5), min_size=1),
    ends=st.lists(st.sampled_from([".", "!", "?", "…", '."', ".)"]), min_size=1),
    limit=st.integers(5, 12),
)
def test_sentences_that_fit_stay_whole_and_windows_are_packed(sentences, ends, limit):
    written = [" ".join(sentence) + ends[number % len(ends)] for number, sentence in enumerate(sentences)]
    text = " ".join(written)
    windows = [text[a:b] for a, b in split_windows(text, words, limit)]
    # Greedy packing is the reference.
    expected: list[str] = []
    for sentence in written:
        joined = f"{expected[-1]} {sentence}" if expected else sentence
        if expected and words(joined) <= limit:
            expected[-1] = joined
        else:
            expected.append(sentence)
    assert windows == expected


def test_one_long_line_takes_little_time():
    text = "word " * 4000
    windows = split_windows(text, words, 10)
    assert sum(words(text[a:b]) for a, b in windows) == 4000
