import pytest
import torch
from tests.support.toy_language import WORDS, train_toy, write_toy

from limelight.data.tokenization import Tokenizer
from limelight.errors import ArgumentError, RunFolderError
from limelight.models import Seq2SeqConfig, TransformerConfig, build_model
from limelight.translator import Translator

SENTENCES = ["one", "big red seven", "", "five small small two", "green", "two three four five six"]


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator")
    return train_toy(write_toy(folder / "toy.tsv"), folder / "run", lowercase=True)


def tokenizer(words, **settings):
    return Tokenizer("word", ("<pad>", "<s>", "</s>", "<unk>", *(f"▁{word}" for word in words)), **settings)


def untrained(attention="general", **settings):
    """A model of the toy language with random weights; its special tokens are Tokenizer's."""
    torch.manual_seed(5)
    sizes = {"source_vocabulary": 4 + len(WORDS), "target_vocabulary": 4 + len(WORDS)}
    if attention == "transformer":
        config = TransformerConfig(**sizes, width=12, feedforward=17, heads=3, encoder_layers=1, decoder_layers=2)
    else:
        config = Seq2SeqConfig(**sizes, attention=attention, hidden=11, embedding=7)
    return Translator(build_model(config), tokenizer(WORDS), tokenizer(WORDS.values()), **settings)


def test_translations_come_in_order_whatever_their_length(translator):
    found = translator.translate(SENTENCES)
    assert [one.source for one in found] == SENTENCES
    assert found[0].text == "eins"
    assert found[1].text == "groß rot sieben"
    assert found[2].text == ""
    assert found[4].text == "grün"
    assert translator.translate([]) == []


@pytest.mark.parametrize(
    "attention", ["bahdanau", "coverage", "dot", "location", "local-m", "local-p", "none", "transformer"]
)
@pytest.mark.parametrize("beam", [1, 3])
def test_the_batch_does_not_change_a_translation(attention, beam):
    together = untrained(attention).translate(SENTENCES, beam=beam)
    alone = [untrained(attention, batch_tokens=1).translate([text], beam=beam)[0] for text in SENTENCES]
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.links() == other.links()


@pytest.mark.parametrize("attention", ["bahdanau", "coverage", "general", "local-m", "local-p", "transformer"])
def test_forced_decoding_sees_what_decoding_saw(attention):
    model = untrained(attention)
    found = model.translate(SENTENCES)
    again = model.attention((one.source, one.text) for one in found)
    for one, other in zip(found, again, strict=True):
        assert (other.source, other.text, other.target_tokens) == (one.source, one.text, one.target_tokens)
        assert (other.source_words, other.target_words) == (one.source_words, one.target_words)
        # Decoding never produces an unknown token, and shares its probability out; a cut-off text has no end to count.
        assert other.log_prob <= one.log_prob + 1e-4
        if one.text:
            torch.testing.assert_close(other.weights, one.weights)
    assert [one.links() for one in again] == model.align((one.source, one.text) for one in found)


def test_forced_log_probs_are_those_of_the_models_softmax():
    model = untrained()
    (found,) = model.attention([("one two three", "drei eins")])
    source = torch.tensor([[*model.source_tokenizer.encode("one two three"), Tokenizer.eos]])
    target = torch.tensor([[Tokenizer.bos, *model.target_tokenizer.encode("drei eins"), Tokenizer.eos]])
    with torch.inference_mode():
        features = model.model(source, torch.tensor([4]), target[:, :-1]).features
        by_token = model.model.output(features).double().log_softmax(-1)[0]
    expected = sum(float(by_token[t, token]) for t, token in enumerate(target[0, 1:].tolist()))
    assert found.log_prob == pytest.approx(expected, abs=1e-4)
    assert found.weights.shape == (2, 4)


