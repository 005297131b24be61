import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limelight.errors import ArgumentError, DataError
from limelight.evaluation.alignment import aer, links_from_weights, word_weights
from limelight.pharaoh import Alignment, format_pharaoh, parse_pharaoh, read_pharaoh

LINKS = st.frozensets(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=13)


def test_parse_reads_sure_and_both_signs_of_possible_links():
    alignment = parse_pharaoh(" 0-0 11p42\t3?4 10-9\n")
    assert alignment.sure == {(0, 0), (10, 9)}
    assert alignment.possible == {(0, 0), (10, 9), (11, 42), (3, 4)}


def test_parse_of_a_blank_line_is_a_sentence_without_links():
    assert parse_pharaoh(" \n") == Alignment(frozenset(), frozenset())


def test_parse_can_count_from_one():
    assert parse_pharaoh("1-3 2p1", first=1) == Alignment(frozenset({(0, 2)}), frozenset({(1, 0)}))


@pytest.mark.parametrize("item", ["0", "0-", "-1-2", "a-b", "0-0-0", "0:1", "0-1,", "٣-٤", "1--2", "0.5-1"])
def test_parse_names_the_place_the_item_and_the_line(item):
    with pytest.raises(DataError) as caught:
        parse_pharaoh(f"7-7 {item} 8-8", where="gold.txt, line 3")
    message = str(caught.value)
    assert message.startswith(f"gold.txt, line 3: {item!r} is not an alignment link")
    assert f"7-7 {item} 8-8" in message
    assert "3?4" in message


def test_parse_rejects_a_zero_in_a_file_that_counts_from_one():
    with pytest.raises(DataError, match=r"'0-1' has a word number below 1; .* first=0"):
        parse_pharaoh("1-1 0-1", first=1)
    with pytest.raises(ArgumentError, match=r"first: .* 0 or 1, got 2"):
        parse_pharaoh("", first=2)


def test_format_sorts_by_number_and_not_by_letter():
    assert format_pharaoh([(10, 2), (2, 10), (2, 9), (2, 9)]) == "2-9 2-10 10-2"
    assert format_pharaoh([]) == ""
    assert format_pharaoh(Alignment(frozenset({(1, 1)}), frozenset({(0, 5)}))) == "0?5 1-1"


@given(LINKS, LINKS)
def test_format_and_parse_are_inverse(sure, possible):
    alignment = Alignment(sure, possible)
    assert parse_pharaoh(format_pharaoh(alignment)) == alignment
    assert parse_pharaoh(format_pharaoh(sure)).sure == sure


def test_read_keeps_blank_lines_and_reads_windows_files(tmp_path):
    path = tmp_path / "gold.txt"
    path.write_bytes(b"\xef\xbb\xbf0-0 1-1\r\n\r\n2?0")
    assert [format_pharaoh(a) for a in read_pharaoh(path)] == ["0-0 1-1", "", "2?0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no alignment"),
        (b" \n\n", "holds no alignment"),
        (b"0-0\n1-1\n2-x\n", "line 3: '2-x' is not an alignment link"),
        (b"0-0\n\xff-1\n", "line 2: is not valid UTF-8"),
        (b"0-0\n1-1\x00\n", r"line 2: '1-1\\x00' is not an alignment link"),
    ],
)
def test_read_names_the_file_and_the_line(tmp_path, content, message):
    path = tmp_path / "gold.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pharaoh(path)
    assert str(path) in str(caught.value)


def test_read_of_a_missing_file_or_a_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot read the alignments: No such file"):
        read_pharaoh(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="cannot read the alignments"):
        read_pharaoh(tmp_path)


def test_aer_worked_by_hand():
    # Sentence 1: A = {00, 11, 21}, S = {00}, P = {00, 11}: |A & S| = 1, |A & P| = 2.
    # Sentence 2: A = {02, 10}, S = {02, 13, 24}, P = S + {10}: |A & S| = 1, |A & P| = 2.
    gold = [parse_pharaoh("0-0 1?1"), parse_pharaoh("0-2 1-3 2-4 1?0")]
    quality = aer([{(0, 0), (1, 1), (2, 1)}, {(0, 2), (1, 0)}], gold)
    assert quality.aer == pytest.approx(1 - (2 + 4) / (5 + 4), abs=1e-15)
    assert quality.precision == 4 / 5
    assert quality.recall == 2 / 4
    assert (quality.links, quality.sentences) == (5, 2)


def test_aer_is_over_the_corpus_and_not_a_mean_of_sentences():
    gold = [parse_pharaoh("0-0"), parse_pharaoh("0-0 1-1 2-2 3-3 4-4")]
    quality = aer([{(0, 1)}, {(n, n) for n in range(5)}], gold)
    assert quality.aer == pytest.approx(1 - 10 / 12, abs=1e-15)


def test_aer_without_possible_links_is_one_minus_f1():
    gold = [parse_pharaoh("0-0 1-1 2-2")]
    quality = aer([[(0, 0), (1, 1), (1, 1), (5, 5), (6, 6)]], gold)
    f1 = 2 * quality.precision * quality.recall / (quality.precision + quality.recall)
    assert quality.links == 4
    assert quality.aer == pytest.approx(1 - f1, abs=1e-15)


