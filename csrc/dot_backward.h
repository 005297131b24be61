// Backward pass of dot scores, with p = e^(s - m) / l computed again from the rows' m and l:
//   grad v = p' grad o,   grad p = grad o v',   grad s = p (grad p - delta),   grad q = scale grad s k,   grad k = scale grad s' q,
// where delta_i = sum_e o_ie grad o_ie - grad lse_i. With dropout d (0 or 1 / (1 - rate)): grad v takes d p, and grad p is
// multiplied by d. (Dao et al. 2022, arXiv 2205.14135, appendix B.)
//
// A unit of work is a stretch of keys of one key head. It owns the gradients of its keys and values; where several units
// share a head, each has a sum of its own for the queries' gradients, and these are added in order.
#pragma once

#include "bias_gradient.h"
#include "dot_decode_backward.h"
#include "dot_forward.h"
#include "slope.h"

namespace limelight::LIMELIGHT_ISA {

constexpr int64_t BACK_ROWS = 8 * MR;                   // queries of a block
constexpr int64_t BACK_KEYS = NR * (W == 16 ? 4 : 12);  // keys of a block
static_assert(BACK_ROWS + BACK_KEYS <= BiasGradient::most);

class DotBackward {
 public:
  // `bias`: where this part finds the bias's gradient.
  DotBackward(const Backward& call, int64_t stretch, float* bias)
      : call_(call), score_(paired(call), call.D), worth_(paired(call), call.E), rows_(paired(call), call.D),
        outputs_(paired(call), call.E), bias_(call, bias), key_width_(padded(call.D)), value_width_(padded(call.E)),
        scratch_(floats(call, stretch)) {
    const int64_t d = call.D, e = call.E;
    query_ = scratch_.take(BACK_ROWS * d), query_panels_ = scratch_.take(BACK_ROWS * key_width_);
    grad_output_ = scratch_.take(BACK_ROWS * e), grad_output_panels_ = scratch_.take(BACK_ROWS * value_width_);
    key_ = scratch_.take(BACK_KEYS * d), key_panels_ = scratch_.take(BACK_KEYS * key_width_),
    value_ = scratch_.take(BACK_KEYS * e);
    weights_ = scratch_.take(BACK_ROWS * BACK_KEYS), slopes_ = scratch_.take(BACK_ROWS * BACK_KEYS);
    room_ = scratch_.take(4 * std::max(d, e)), rounded_ = scratch_.take(BACK_ROWS * BACK_KEYS / 2);
    grad_key_ = scratch_.take(stretch * key_width_), grad_value_ = scratch_.take(stretch * value_width_);
    cap_slope_ = scratch_.take(BACK_KEYS);
    column_bits_ = reinterpret_cast<uint32_t*>(scratch_.take(BACK_KEYS));
  }

  // Keys [first, last) of key head g. `grad_query` [H / G][T][key_width] is added to; `delta` [H / G][T] is read.
  void run(int64_t n, int64_t g, int64_t first, int64_t last, float* grad_query, const float* delta) {
    n_ = n, g_ = g;
    std::fill(grad_key_, grad_key_ + (last - first) * key_width_, 0.0f);
    std::fill(grad_value_, grad_value_ + (last - first) * value_width_, 0.0f);
    const int64_t shared = call_.H / call_.G;
    for (int64_t key = first; key < last; key += BACK_KEYS) {
      const int64_t count = std::min(BACK_KEYS, last - key);
      const Span rows = rows_of_keys(call_, n, key, key + count);
      if (rows.empty()) continue;
      pack_keys(key, count);
      for (int64_t i = 0; i < shared; i++)
        for (int64_t row = rows.first; row < rows.last; row += BACK_ROWS)
          meet(g * shared + i, row, std::min(BACK_ROWS, rows.last - row), key, count, grad_query + i * call_.T * key_width_,
               delta + i * call_.T, key - first);
    }
    for (int64_t j = first; j < last; j++) {
      write_row(call_.grad_key, call_.type, n, g, j, call_.D, grad_key_ + (j - first) * key_width_, call_.scale);
      write_row(call_.grad_value, call_.type, n, g, j, call_.E, grad_value_ + (j - first) * value_width_, 1);
    }
  }

  bool clean() const { return watch_.clean(); }

 private:
  // As the forward pass has it: the scores have to come out the same.
  static bool paired(const Backward& call) { return call.type == Type::bf16; }

