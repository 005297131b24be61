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

  void clear(int64_t rows) {
    std::fill(largest, largest + rows, -INF);
    std::fill(total, total + rows * W, 0.0f);
    if (spread) std::fill(spread, spread + rows * W, 0.0f);
  }
};

// Scores [first, last) of row i take in the bias, and become -inf where the mask forbids. The row's keys
// are s[0] = key `key`, ...; `last` is a multiple of W, beyond the keys if need be.
inline void apply_mask(const Call& call, int64_t n, int64_t h, int64_t i, int64_t key, Span keys, float* s, int64_t first,
                       int64_t last) {
  const int64_t from = std::clamp(keys.first - key, first, last), to = std::clamp(keys.last - key, from, last);
  if (call.bias.data) {
    const Tensor& t = call.bias;
    const float* bias = static_cast<const float*>(t.data) + n * t.n + h * t.head + i * t.row + key * t.column;
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
    const float* weakest = score + r * k + k - 1;
    for (int64_t j = first; j < last; j += W)
      for (uint32_t above = lanes_above(load(s + j), splat(*weakest)); above; above &= above - 1) {
        const int64_t i = j + __builtin_ctz(above);
        if (s[i] > *weakest) insert(r, s[i], static_cast<int32_t>(key + i));
      }
  }
  // Line `line` of the answer: those of row r, weighed with the row's m and 1 / l.
  void write(const Observed& seen, int64_t line, int64_t r, float m, float inverse) const {
    for (int32_t i = 0; i < k; i++) {
      const float s = score[r * k + i];
      seen.top_index[line * k + i] = index[r * k + i];
      seen.top_weight[line * k + i] = s == -INF ? 0.0f : exp_scalar(s - m) * inverse;
    }
  }

 private:
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

// Row i of head h is done: write its output and what is known of it from m, l = `total`, e = `spread` and the sums over
// the values. Returns 1 / l, and 0 of a row that saw nothing.
inline float write_result(const Forward& call, int64_t n, int64_t h, int64_t i, float m, float total, float spread,
                          const float* sums) {
  const int64_t line = (n * call.H + h) * call.T + i;
  const float inverse = total == 0 ? 0.0f : 1 / total;
  Tensor output = call.output;
  write_row(row_at(output, call.type, n, h, i), call.type, output.column, call.E, sums, inverse);
  if (call.lse) call.lse[line] = total == 0 ? -INF : m + std::log(total);
  if (call.rows) call.rows[2 * line] = total == 0 ? 0.0f : m, call.rows[2 * line + 1] = inverse;
  if (call.seen.entropy) call.seen.entropy[line] = total == 0 ? 0.0f : std::max(0.0f, std::log(total) - spread * inverse);
  return inverse;
}

}  // namespace limelight::LIMELIGHT_ISA
