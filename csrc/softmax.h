// The online softmax of a block of rows (Milakov and Gimelshein 2018, arXiv 1805.02867) and what is observed
// on the way. A row's running state is its maximum m, and per lane the sums l = sum p and e = sum p (s - m), p = e^(s - m).
// Scores are not taken in base 2: at 10^4 the roundings of that would show.
#pragma once

#include "product.h"
#include "work.h"

namespace limelight::LIMELIGHT_ISA {

struct RowState {
  float* largest;  // m, [rows]
  float* change;   // e^(m before - m now), [rows]: what the row's sums so far are to be multiplied by
  float* total;    // l, [rows][W]
  float* spread;   // e, [rows][W]; null where no entropy is wanted
  float* away;     // sum p |i + S - T - j|, [rows][W]; null where no distance is wanted

  void clear(int64_t rows) {
    std::fill(largest, largest + rows, -INF);
    for (float* sums : {total, spread, away})
      if (sums) std::fill(sums, sums + rows * W, 0.0f);
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
    // A bias of -inf is a mask: it holds for a score that is inf too.
    const auto add = [](float score, float b) { return b == -INF ? -INF : score + b; };
    if (t.column == 1)
      for (int64_t j = from; j < to; j++) s[j] = add(s[j], bias[j]);
    else
      for (int64_t j = from; j < to; j++) s[j] = add(s[j], bias[j * t.column]);
  }
  if (call.mask.dense.data) {
    const Tensor& t = call.mask.dense;
    const uint8_t* allowed = static_cast<const uint8_t*>(t.data) + n * t.n + h * t.head + i * t.row + key * t.column;
    for (int64_t j = from; j < to; j++) s[j] = allowed[j * t.column] ? s[j] : -INF;
  }
  std::fill(s + first, s + from, -INF);
  std::fill(s + to, s + last, -INF);
}

// The largest scores of 2 W shares of a stretch: every other vector has the same share.
struct Highest {
  vf even, odd;
  LL_INLINE float all() const { return largest_of(larger(even, odd)); }
};

// Ends are multiples of W.
LL_INLINE Highest highest(const float* s, int64_t first, int64_t last) {
  Highest found{splat(-INF), splat(-INF)};
  int64_t j = first;
  for (; j + 2 * W <= last; j += 2 * W) {
    found.even = larger(load(s + j), found.even);
    found.odd = larger(load(s + j + W), found.odd);
  }
  if (j < last) found.even = larger(load(s + j), found.even);
  return found;
}

// How far a maximum lies under a higher one, but no farther than where e^fall is 0: times a sum it has to stay finite.
inline float fall_of(float before, float m) { return std::max(before - m, -1000.0f); }

// p = e^(s - m) of scores s [first, last) of row r, with m and the sums brought up to date. Ends are multiples of W; p may
// be s. `beyond`: how far the key of s[0] lies beyond the query's own place.
template <bool SPREAD, bool AWAY>
LL_INLINE void soften(RowState& state, int64_t r, const Highest& high, const float* s, float* p, int64_t first, int64_t last,
                      int64_t beyond) {
  constexpr float least = -88.2f;  // e^x is 0 from here on, and 0 * x of a forbidden pair too
  const float before = state.largest[r], m = std::max(before, high.all());
  const float change = before == -INF ? 0.0f : exp_scalar(before - m);
  const vf shift = splat(m == -INF ? 0.0f : m);
  vf total{}, total_2{}, spread{}, spread_2{}, away{}, away_2{}, place{};
  if constexpr (AWAY) place = splat(static_cast<float>(beyond + first)) + lanes();
  const auto take = [&](int64_t j, vf& of_total, vf& of_spread, vf& of_away) __attribute__((always_inline)) {
    const vf x = larger(splat(least), load(s + j) - shift);
    const vf one = exp_within(x);
    store(p + j, one);
    of_total += one;
    if constexpr (SPREAD) of_spread += one * x;
    if constexpr (AWAY) of_away += one * size_of_each(place), place += static_cast<float>(W);
  };
  int64_t j = first;
  for (; j + 2 * W <= last; j += 2 * W) {  // two of each sum, so that none waits for another
    take(j, total, spread, away);
    take(j + W, total_2, spread_2, away_2);
  }
  if (j < last) take(j, total, spread, away);
  total += total_2, spread += spread_2, away += away_2;
  const vf sum = load(state.total + r * W);
  if constexpr (SPREAD) {
    const float fall = before == -INF ? 0.0f : fall_of(before, m);
    store(state.spread + r * W, (load(state.spread + r * W) + sum * fall) * change + spread);
  }
  if constexpr (AWAY) store(state.away + r * W, load(state.away + r * W) * change + away);
  store(state.total + r * W, sum * change + total);
  state.largest[r] = m;
  state.change[r] = change;
}

LL_INLINE void soften(RowState& state, int64_t r, const Highest& high, const float* s, float* p, int64_t first, int64_t last,
                      int64_t beyond) {
  if (state.away && state.spread) return soften<true, true>(state, r, high, s, p, first, last, beyond);
  if (state.away) return soften<false, true>(state, r, high, s, p, first, last, beyond);
  if (state.spread) return soften<true, false>(state, r, high, s, p, first, last, beyond);
  soften<false, false>(state, r, high, s, p, first, last, beyond);
}

// The sink of a head: -inf for none.
inline float sink_of(const Call& call, int64_t n, int64_t h) {
  return call.sink ? call.sink[n * call.sink_n + h * call.sink_head] : -INF;
}

// What a row's keys come to: m, sum e^(s - m), sum e^(s - m) (s - m) and sum e^(s - m) |i + S - T - j|.
template <class NUMBER>
struct Sums {
  NUMBER m, total, spread, away;
};
using RowSums = Sums<float>;
using RowsSums = Sums<vf>;  // of W rows

inline RowSums sums_of_row(const RowState& state, int64_t r) {
  return {state.largest[r], sum_of(load(state.total + r * W)), state.spread ? sum_of(load(state.spread + r * W)) : 0.0f,
          state.away ? sum_of(load(state.away + r * W)) : 0.0f};
}

// Of rows r .. r + W - 1; what stands for rows that are not there may be anything.
LL_INLINE RowsSums sums_of_rows(const RowState& state, int64_t r) {
  return {load(state.largest + r), sums_of(state.total + r * W), state.spread ? sums_of(state.spread + r * W) : vf{},
          state.away ? sums_of(state.away + r * W) : vf{}};
}

// What W rows come to once all their keys were met and the head's sink joins them.
struct RowEnds {
  vf m, inverse;  // the largest score and 1 / sum e^(s - m), both with the sink; 0 and 0 of an empty row
  vf by;          // what e^(s - m of the keys alone) is to be multiplied by to become a weight
  vf lse;
  vf entropy;   // of the keys' weights
  vf distance;  // the keys' mean |i + S - T - j|
};

LL_INLINE RowEnds ends_of_rows(const RowsSums& keys, float sink) {
  const vi empty = keys.total == 0.0f;
  RowEnds ends;
  vf fall{}, log_sum;
  if (sink == -INF) {
    ends.m = empty ? vf{} : keys.m;
    ends.inverse = ends.by = empty ? vf{} : 1.0f / keys.total;
    log_sum = log(keys.total);
    ends.lse = empty ? splat(-INF) : keys.m + log_sum;
  } else {
    ends.m = larger(keys.m, splat(sink));
    fall = larger(keys.m - ends.m, splat(-1000.0f));
    const vf change = exp(fall), sum = keys.total * change + exp(sink - ends.m);
    ends.inverse = 1.0f / sum, ends.by = change * ends.inverse;
    log_sum = log(sum);
    ends.lse = ends.m + log_sum;
  }
  const vf entropy = ends.by * (keys.total * (log_sum - fall) - keys.spread);
  ends.entropy = empty ? vf{} : entropy <= 0.0f ? vf{} : entropy;
  ends.distance = empty ? vf{} : keys.away / keys.total;
  return ends;
}

// What the rows of queries i .. i + count - 1 of head h came to goes to where it is wanted; count <= W.
inline void write_ends(const Forward& call, int64_t n, int64_t h, int64_t i, int64_t count, const RowEnds& ends) {
  const int64_t line = (n * call.H + h) * call.T + i;
  const auto write = [=](float* to, vf some) {
    if (to) std::memcpy(to + line, &some, sizeof(float) * static_cast<size_t>(count));
  };
  write(call.lse, ends.lse);
  write(call.seen.entropy, ends.entropy);
  write(call.seen.distance, ends.distance);
  for (int64_t r = 0; call.rows && r < count; r++)
    call.rows[2 * (line + r)] = ends.m[r], call.rows[2 * (line + r) + 1] = ends.inverse[r];
}

// Row i of head h of the output: the sums over the values, times `by`.
inline void write_output(const Forward& call, int64_t n, int64_t h, int64_t i, const float* sums, float by) {
  write_row(call.output, call.type, n, h, i, call.E, sums, by);
  if (!call.exact) return;
  float* to = call.exact + ((n * call.H + h) * call.T + i) * call.E;
  for (int64_t x = 0; x < call.E; x++) to[x] = sums[x] * by;
}

// The strongest links of each row so far: scores and keys, strongest first, of equal ones the lower key first.
class Strongest {
 public:
  Strongest() = default;
  // Room for rows of whole_vectors(k) floats and as many indices each.
  Strongest(int32_t k, float* score, int32_t* index) : k_(k), stride_(whole_vectors(k)), score_(score), index_(index) {}