@given(st.lists(st.tuples(LINKS, LINKS, LINKS), min_size=1, max_size=5))
def test_aer_lies_between_zero_and_one(sentences):
    if not any(answer or sure for answer, sure, _ in sentences):
        return
    gold = [Alignment(sure, possible) for _, sure, possible in sentences]
    quality = aer([answer for answer, _, _ in sentences], gold)
    assert 0 <= quality.aer <= 1
    if any(sure for _, sure, _ in sentences):
        assert aer([sure for _, sure, _ in sentences], gold).aer == 0


def test_aer_of_nothing_predicted_is_one():
    quality = aer([[]], [parse_pharaoh("0-0")])
    assert (quality.aer, quality.precision, quality.recall, quality.links) == (1.0, 0.0, 0.0, 0)


def test_aer_errors():
    with pytest.raises(DataError, match="got 2 predicted and 1 gold"):
        aer([[], []], [parse_pharaoh("0-0")])
    with pytest.raises(DataError, match="at least one sentence pair, got none"):
        aer([], [])
    with pytest.raises(DataError, match="needs a predicted or a sure link, the 1 sentence pairs have neither"):
        aer([[]], [parse_pharaoh("3?4")])


def test_links_are_source_target_while_weights_are_target_source():
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    assert links_from_weights(weights) == {(2, 0), (0, 1)}
    assert links_from_weights(weights, threshold=0.25) == {(2, 0), (0, 1), (1, 1)}


def test_threshold_takes_a_weight_that_equals_it():
    assert links_from_weights([[0.25, 0.75], [0.5, 0.5]], threshold=0.5) == {(1, 0), (0, 1), (1, 1)}


def test_argmax_takes_the_first_of_equals_and_nothing_from_an_empty_row():
    assert links_from_weights([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]) == {(0, 0)}


def test_links_accept_half_precision_and_tensors_with_gradients():
    weights = torch.softmax(torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), -1)
    expected = links_from_weights(weights.numpy())
    assert len(expected) == 5
    assert links_from_weights(weights.clone().requires_grad_()) == expected
    assert links_from_weights(torch.eye(3, dtype=torch.bfloat16)) == {(0, 0), (1, 1), (2, 2)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(2, 3, 5), r"2 axes \[target, source\], got shape \[2, 3, 5\]; .*weights\[0, 0\]"),
        (torch.zeros(0, 3), r"at least one target and one source token, got shape \[0, 3\]"),
        (np.array([[0.5, np.nan]]), r"\[0, 1\], got nan at \[0, 1\]"),
        (np.array([[0.5], [-0.5]]), r"got -0\.5 at \[1, 0\]; give weights after the softmax"),
        ([[0.5], [0.5, 0.5]], "must be a matrix of numbers"),
    ],
)
def test_weights_that_are_none_are_named(weights, message):
    with pytest.raises(ArgumentError, match=message):
        links_from_weights(weights)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.5, float("nan")])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ArgumentError, match=r"threshold: must lie in \(0, 1\]"):
        links_from_weights([[1.0]], threshold=threshold)


def test_word_weights_worked_by_hand():
    # Source pieces: word 0 | word 1, word 1 | end mark.  Target pieces: word 0, word 0 | word 1.
    weights = [[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.1, 0.2], [0.0, 0.5, 0.25, 0.25]]
    words = word_weights(weights, [0, 1, 1, -1], [0, 0, 1])
    np.testing.assert_allclose(words, [[0.2, 0.5], [0.0, 0.75]], atol=1e-15)


def test_word_weights_keep_row_sums_and_one_piece_words():
    weights = torch.softmax(torch.randn(5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64), -1)
    words = word_weights(weights, [0, 0, 1, 2, 2, 2, 3], [0, 1, 1, 1, 2])
    assert words.shape == (3, 4)
    np.testing.assert_allclose(words.sum(1), 1.0, atol=1e-15)
    np.testing.assert_array_equal(word_weights(weights, range(7), range(5)), weights.numpy())


def test_word_weights_of_words_without_pieces_are_zero():
    words = word_weights([[0.5, 0.5]], [0, 2], [1], source_count=5, target_count=3)
    np.testing.assert_array_equal(words, [[0] * 5, [0.5, 0, 0.5, 0, 0], [0] * 5])


def test_word_weights_errors():
    with pytest.raises(ArgumentError, match=r"source_words: .* each of the 2 source pieces of weights, got 3"):
        word_weights([[0.5, 0.5]], [0, 1, 2], [0])
    with pytest.raises(ArgumentError, match=r"target_words: .* in \[-1, 1\] for 2 words .*, got 2"):
        word_weights([[0.5], [0.5]], [0], [0, 2], target_count=2)
    with pytest.raises(ArgumentError, match=r"source_words: .*, got -3"):
        word_weights([[0.5, 0.5]], [-3, 0], [0])