def test_a_long_target_beside_short_sources_does_not_make_a_huge_batch(monkeypatch):
    model = untrained(batch_tokens=64)
    sizes = []
    forward = type(model.model).forward

    def measured(self, source, source_lengths, target, **options):
        sizes.append(max(source.numel(), target.numel()))
        return forward(self, source, source_lengths, target, **options)

    monkeypatch.setattr(type(model.model), "forward", measured)
    model.align([("one", "eins " * 30), *[("two", "zwei")] * 50])
    assert len(sizes) > 2
    assert max(sizes) <= 64


def test_links_join_each_target_word_to_what_it_looks_at_most(translator):
    (found,) = translator.translate(["big red seven"])
    assert found.source_tokens == ["big", "red", "seven", "</s>"]
    assert found.target_tokens == ["groß", "rot", "sieben"]
    assert found.weights.shape == (3, 4)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3))
    best = found.weights[:, :3].argmax(-1).tolist()
    assert found.links() == {(i, j) for j, i in enumerate(best)}


def test_n_best_are_distinct_and_in_order(translator):
    first, blank = translator.translate_n_best(["big red seven", " "], beam=5, n_best=4)
    assert len(first) == len({one.text for one in first}) == 4
    assert [one.score for one in first] == sorted((one.score for one in first), reverse=True)
    assert [one.text for one in blank] == [""]


def test_attention_is_kept_only_when_asked_for(translator):
    assert translator.translate(["one"], observe=False)[0].weights is None
    assert translator.translate(["one"], observe=False)[0].links() == frozenset()


def test_what_the_vocabulary_lacks_is_named(translator):
    (found,) = translator.translate(["one nine ONE zehn nine"])
    assert found.unknown == ["nine", "zehn"]
    assert found.text.startswith("eins")
    assert "<unk>" not in found.text
    assert translator.translate(["ONE"])[0].unknown == []


def test_a_sentence_that_is_too_long_is_cut_and_counted():
    model = untrained(longest=7)
    (found,) = model.translate(["one two three four five six seven red green"])
    assert found.truncated == 2
    assert found.source_tokens == ["one", "two", "three", "four", "five", "six", "seven", "</s>"]
    assert found.weights.shape[1] == 8
    (forced,) = model.attention([("one " * 8, "eins " * 10)])
    assert forced.truncated == 1 + 3
    assert forced.weights.shape == (7, 8)


def test_progress_counts_every_sentence(translator):
    small = Translator(translator.model, translator.source_tokenizer, translator.target_tokenizer, batch_tokens=8)
    told: list[int] = []
    small.translate_n_best(SENTENCES, beam=1, progress=told.append)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == len(SENTENCES)
    told.clear()
    small.align([("one", "eins"), ("", "zwei"), ("three", "drei")], progress=told.append)
    assert told[-1] == 3


def test_blank_sides_align_nothing(translator):
    assert translator.align([("", "eins"), ("one", " "), ("one", "eins")]) == [frozenset(), frozenset(), {(0, 0)}]


def test_a_model_without_attention_says_so():
    blind = untrained("none")
    assert not blind.attends
    assert untrained().attends
    with pytest.raises(ArgumentError, match="trained without attention, so it aligns nothing; train one that has"):
        blind.align([("one", "eins")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one"}, r'texts: must be a list of sentences, got one string; write \["..."\]'),
        ({"texts": ["one", None]}, "texts: must be strings, got NoneType at index 1"),
        ({"beam": 0}, r"beam: must be at least 1 \(greedy search\), got 0"),
        ({"beam": 1, "n_best": 2}, r"n_best: must be in \[1, beam = 1\], got 2; widen the beam"),
        ({"n_best": 0}, r"n_best: must be in \[1, beam = 5\], got 0"),
        ({"alpha": -0.5}, r"alpha: must be at least 0 \(no length penalty\), got -0.5"),
        ({"alpha": float("nan")}, "alpha: must be at least 0"),
    ],
)
def test_arguments_out_of_range(translator, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        translator.translate_n_best(**{"texts": [""]} | arguments)


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match="is not a folder; give the folder that `limelight train --out` wrote"):
        Translator.open(tmp_path / "no")
    with pytest.raises(ArgumentError, match="device: 'cuda:99' cannot be used here"):
        Translator.open(tmp_path, device="cuda:99")
