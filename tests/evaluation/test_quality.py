import math
import subprocess
import sys

import pytest
import sacrebleu

from limelight.errors import ArgumentError, DataError
from limelight.evaluation.quality import LengthBin, by_length, corpus_quality, group_references

HYPOTHESES = ["The cat sat on the mat .", "there is a dog in the garden", "good morning"]
REFERENCES = [
    ["The cat is on the mat .", "A cat sat upon the mat ."],
    ["there is a big dog in the garden"],
    ["good morning", "good day", "Hello there"],
]


def test_bleu_worked_by_hand():
    # Hypothesis "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, same length.
    quality = corpus_quality(["a b c d e"], [["a b c d f"]])
    assert quality.bleu == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-9)
    # One word shorter than the reference: all precisions 1, brevity penalty exp(1 - 6/5).
    quality = corpus_quality(["a b c d e"], [["a b c d e f"]])
    assert quality.bleu == pytest.approx(100 * math.exp(1 - 6 / 5), abs=1e-9)


def test_more_references_can_only_help_where_they_belong_to_the_same_sentence():
    one = corpus_quality(["a b c d e", "x y z w"], [["a b c d e"], ["q y z w"]])
    two = corpus_quality(["a b c d e", "x y z w"], [["a b c d e"], ["q y z w", "x y z w"]])
    wrong = corpus_quality(["a b c d e", "x y z w"], [["a b c d e", "x y z w"], ["q y z w"]])
    assert two.bleu == two.chrf == 100.0
    assert one.bleu < 100
    assert wrong.bleu == pytest.approx(one.bleu)
    assert (one.exact_match, two.exact_match) == (0.5, 1.0)


def test_same_number_of_references_agrees_with_sacrebleu_and_says_the_number():
    references = [two[:1] * 2 if len(two) < 2 else two[:2] for two in REFERENCES]
    streams = [[some[n] for some in references] for n in range(2)]
    quality = corpus_quality(HYPOTHESES, references)
    assert quality.bleu == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, streams, force=True).score)
    assert quality.chrf == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, streams).score)
    assert quality.bleu_signature.startswith("nrefs:2|case:mixed|")
    assert quality.chrf_signature.startswith("nrefs:2|case:mixed|")


def test_signatures_say_what_was_done():
    quality = corpus_quality(HYPOTHESES, REFERENCES, lowercase=True, tokenize="char")
    version = sacrebleu.__version__
    assert quality.bleu_signature == f"nrefs:var|case:lc|eff:no|tok:char|smooth:exp|version:{version}"
    assert quality.chrf_signature == f"nrefs:var|case:lc|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert corpus_quality(["a"], [["a"]]).bleu_signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|")


def test_agrees_with_the_sacrebleu_command(tmp_path):
    references = [some[0] for some in REFERENCES]
    (tmp_path / "ref.txt").write_text("\n".join(references) + "\n")
    (tmp_path / "hyp.txt").write_text("\n".join(HYPOTHESES) + "\n")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "ref.txt",
        "-i",
        "hyp.txt",
        "-lc",
        "-m",
        "bleu",
        "chrf",
        "-b",
        "-w",
        "6",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    bleu, chrf = (float(number) for number in done.stdout.replace("[", "").replace("]", "").replace(",", " ").split())
    quality = corpus_quality(HYPOTHESES, [[one] for one in references], lowercase=True)
    assert quality.bleu == pytest.approx(bleu, abs=1e-6)
    assert quality.chrf == pytest.approx(chrf, abs=1e-6)


def test_exact_match_strips_and_follows_lowercase():
    assert corpus_quality([" Hola \n", "adiós"], [["hola"], ["ADIÓS"]]).exact_match == 0.0
    assert corpus_quality([" Hola \n", "adiós"], [["hola"], ["ADIÓS"]], lowercase=True).exact_match == 1.0


def test_no_log_line_about_tokenised_input(capsys, caplog):
    corpus_quality(["a b c ."] * 101, [["a b c ."]] * 101)
    assert caplog.records == []
    assert capsys.readouterr().err == ""


def test_an_empty_translation_scores_zero():
    assert corpus_quality([""], [["something was here before"]]).bleu == 0.0


@pytest.mark.parametrize("function", [corpus_quality, lambda h, r, **k: by_length(h, r, [1] * len(h), **k)])
def test_errors(function):
    with pytest.raises(DataError, match="got 2 translations and 1 lists"):
        function(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="at least one translation, got none"):
        function([], [])
    with pytest.raises(DataError, match="sentence 2 has none"):
        function(["a", "b"], [["a"], []])
    with pytest.raises(ArgumentError, match=r"got the string 'b' for sentence 2; write \[\[text\], \.\.\.\]"):
        function(["a", "b"], [["a"], "b"])
    with pytest.raises(ArgumentError, match="tokenize: must be one of 13a, intl, zh, char, none, got 'flores200'"):
        function(["a"], [["a"]], tokenize="flores200")


def test_by_length_puts_the_ends_into_the_lower_interval():
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"]
    lengths = [1, 5, 6, 10, 11, 13]
    texts = [" ".join(words[:length]) for length in lengths]
    bins = by_length(texts, [[text] for text in texts], lengths, edges=(5, 10))
    # The single word has no 4-gram of its own, but its interval has: all is right, so all is 100.
    assert bins == [LengthBin(1, 5, 2, 100.0), LengthBin(6, 10, 2, 100.0), LengthBin(11, 13, 2, 100.0)]


def test_by_length_scores_each_interval_by_itself_and_leaves_out_empty_ones():
    hypotheses = ["a b c d e", "a b c d e", "p q r s t"]
    references = [["a b c d e"], ["a b c d f", "x"], ["p q r s t"]]
    bins = by_length(hypotheses, references, [3, 17, 3], edges=(3, 7, 11, 19))
    assert [(b.low, b.high, b.sentences) for b in bins] == [(1, 3, 2), (12, 19, 1)]
    assert bins[0].bleu == 100.0
    assert bins[1].bleu == corpus_quality(hypotheses[1:2], references[1:2]).bleu


def test_by_length_errors():
    with pytest.raises(DataError, match="got 2 for 1"):
        by_length(["a"], [["a"]], [1, 2])
    with pytest.raises(ArgumentError, match="source_lengths: must be 1 or more, got 0"):
        by_length(["a"], [["a"]], [0])
    with pytest.raises(ArgumentError, match=r"edges: must increase .*, got \(5, 5\)"):
        by_length(["a"], [["a"]], [1], edges=(5, 5))
    with pytest.raises(ArgumentError, match=r"edges: must increase and start at 1 or more, got \(0, 5\)"):
        by_length(["a"], [["a"]], [1], edges=(0, 5))


def test_group_references_keeps_order_and_drops_repeats():
    pairs = iter([("b", "1"), ("a", "2"), ("b", "3"), ("b", "1"), ("a", "2")])
    assert group_references(pairs) == (["b", "a"], [["1", "3"], ["2"]])
    assert group_references([]) == ([], [])