  explicit operator bool() const { return k_ > 0; }

  void clear(int64_t rows) {
    std::fill(score_, score_ + rows * stride_, -INF);
    std::fill(index_, index_ + rows * stride_, -1);
  }

  // Take in scores s [first, last) of row r, the first being that of key `key` + first; `high` is what `highest` says of
  // them. Ends are multiples of W.
  LL_INLINE void see(int64_t r, const float* s, int64_t key, int64_t first, int64_t last, const Highest& high) {
    float* scores = score_ + r * stride_;
    const float& weakest = scores[k_ - 1];
    if (!(high.all() > weakest)) return;
    if (scores[0] == -INF && begin(scores, index_ + r * stride_, static_cast<int32_t>(key + first), last - first, high)) return;
    bool floored = weakest == -INF;
    vf bound = splat(floored ? below_floor(high) : weakest);
    constexpr int64_t STRETCH = 256;  // places of it are bytes
    uint8_t places[STRETCH + 64];
    for (int64_t j = first; j < last; j += STRETCH) {
      int found = places_above(s + j, std::min(STRETCH, last - j), bound, places);
      if (!found) continue;
      if (found > 2 * k_ + 4 && !floored) {  // more than will stay: keys may grow stronger on and on
        bound = larger(bound, splat(below_floor(high))), floored = true;
        found = places_above(s + j, std::min(STRETCH, last - j), bound, places);
      }
      take(scores, index_ + r * stride_, s + j, static_cast<int32_t>(key + j), places, found);
      bound = larger(bound, splat(weakest));
    }
  }

