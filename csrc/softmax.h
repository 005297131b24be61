// The online softmax of a block of rows (Milakov and Gimelshein 2018, arXiv 1805.02867) and what is observed
// on the way. A row's running state is its maximum m, and per lane the sums l = sum p and e = sum p (s - m), p = e^(s - m).
// Scores are not taken in base 2: at 10^4 the roundings of that would show.
#pragma once

#include "product.h"
#include "work.h"

namespace limelight::LIMELIGHT_ISA {

struct RowState {
  float* largest;   // m, [rows]
  float* change;    // e^(m before - m now), [rows]: what the row's sums so far are to be multiplied by
  float* total;     // l, [rows][W]
  float* spread;    // e, [rows][W]; null where no entropy is wanted
  float* heights = nullptr;  // the largest scores of 2 W shares of the keys, [rows][2 W]; null where no links are wanted

  void clear(int64_t rows) {
    std::fill(largest, largest + rows, -INF);
    std::fill(total, total + rows * W, 0.0f);
    if (spread) std::fill(spread, spread + rows * W, 0.0f);
    if (heights) std::fill(heights, heights + rows * 2 * W, -INF);
  }
};

// Whether scores are not final as the product leaves them, even where a row may see every key.
inline bool has_extras(const Call& call) { return call.cap > 0 || call.bias.data || call.mask.dense.data; }

// Scores s become cap tanh(s / cap); `slope`, if wanted, takes the derivative 1 - tanh^2. Ends are multiples of W.
inline void cap_scores(float cap, float* s, float* slope, int64_t first, int64_t last) {
  for (int64_t j = first; j < last; j += W) {
    const vf t = tanh(load(s + j) / cap);
    store(s + j, t * cap);
    if (slope) store(slope + j, 1.0f - t * t);
  }
}

// The one place where scores [first, last) of row i become final: cap, then bias, then -inf where the mask forbids. The
// row's keys are s[0] = key `key`, ...; ends are multiples of W, beyond the keys if need be. `slope`, if there is a cap
// and it is wanted, takes the derivative of the capped score by the score, for the same places.
inline void finish_scores(const Call& call, int64_t n, int64_t h, int64_t i, int64_t key, Span keys, float* s, int64_t first,
                          int64_t last, float* slope = nullptr) {
  const int64_t from = std::clamp(keys.first - key, first, last), to = std::clamp(keys.last - key, from, last);
  if (call.cap > 0) cap_scores(call.cap, s, slope, first, last);
  if (call.bias.data) {
    const Tensor& t = call.bias;
    const float* bias = static_cast<const float*>(t.data) + n * t.n + h * t.head + i * t.row + key * t.column;
    if (t.column == 1)
      for (int64_t j = from; j < to; j++) s[j] += bias[j];
    else
      for (int64_t j = from; j < to; j++) s[j] += bias[j * t.column];
  }
  if (call.mask.dense.data) {
    const Tensor& t = call.mask.dense;
    const uint8_t* allowed = static_cast<const uint8_t*>(t.data) + n * t.n + h * t.head + i * t.row + key * t.column;
    for (int64_t j = from; j < to; j++) s[j] = allowed[j * t.column] ? s[j] : -INF;
  }
  std::fill(s + first, s + from, -INF);
  std::fill(s + to, s + last, -INF);
}

// p = e^(s - m) of scores s [first, last) of row r, with m and the sums brought up to date. Ends are multiples of W; p may
// be s.
template <bool SPREAD>
LL_INLINE void soften(RowState& state, int64_t r, const float* s, float* p, int64_t first, int64_t last) {
  vf high = splat(-INF), high_2 = high;
  int64_t j = first;
  for (; j + 2 * W <= last; j += 2 * W) {
    high = larger(load(s + j), high);
    high_2 = larger(load(s + j + W), high_2);
  }
  if (j < last) high = larger(load(s + j), high);
  if (state.heights) {
    float* heights = state.heights + r * 2 * W;
    store(heights, larger(high, load(heights)));
    store(heights + W, larger(high_2, load(heights + W)));
  }
  const float before = state.largest[r], m = std::max(before, largest_of(larger(high, high_2)));
  const float change = before == -INF ? 0.0f : exp_scalar(before - m);
  const vf shift = splat(m == -INF ? 0.0f : m);
  vf total{}, total_2{}, spread{};
  for (j = first; j < last; j += W) {
    const vf x = load(s + j) - shift;
    const vf one = exp(x);
    if constexpr (SPREAD) spread += one * larger(splat(-104.0f), x);  // 0 * -inf is no number
    store(p + j, one);
    total_2 += total;
    total = one;
  }
  total += total_2;
  vf sum = load(state.total + r * W);
  if constexpr (SPREAD) {
    const float fall = before == -INF ? 0.0f : before - m;
    store(state.spread + r * W, (load(state.spread + r * W) + sum * fall) * change + spread);
  }
  store(state.total + r * W, sum * change + total);
  state.largest[r] = m;
  state.change[r] = change;
}

// The sink of a head: -inf for none.
inline float sink_of(const Call& call, int64_t n, int64_t h) {
  return call.sink ? call.sink[n * call.sink_n + h * call.sink_head] : -INF;
}

// What a row comes to once all its keys were met and its sink joins them.
struct RowEnd {
  float m = 0, inverse = 0;  // the largest score and 1 / sum e^(s - m), both with the sink; 0 and 0 of an empty row
  float by = 0;              // what e^(s - m of the keys alone) is to be multiplied by to become a weight
  float lse = -INF;
  float entropy = 0;  // of the keys' weights; it needs `spread`
};

// m, total = sum e^(s - m) and spread = sum e^(s - m) (s - m) of the keys.
inline RowEnd end_of_row(float m, float total, float spread, float sink) {
  RowEnd end;
  if (total == 0) {
    if (sink != -INF) end.m = end.lse = sink, end.inverse = 1;
    return end;
  }
  const float top = std::max(m, sink), fall = m - top, change = sink == -INF ? 1.0f : exp_scalar(fall);
  const float sum = sink == -INF ? total : total * change + exp_scalar(sink - top), log_sum = std::log(sum);
  end.m = top, end.inverse = 1 / sum, end.by = change * end.inverse, end.lse = top + log_sum;
  end.entropy = std::max(0.0f, end.by * (total * (log_sum - fall) - spread));
  return end;
}

// The strongest links of each row so far: scores and keys, strongest first, of equal ones the lower key first.
class Strongest {
 public:
  Strongest() = default;
  // Room for `rows` rows: room(k) floats and as many indices each.
  Strongest(int32_t k, float* score, int32_t* index) : k_(k), stride_(room(k)), score_(score), index_(index) {}
  static int64_t room(int64_t k) { return (k + W - 1) / W * W; }

