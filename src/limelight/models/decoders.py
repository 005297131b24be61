"""The decoders of the recurrent encoder-decoder: what the encoder leaves for them, then one class per way to attend."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limelight.errors import ArgumentError
from limelight.layers import (
    BahdanauAttention,
    CoverageAttention,
    LocalAttention,
    LocalMonotonicAttention,
    LocalPredictiveAttention,
    LocationAttention,
    LuongAttention,
    MemoryAttention,
    RecurrentStack,
    UnrolledStack,
)
from limelight.masks import Mask
from limelight.models.config import Seq2SeqConfig


class Memory(NamedTuple):
    """The encoder's side of a batch, one row a sentence.

    Attributes:
        values: the encoder's outputs h, [B, S, 2 · hidden]; 0 where padded.
        keys: what the attention made of them, [B, S, A].
        source_lengths: [B].
        summary: the last forward and the first backward state, [B, 2 · hidden].
    """

    values: Tensor
    keys: Tensor
    source_lengths: Tensor
    summary: Tensor


class Read(NamedTuple):
    """What a decoder makes of the reference.

    Attributes:
        features: [B, T, C].
        weights: [B, T, S], or None.
        log_weights: [P] of the links asked for, or None.
    """

    features: Tensor
    weights: Tensor | None
    log_weights: Tensor | None


class Decoder(nn.Module, ABC):
    """A recurrent decoder: leaves differ in what is attended to, when, and what becomes the output's features.

    Beams are a tuple whose first tensor is the recurrent state [B, K, layers, W].
    """

    attends_before: bool
    """Whether a step attends with the state before it; else with the one after."""

    def __init__(self, config: Seq2SeqConfig, extra_input: int):
        super().__init__()
        self.rnn = RecurrentStack(
            config.cell, config.embedding + extra_input, config.hidden, config.layers, config.dropout
        )
        self.first_state = nn.Linear(2 * config.hidden, config.layers * self.rnn.state_width)

    def start(self, memory: Memory) -> tuple[Tensor, ...]:
        """s_0 = tanh(W_s summary) for every layer, [B, 1, layers, W]. Bahdanau et al. (2014), A.2.2."""
        return (self.first_state(memory.summary).tanh().unflatten(-1, (1, self.rnn.layers, self.rnn.state_width)),)

    @abstractmethod
    def keys(self, values: Tensor) -> Tensor:
        """The attention's keys of a memory, [B, S, A]."""

    @abstractmethod
    def step(
        self, embedded: Tensor, beams: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Embedded tokens [B, K, embedding] -> features [B, K, C], weights [B, K, S] or None, new beams."""

    def forward(self, embedded: Tensor, memory: Memory, mask: Mask, observe: bool, links: Tensor | None = None) -> Read:
        """Embedded tokens [B, T, embedding] -> features, weights, and log weights of links; step by step."""
        beams = self.start(memory)
        features, weights, states = [], [], [beams[0]]
        for x in embedded.split(1, 1):
            feature, weight, beams = self.step(x, beams, memory, mask, observe)
            features.append(feature)
            weights.append(weight)
            states.append(beams[0])
        return self._read(torch.cat(features, 1), weights, states, memory, mask, links)

    def _read(
        self,
        features: Tensor,
        weights: list[Tensor | None],
        states: list[Tensor],
        memory: Memory,
        mask: Mask,
        links: Tensor | None,
    ) -> Read:
        """What T steps gave: weights [B, 1, S] of each, T + 1 states [B, 1, layers, W]."""
        seen = [weight for weight in weights if weight is not None]
        log_weights = None
        if links is not None:
            # All steps' queries at once: what a state attends to does not depend on when it is asked.
            queries = self.rnn.output(torch.cat(states[:-1] if self.attends_before else states[1:], 1))
            log_weights = self._link_weights(queries, memory, links, mask)
        return Read(features, torch.cat(seen, 1) if seen else None, log_weights)

    def _link_weights(self, queries: Tensor, memory: Memory, links: Tensor, mask: Mask) -> Tensor:
        assert isinstance(self.attention, MemoryAttention)  # all that are GUIDABLE
        return self.attention.log_weights(queries, memory.keys, links, mask)

    def _advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of all hypotheses: x [B, K, ...], state [B, K, layers, W] -> output [B, K, hidden], state."""
        after = self.rnn.step(x.flatten(0, 1), state.flatten(0, 1)).unflatten(0, state.shape[:2])
        return self.rnn.output(after), after


class ContextDecoder(Decoder):
    """Attends with the state before the step: c_t = attend(s_{t-1}, h), s_t = RNN([y_{t-1}; c_t], s_{t-1}).

    The features are the deep output tanh(W_o [s_t; y_{t-1}; c_t]). Bahdanau et al. (2014), A.2.2, whose output layer is
    a maxout instead of a tanh. Beams are the recurrent state and what the attention hands from step to step.
    """

    attends_before = True

    def __init__(self, config: Seq2SeqConfig, attention: BahdanauAttention | CoverageAttention):
        memory_width = 2 * config.hidden
        super().__init__(config, memory_width)
        self.attention = attention
        self.readout = nn.Linear(config.hidden + config.embedding + memory_width, config.hidden)

    def keys(self, values: Tensor) -> Tensor:
        """U h."""
        return self.attention.keys(values)

    @abstractmethod
    def _context(
        self, before: Tensor, handed: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """States [B, K, hidden] -> contexts [B, K, 2 · hidden], weights [B, K, S] or None, what is handed on."""

    def _features(self, output: Tensor, embedded: Tensor, context: Tensor) -> Tensor:
        return self.readout(torch.cat([output, embedded, context], -1)).tanh()

    def step(
        self, embedded: Tensor, beams: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """See `Decoder.step`."""
        state, *handed = beams
        context, weights, handed = self._context(self.rnn.output(state), tuple(handed), memory, mask, observe)
        output, state = self._advance(torch.cat([embedded, context], -1), state)
        return self._features(output, embedded, context), weights, (state, *handed)

    def forward(self, embedded: Tensor, memory: Memory, mask: Mask, observe: bool, links: Tensor | None = None) -> Read:
        """As `Decoder.forward`: what no step waits for, the embedded tokens' products and the features, at once."""
        state, *handed = self.start(memory)
        handed, run = tuple(handed), UnrolledStack(self.rnn, embedded)
        contexts, weights, states = [], [], [state]
        for t in range(embedded.shape[1]):
            context, weight, handed = self._context(self.rnn.output(state), handed, memory, mask, observe)
            state = run.step(t, context.squeeze(1), state.squeeze(1)).unsqueeze(1)
            contexts.append(context)
            weights.append(weight)
            states.append(state)
        output = self.rnn.output(torch.cat(states[1:], 1))
        features = self._features(output, embedded, torch.cat(contexts, 1))
        return self._read(features, weights, states, memory, mask, links)


class BahdanauDecoder(ContextDecoder):
    """A `ContextDecoder` whose attention sees the state alone."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, BahdanauAttention(config.hidden, 2 * config.hidden, config.hidden))

    def _context(
        self, before: Tensor, handed: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        context, weights = self.attention(before, memory.keys, memory.values, mask, observe=observe)
        return context, weights, ()


class CoverageDecoder(ContextDecoder):
    """A `ContextDecoder` each of whose scores also sees what its source position has received so far, g_t.

    g_t is part of the beams, [B, K, S]. See, Liu and Manning (2017), equations 10 and 11.
    """

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, CoverageAttention(config.hidden, 2 * config.hidden, config.hidden))

    def start(self, memory: Memory) -> tuple[Tensor, ...]:
        """The recurrent state, and a coverage of 0."""
        (state,) = super().start(memory)
        wide = torch.promote_types(memory.values.dtype, torch.float32)
        return state, memory.values.new_zeros(state.shape[0], 1, memory.values.shape[1], dtype=wide)

    def _context(
        self, before: Tensor, handed: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        context, weights, coverage = self.attention(before, memory.keys, memory.values, mask, *handed)
        return context, weights if observe else None, (coverage,)


class LuongDecoder(Decoder):
    """Attends with the state after the step: s_t = RNN(y_{t-1}, s_{t-1}), c_t = attend(s_t, h).

    The features are the attentional output a_t = tanh(W_c [c_t; s_t]). With input feeding a_{t-1} is part of the input;
    the beams then hold it too, [B, K, hidden], and with local-m the time of the next step, int64 [B, K], comes last.
    Luong et al. (2015), sections 3 to 3.3.
    """

    attends_before = False

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, config.hidden if config.input_feeding else 0)
        memory_width = 2 * config.hidden
        self.feeding = config.input_feeding
        # For `dot` queries and memory must have one width: the memory is brought to the decoder's.
        self.bridge = nn.Linear(memory_width, config.hidden, bias=False) if config.attention == "dot" else nn.Identity()
        self.attention = luong_attention(config)
        self.timed = isinstance(self.attention, LocalMonotonicAttention)
        self.combine = nn.Linear(memory_width + config.hidden, config.hidden)

    def keys(self, values: Tensor) -> Tensor:
        """The keys h or W h."""
        return self.attention.keys(self.bridge(values))

    def start(self, memory: Memory) -> tuple[Tensor, ...]:
        """The recurrent state, with input feeding an attentional output of 0, with local-m the time 0."""
        (state,) = super().start(memory)
        fed = (state.new_zeros(*state.shape[:2], self.rnn.hidden),) if self.feeding else ()
        times = (state.new_zeros(state.shape[:2], dtype=torch.int64),) if self.timed else ()
        return state, *fed, *times

    def step(
        self, embedded: Tensor, beams: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """See `Decoder.step`."""
        x = torch.cat([embedded, beams[1]], -1) if self.feeding else embedded
        output, state = self._advance(x, beams[0])
        features, weights = self._attentional(output, memory, mask, beams[-1] if self.timed else None, observe)
        fed = (features,) if self.feeding else ()
        times = (beams[-1] + 1,) if self.timed else ()
        return features, weights, (state, *fed, *times)

    def forward(self, embedded: Tensor, memory: Memory, mask: Mask, observe: bool, links: Tensor | None = None) -> Read:
        """Without input feeding no step waits for another's attention: one recurrent pass, one call to `attend`."""
        if self.feeding:
            return super().forward(embedded, memory, mask, observe, links)
        state, *_ = self.start(memory)
        output = self.rnn(embedded, state.squeeze(1))  # [B, T, hidden]
        log_weights = None if links is None else self._link_weights(output, memory, links, mask)
        return Read(*self._attentional(output, memory, mask, None, observe), log_weights)

    def _attentional(
        self, output: Tensor, memory: Memory, mask: Mask, times: Tensor | None, observe: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Features and weights of states [B, T, hidden] at `times`, which are 0 ... T - 1 when not given."""
        keys, values = memory.keys, memory.values
        if isinstance(self.attention, LocalAttention):
            context, weights = self.attention(output, keys, values, memory.source_lengths, times, observe=observe)
        else:
            context, weights = self.attention(output, keys, values, mask, observe=observe)
        return self.combine(torch.cat([context, output], -1)).tanh(), weights


def luong_attention(config: Seq2SeqConfig) -> MemoryAttention | LocalAttention:
    """The attention of a Luong decoder.

    Raises:
        ArgumentError: the configuration names another one.
    """
    hidden, memory_width = config.hidden, 2 * config.hidden
    match config.attention:
        case "dot":
            return LuongAttention("dot", hidden, hidden)
        case "general" | "concat":
            return LuongAttention(config.attention, hidden, memory_width)
        case "location":
            return LocationAttention(hidden, config.source_positions)
        case "local-m":
            return LocalMonotonicAttention(LuongAttention("general", hidden, memory_width), config.window)
        case "local-p":
            return LocalPredictiveAttention(LuongAttention("general", hidden, memory_width), hidden, config.window)
    raise ArgumentError(
        "attention: a Luong decoder needs 'dot', 'general', 'concat', 'location', 'local-m' or 'local-p', got "
        f"{config.attention!r}"
    )


class FixedVectorDecoder(Decoder):
    """No attention: all that is seen of the source, at every step, is its summary c: s_t = RNN([y_{t-1}; c], s_{t-1}).

    The baseline that attention was invented to beat. Cho et al. (2014), "Learning phrase representations using RNN
    encoder-decoder"; the features are tanh(W_o [s_t; y_{t-1}; c]).
    """

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config, 2 * config.hidden)
        self.readout = nn.Linear(config.hidden + config.embedding + 2 * config.hidden, config.hidden)

    def keys(self, values: Tensor) -> Tensor:
        """None are needed: an empty tensor [B, S, 0]."""
        return values[..., :0]

    def step(
        self, embedded: Tensor, beams: tuple[Tensor, ...], memory: Memory, mask: Mask, observe: bool
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """See `Decoder.step`; there are no weights."""
        summary = memory.summary.unsqueeze(1).expand(-1, embedded.shape[1], -1)
        output, state = self._advance(torch.cat([embedded, summary], -1), beams[0])
        return self.readout(torch.cat([output, embedded, summary], -1)).tanh(), None, (state,)

    def forward(self, embedded: Tensor, memory: Memory, mask: Mask, observe: bool, links: Tensor | None = None) -> Read:
        """One recurrent pass; without attention there are no weights."""
        summary = memory.summary.unsqueeze(1).expand(-1, embedded.shape[1], -1)
        (state,) = self.start(memory)
        output = self.rnn(torch.cat([embedded, summary], -1), state.squeeze(1))
        return Read(self.readout(torch.cat([output, embedded, summary], -1)).tanh(), None, None)