  // The scores of row r and their keys.
  void copy(int64_t r, float* scores, int64_t* keys) const {
    std::copy(score_ + r * stride_, score_ + r * stride_ + k_, scores);
    std::copy(index_ + r * stride_, index_ + r * stride_ + k_, keys);
  }

  // Line `line` of the answer: those of row r, weighed with the row's m and 1 / l.
  LL_INLINE void write(const Observed& seen, int64_t line, int64_t r, float m, float inverse) const {
    const float* scores = score_ + r * stride_;
    const int32_t* keys = index_ + r * stride_;
    int64_t* index = seen.top_index + line * k_;
    float *weight = seen.top_weight + line * k_, some[W];
    const vf none = splat(inverse != inverse ? inverse : 0.0f);  // of places without a link
    for (int32_t i = 0; i < k_; i++) index[i] = keys[i];
    for (int32_t i = 0; i < k_; i += W) {
      const vf s = load(scores + i), w = exp(s - m) * inverse;
      store(some, s > -INF ? w : none);
      std::memcpy(weight + i, some, sizeof(float) * static_cast<size_t>(std::min(W, k_ - i)));
    }
  }

 private:
  // 2 W scores, and how many of the first `count` of them lie above each.
  struct Ranked {
    vf even, odd;
    vi above_even{}, above_odd{};
    Ranked(vf even, vf odd, int64_t count) : even(even), odd(odd) {
      float each[2 * W];
      store(each, even), store(each + W, odd);
      for (int64_t i = 0; i < count; i++) {
        const vf one = splat(each[i]);
        above_even = count_above(above_even, one, even), above_odd = count_above(above_odd, one, odd);
      }
    }
  };