  explicit operator bool() const { return k_ > 0; }

  void clear(int64_t rows) {
    std::fill(score_, score_ + rows * stride_, -INF);
    std::fill(index_, index_ + rows * stride_, -1);
  }

  // Take in scores s [first, last) of row r, the first being that of key `key` + first.
  void see(int64_t r, const float* s, int64_t key, int64_t first, int64_t last) {
    const float* weakest = score_ + r * stride_ + k_ - 1;
    for (int64_t j = first; j < last; j += W)
      for (uint32_t above = lanes_above(load(s + j), splat(*weakest)); above; above &= above - 1) {
        const int64_t i = j + __builtin_ctz(above);
        if (s[i] > *weakest) insert(r, s[i], static_cast<int32_t>(key + i));
      }
  }

  // What the k strongest scores of a row reach, from its `heights`: the k-th largest of these, which few scores reach.
  float floor_of(const float* heights) const {
    if (k_ > 2 * W) return -INF;
    const vf low = load(heights), high = load(heights + W);
    vi above_low{}, above_high{};  // how many lie above
    for (int i = 0; i < 2 * W; i++) {
      const vf one = splat(heights[i]);
      above_low -= one > low;
      above_high -= one > high;
    }
    const vf far = splat(INF);
    return -largest_of(-smaller(above_low < k_ ? low : far, above_high < k_ ? high : far));
  }

  // As `see`, where those that do not reach the floor need not be asked.
  void see(int64_t r, const float* s, int64_t key, int64_t first, int64_t last, float floor) {
    constexpr uint32_t every = W == 32 ? ~0u : (1u << W) - 1;
    const float* weakest = score_ + r * stride_ + k_ - 1;
    for (int64_t j = first; j < last; j += W)
      for (uint32_t some = every & ~lanes_above(splat(floor), load(s + j)); some; some &= some - 1) {
        const int64_t i = j + __builtin_ctz(some);
        if (s[i] > *weakest) insert(r, s[i], static_cast<int32_t>(key + i));
      }
  }

  // The scores of row r and their keys.
  void copy(int64_t r, float* scores, int64_t* keys) const {
    std::copy(score_ + r * stride_, score_ + r * stride_ + k_, scores);
    std::copy(index_ + r * stride_, index_ + r * stride_ + k_, keys);
  }

  // Line `line` of the answer: those of row r, weighed with the row's m and 1 / l.
  void write(const Observed& seen, int64_t line, int64_t r, float m, float inverse) const {
    for (int32_t i = 0; i < k_; i++) {
      const float s = score_[r * stride_ + i];
      seen.top_index[line * k_ + i] = index_[r * stride_ + i];
      seen.top_weight[line * k_ + i] = s == -INF ? 0.0f : exp_scalar(s - m) * inverse;
    }
  }

 private:
  // Each place takes the larger of what it holds and the smaller of s and what the place before held.
  void insert(int64_t r, float s, int32_t key) {
    float* scores = score_ + r * stride_;
    int32_t* keys = index_ + r * stride_;
    vf before = splat(INF);
    vi key_before{};
    for (int64_t i = 0; i < stride_; i += W) {
      const vf held = load(scores + i), above = moved_up(held, before);
      vi key_held;
      std::memcpy(&key_held, keys + i, sizeof key_held);
      const vi key_above = moved_up(key_held, key_before);
      const vi now = held >= s ? key_held : above >= s ? vi{} + key : key_above;
      store(scores + i, larger(smaller(above, splat(s)), held));
      std::memcpy(keys + i, &now, sizeof now);
      before = splat(held[W - 1]);
      key_before = vi{} + key_held[W - 1];
    }
  }

  int32_t k_ = 0;
  int64_t stride_ = 0;
  float* score_ = nullptr;
  int32_t* index_ = nullptr;
};

// Row i of head h is done: write its output and what is known of it from m, total and spread of its keys (see end_of_row)
// and the sums over the values. Returns what e^(s - m) is to be multiplied by to become a weight.
inline float write_result(const Forward& call, int64_t n, int64_t h, int64_t i, float m, float total, float spread, float sink,
                          const float* sums) {
  const int64_t line = (n * call.H + h) * call.T + i;
  const RowEnd end = end_of_row(m, total, spread, sink);
  Tensor output = call.output;
  write_row(row_at(output, call.type, n, h, i), call.type, output.column, call.E, sums, end.by);
  if (call.lse) call.lse[line] = end.lse;
  if (call.rows) call.rows[2 * line] = end.m, call.rows[2 * line + 1] = end.inverse;
  if (call.seen.entropy) call.seen.entropy[line] = end.entropy;
  return end.by;
}

}  // namespace limelight::LIMELIGHT_ISA