  static int64_t floats(const Backward& call, int64_t stretch) {
    const int64_t d = padded(call.D), e = padded(call.E);
    return BACK_ROWS * (2 * d + 2 * e + 3 * BACK_KEYS) + BACK_KEYS * (2 * d + e + 2) + 4 * std::max(d, e) + stretch * (d + e) +
           16 * 16;
  }

  void pack_keys(int64_t key, int64_t count) {
    score_.pack_right(call_.key, call_.type, n_, g_, key, count, key_, room_, watch_);
    rows_.pack(call_.key, call_.type, n_, g_, key, count, key_panels_, room_, watch_);
    worth_.pack_right(call_.value, call_.type, n_, g_, key, count, value_, room_, watch_);
    if (call_.dropout.rate > 0)
      for (int64_t j = 0; j < BACK_KEYS; j++) column_bits_[j] = dropout_column(key + j, call_.dropout.seed);
  }

  // Queries [row, row + rows) of head h and a block of keys, `place` in the unit's stretch.
  void meet(int64_t h, int64_t row, int64_t rows, int64_t key, int64_t count, float* grad_query, const float* delta,
            int64_t place) {
    Span span = keys_of_rows(call_, n_, row, row + rows);
    span = {std::max(span.first, key) - key, std::min(span.last, key + count) - key};
    if (span.empty()) return;
    const int64_t from = span.first / NR * NR, to = (span.last + W - 1) / W * W;
    const int64_t inner = std::min(to, count) - from;
    score_.pack_left(call_.query, call_.type, n_, h, row, rows, call_.scale, query_, room_, watch_, watch_);
    rows_.pack(call_.query, call_.type, n_, h, row, rows, query_panels_, room_, watch_);
    worth_.pack_left(call_.grad_output, call_.type, n_, h, row, rows, 1, grad_output_, room_, watch_, watch_);
    outputs_.pack(call_.grad_output, call_.type, n_, h, row, rows, grad_output_panels_, room_, watch_);
    score_.multiply(rows, to - from, query_, key_ + from * score_.steps(), call_.scale, weights_ + from, BACK_KEYS);
    worth_.multiply(rows, to - from, grad_output_, value_ + from * worth_.steps(), 1, slopes_ + from, BACK_KEYS);
    if (bias_) bias_.begin(n_, h, row, rows, key);
    for (int64_t i = 0; i < rows; i++) {
      float *s = weights_ + i * BACK_KEYS, *g = slopes_ + i * BACK_KEYS;
      slope(call_, n_, h, row + i, keys_of_row(call_, n_, row + i), key, delta[row + i], s, g, from, to, cap_slope_,
            column_bits_);
      if (bias_) bias_.add(row + i, g, from, std::min(to, count));
      if (call_.cap > 0) scale_by_cap(g, cap_slope_, from, to);
    }
    if (bias_) bias_.end();
    outputs_.add_across(rows, inner, weights_ + from, BACK_KEYS, grad_output_panels_, grad_value_ + (place + from) * value_width_,
                        value_width_, rounded_);
    rows_.add(rows, from, inner, count, slopes_, BACK_KEYS, key_panels_, grad_query + row * key_width_, key_width_, nullptr,
              rounded_);
    rows_.add_across(rows, inner, slopes_ + from, BACK_KEYS, query_panels_, grad_key_ + (place + from) * key_width_, key_width_,
                     rounded_);
  }