  // What lies just below the k-th largest of these: no score at or below it is among the k strongest of the stretch. Shares twice as
  // large do where they are many more than k.
  float below_floor(const Highest& high) const {
    if (k_ > 2 * W) return -INF;
    vf among;
    if (2 * k_ <= W) {
      const vf both = larger(high.even, high.odd);
      float each[W];
      store(each, both);
      vi above{};
      for (float one : each) above = count_above(above, splat(one), both);
      among = above < k_ ? both : splat(INF);
    } else {
      const Ranked all(high.even, high.odd, 2 * W);
      among = smaller(all.above_even < k_ ? high.even : splat(INF), all.above_odd < k_ ? high.odd : splat(INF));
    }
    return std::nextafter(-largest_of(-among), -INF);
  }

  // The first scores that a row sees: where there are no more than 2 W, each is told its place by how many lie above it. False, and
  // nothing has changed, where there are more, or where two are equal. `high` is made of all of them.
  bool begin(float* scores, int32_t* keys, int32_t key, int64_t count, const Highest& high) const {
    if (count > 2 * W) return false;
    const Ranked all(high.even, high.odd, count);
    float some[2 * W];
    store(some, high.even), store(some + W, high.odd);
    int32_t rank[2 * W];
    store_whole(rank, all.above_even), store_whole(rank + W, all.above_odd);
    const vf none = splat(-INF), least = splat(static_cast<float>(k_));
    uint64_t found = lanes_above(all.even, none) & lanes_above(least, __builtin_convertvector(all.above_even, vf));
    found |= static_cast<uint64_t>(lanes_above(all.odd, none) & lanes_above(least, __builtin_convertvector(all.above_odd, vf)))
             << W;
    uint64_t taken = 0;
    for (uint64_t left = found; left; left &= left - 1) {
      const int i = __builtin_ctzll(left);
      taken |= uint64_t{1} << rank[i];
      scores[rank[i]] = some[i], keys[rank[i]] = key + i;
    }
    if (__builtin_popcountll(taken) == __builtin_popcountll(found)) return true;
    std::fill(scores, scores + stride_, -INF);
    std::fill(keys, keys + stride_, -1);
    return false;
  }

  // Those of the scores that stand at `found` places, lowest first; score s[0] is that of key `key`.
  LL_INLINE void take(float* scores, int32_t* keys, const float* s, int32_t key, const uint8_t* places, int found) const {
    if (stride_ == W) {  // they stay in registers
      vf held = load(scores);
      vi index = load_whole(keys);
      for (int i = 0; i < found; i++) insert(held, index, s[places[i]], key + places[i], splat(INF), vi{});
      store(scores, held), store_whole(keys, index);
      return;
    }
    for (int i = 0; i < found; i++) {
      vf before = splat(INF);
      vi key_before{};
      for (int64_t x = 0; x < stride_; x += W) {
        vf held = load(scores + x);
        vi index = load_whole(keys + x);
        const vf last = splat(held[W - 1]);
        const vi last_key = vi{} + index[W - 1];
        insert(held, index, s[places[i]], key + places[i], before, key_before);
        store(scores + x, held), store_whole(keys + x, index);
        before = last, key_before = last_key;
      }
    }
  }

  // Each place takes the larger of what it holds and the smaller of s and what the place before held: a score that is not
  // above the weakest changes nothing. `before` is what stands before the first place.
  LL_INLINE static void insert(vf& held, vi& keys, float s, int32_t key, vf before, vi key_before) {
    const vf above = moved_up(held, before);
    const vi key_above = moved_up(keys, key_before);
    keys = held >= s ? keys : above >= s ? vi{} + key : key_above;
    held = larger(smaller(above, splat(s)), held);
  }

  int32_t k_ = 0;
  int64_t stride_ = 0;
  float* score_ = nullptr;
  int32_t* index_ = nullptr;
};

}  // namespace limelight::LIMELIGHT_ISA
