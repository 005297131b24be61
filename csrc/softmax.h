// The online softmax of a block of rows (Milakov and Gimelshein 2018, arXiv 1805.02867) and what is observed
// on the way. A row's running state is its maximum m, and per lane the sums l = sum p and e = sum p (s - m), p = e^(s - m).
// Scores are not taken in base 2: at 10^4 the roundings of that would show.
#pragma once

#include "work.h"

namespace limelight::LIMELIGHT_ISA {

struct RowState {
  float* largest;   // m, [rows]
  float* change;    // e^(m before - m now), [rows]: what the row's sums so far are to be multiplied by
  float* total;     // l, [rows][W]
  float* spread;    // e, [rows][W]; null where no entropy is wanted

  void clear(int64_t rows) {
    std::fill(largest, largest + rows, -INF);
    std::fill(total, total + rows * W, 0.0f);
    if (spread) std::fill(spread, spread + rows * W, 0.0f);
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

// Scores s [first, last) of row r become p = e^(s - m), with m and the sums brought up to date. Ends are multiples of W.
template <bool SPREAD>
LL_INLINE void soften(RowState& state, int64_t r, float* s, int64_t first, int64_t last) {
  vf high = splat(-INF), high_2 = high;
  int64_t j = first;
  for (; j + 2 * W <= last; j += 2 * W) {
    high = larger(load(s + j), high);
    high_2 = larger(load(s + j + W), high_2);
  }
  if (j < last) high = larger(load(s + j), high);
  const float before = state.largest[r], m = std::max(before, largest_of(larger(high, high_2)));
  const float change = before == -INF ? 0.0f : exp_scalar(before - m);
  const vf shift = splat(m == -INF ? 0.0f : m);
  vf total{}, total_2{}, spread{};
  for (j = first; j < last; j += W) {
    const vf x = load(s + j) - shift;
    const vf p = exp(x);
    if constexpr (SPREAD) spread += p * larger(splat(-104.0f), x);  // 0 * -inf is no number
    store(s + j, p);
    total_2 += total;
    total = p;
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

// The strongest links of a row so far: scores and keys, strongest first, of equal ones the lower key first.
struct Strongest {
  int32_t k = 0;
  float* score;   // [rows][k]
  int32_t* index; // [rows][k]

  void clear(int64_t rows) {
    std::fill(score, score + rows * k, -INF);
    std::fill(index, index + rows * k, -1);
  }
  // Take in scores s [first, last) of row r, the first being that of key `key` + first.
  void see(int64_t r, const float* s, int64_t key, int64_t first, int64_t last) {
    const float* held = score + r * k;
    vf most = splat(-INF);
    for (int64_t j = first; j < last; j += W) most = larger(most, load(s + j));
    if (!any_above(most, splat(held[k - 1]))) return;
    // Nothing but what is above the bound can be among the k strongest.
    float bound = held[k - 1] == -INF ? below_kth(most) : held[k - 1];
    for (int64_t j = first; j < last; j += W) {
      if (!any_above(load(s + j), splat(bound))) continue;
      for (int64_t i = j; i < j + W; i++)
        if (s[i] > bound) {
          insert(r, s[i], static_cast<int32_t>(key + i));
          bound = std::max(bound, held[k - 1]);
        }
    }
  }

 private:
  // The number below the k-th largest lane. Each lane is one score, so k scores at least are above it: a row that holds
  // nothing yet is spared the many that would be inserted and pushed out again.
  float below_kth(vf most) const {
    if (k > W) return -INF;
    float lanes[W];
    store(lanes, most);
    for (int i = 1; i < W; i++) {
      const float one = lanes[i];
      int place = i;
      for (; place > 0 && lanes[place - 1] < one; place--) lanes[place] = lanes[place - 1];
      lanes[place] = one;
    }
    return std::nextafterf(lanes[k - 1], -INF);
  }
  void insert(int64_t r, float s, int32_t key) {
    float* scores = score + r * k;
    int32_t* keys = index + r * k;
    int32_t place = k - 1;
    for (; place > 0 && scores[place - 1] < s; place--) {
      scores[place] = scores[place - 1];
      keys[place] = keys[place - 1];
    }
    scores[place] = s;
    keys[place] = key;
  }
};

}  // namespace limelight::LIMELIGHT_ISA