  const Backward& call_;
  Factors score_, worth_;    // query and key; grad o and value
  Summands rows_, outputs_;  // queries and keys; grad o
  BiasGradient bias_;
  int64_t key_width_, value_width_;
  Scratch scratch_;
  float *query_, *query_panels_, *grad_output_, *grad_output_panels_, *key_, *key_panels_, *value_, *weights_, *slopes_, *room_,
      *rounded_;
  float* cap_slope_;  // of one row of scores, where there is a cap
  float *grad_key_, *grad_value_;
  uint32_t* column_bits_;
  Watch watch_;
  int64_t n_ = 0, g_ = 0;
};

// delta of one head's queries, [T]; see the top.
inline void row_sums(const Backward& call, int64_t n, int64_t h, float* delta, float* room) {
  for (int64_t i = 0; i < call.T; i++) {
    const float* o = read_row(call.output, Type::f32, n, h, i, call.E, room);
    const float* g = read_row(call.grad_output, call.type, n, h, i, call.E, room + call.E);
    vf sum{};
    float rest = 0;
    int64_t x = 0;
    for (; x + W <= call.E; x += W) sum += load(o + x) * load(g + x);
    for (; x < call.E; x++) rest += o[x] * g[x];
    const int64_t line = (n * call.H + h) * call.T + i;
    delta[i] = sum_of(sum) + rest - (call.grad_lse ? call.grad_lse[line] : 0.0f);
  }
}

// Key heads [begin, begin + heads), shared out to `parts`. `bias(part)`: where a part finds the bias's gradient.
template <class PASS, class F>
bool dot_backward_heads(const Backward& call, int64_t begin, int64_t heads, int parts, F bias) {
  const int64_t shared = call.H / call.G, width = padded(call.D);
  // Stretches per key head: one, or enough for all threads, and one more where that leaves less of them idle.
  const int64_t blocks = (call.S + BACK_KEYS - 1) / BACK_KEYS;
  int64_t cuts = std::clamp<int64_t>((parts + heads - 1) / heads, 1, blocks);
  const auto rounds = [&](int64_t some) { return (heads * some + parts - 1) / parts; };
  if (cuts < blocks && rounds(cuts + 1) * cuts < rounds(cuts) * (cuts + 1)) cuts++;
  const int64_t stretch = (blocks + cuts - 1) / cuts * BACK_KEYS, units = heads * cuts, sums = shared * call.T * width;
  const bool split = cuts > 1;
  std::vector<float> partial(split ? static_cast<size_t>(units * sums) : 0);
  std::vector<char> clean(static_cast<size_t>(parts), 1);
  const auto write = [&](int64_t head, const float* grad_query) {
    for (int64_t i = 0; i < shared; i++)
      for (int64_t t = 0; t < call.T; t++)
        write_row(call.grad_query, call.type, head / call.G, head % call.G * shared + i, t, call.D,
                  grad_query + (i * call.T + t) * width, call.scale);
  };
  const std::vector<int64_t> ends = balanced(std::vector<int64_t>(static_cast<size_t>(units), 1), parts);
  in_parallel(parts, [&](int part) {
    if (ends[static_cast<size_t>(part)] == ends[static_cast<size_t>(part) + 1]) return;
    PASS pass(call, std::min(stretch, blocks * BACK_KEYS), bias(part));
    std::vector<float> own(split ? 0 : static_cast<size_t>(sums)), delta(static_cast<size_t>(shared * call.T));
    std::vector<float> room(static_cast<size_t>(2 * call.E));
    for (int64_t unit = ends[static_cast<size_t>(part)]; unit < ends[static_cast<size_t>(part) + 1]; unit++) {
      const int64_t head = begin + unit / cuts, n = head / call.G, g = head % call.G, first = unit % cuts * stretch;
      for (int64_t i = 0; i < shared; i++) row_sums(call, n, g * shared + i, delta.data() + i * call.T, room.data());
      float* grad_query = split ? partial.data() + unit * sums : own.data();
      if (!split) std::fill(own.begin(), own.end(), 0.0f);
      pass.run(n, g, std::min(first, call.S), std::min(first + stretch, call.S), grad_query, delta.data());
      if (!split) write(head, grad_query);
    }
    clean[static_cast<size_t>(part)] = pass.clean();
  });
  if (split)
    in_parallel(static_cast<int>(std::min<int64_t>(parts, heads)), [&](int part) {
      for (int64_t head = part; head < heads; head += std::min<int64_t>(parts, heads)) {
        float* total = partial.data() + head * cuts * sums;
        for (int64_t cut = 1; cut < cuts; cut++)
          for (int64_t x = 0; x < sums; x++) total[x] += total[cut * sums + x];
        write(begin + head, total);
      }
    });
  return std::all_of(clean.begin(), clean.end(), [](char one) { return one; });
}

inline bool dot_backward(const Backward& call) {
  const double work = pairs_of(call) * (3 * call.D + 2 * call.E);
  BiasPlan bias(call, threads_for(call, work));
  const int64_t heads = call.N * call.G / bias.rounds;
  const int parts = threads_for(call, work / bias.rounds);
  bool clean = true;
  const auto origin = [&](int part) { return bias.origin(part); };
  for (int64_t round = 0; round < bias.rounds; round++)
    clean &= few_queries(call) ? dot_backward_heads<DotDecodeBackward>(call, round * heads, heads, parts, origin)
                               : dot_backward_heads<DotBackward>(call, round * heads, heads, parts, origin);
  bias.finish();
  return clean;
}

}  // namespace limelight::LIMELIGHT_ISA
