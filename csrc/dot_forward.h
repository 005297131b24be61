// Forward pass of dot scores: softmax(scale q k' + bias) v, block by block, with the observations gathered on the way.
//
// A unit of work is a block of queries of one head. It walks over the keys it may see in blocks: keys are packed
// transposed and values in panels, once for all the unit's queries; then, a few queries at a time, scores, their
// softmax and the sum over values stay in the first cache.
#pragma once

#include "dropout.h"
#include "product.h"
#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

constexpr int64_t KEYS = NR * (W == 16 ? 4 : 8);  // keys of a block
constexpr int64_t GROUP = 4 * MR;                 // queries whose scores are held at a time
constexpr int64_t ROWS = 8 * GROUP;               // queries of a unit, at most
constexpr int64_t STORE = int64_t{4} << 20;       // floats of weights that a unit may hold for `received`: 16 MiB

// Queries per unit: even parts of T, whole groups, and fewer where weights of all keys are held for `received`.
inline int64_t rows_per_unit(const Forward& call) {
  int64_t most = ROWS;
  if (call.seen.received) most = std::clamp(STORE / std::max<int64_t>(1, call.S) / GROUP * GROUP, 2 * GROUP, ROWS);
  const int64_t units = std::max<int64_t>(1, (call.T + most - 1) / most);
  return std::max<int64_t>(1, ((call.T + units - 1) / units + MR - 1) / MR * MR);
}

class DotForward {
 public:
  DotForward(const Forward& call, int64_t rows)
      : call_(call), rows_(rows), width_(padded(call.E)), blocks_((call.S + KEYS - 1) / KEYS + 1),
        scratch_(floats(call, rows)) {
    query_ = scratch_.take(rows * call.D);
    sum_ = scratch_.take(rows * width_);
    key_ = scratch_.take(KEYS * call.D);
    value_ = scratch_.take(KEYS * width_);
    room_ = scratch_.take(4 * std::max(call.D, call.E));
    state_ = {scratch_.take(rows), scratch_.take(rows), scratch_.take(rows * W),
              call.seen.entropy ? scratch_.take(rows * W) : nullptr};
    weights_ = scratch_.take((call.seen.received ? blocks_ * rows : GROUP) * KEYS);
    if (call.seen.received) largest_ = scratch_.take(blocks_ * rows);
    if (call.seen.top)
      strongest_ = {call.seen.top, scratch_.take(rows * call.seen.top),
                    reinterpret_cast<int32_t*>(scratch_.take(rows * call.seen.top))};
    if (call.dropout.rate > 0) {
      dropped_ = scratch_.take(GROUP * KEYS);
      column_bits_ = reinterpret_cast<uint32_t*>(scratch_.take(KEYS));
    }
    spans_.resize(static_cast<size_t>(rows));
    if (call.seen.received) used_.resize(static_cast<size_t>(blocks_ * (rows / GROUP + 1)));
  }

  // Queries [first, first + rows) of head h; what the keys receive is added to `received` [S].
  void run(int64_t n, int64_t h, int64_t first, int64_t rows, float* received) {
    n_ = n, h_ = h, first_ = first, count_ = rows;
    Watch ignored;  // a query that is not finite spoils its own row alone, as it should
    pack_rows(call_.query, call_.type, n, h, first, rows, call_.D, call_.scale, query_, room_, ignored);
    std::fill(sum_, sum_ + rows * width_, 0.0f);
    state_.clear(rows);
    if (strongest_.k) strongest_.clear(rows);
    for (int64_t r = 0; r < rows; r++) spans_[static_cast<size_t>(r)] = keys_of_row(call_, n, first + r);
    const Span all = keys_of_rows(call_, n, first, first + rows);
    int64_t block = 0;
    for (int64_t key = all.first; key < all.last; key += KEYS, block++) walk(block, key, std::min(KEYS, all.last - key));
    finish();
    if (received) sweep(all, block, received);
  }

  bool clean() const { return watch_.clean(); }

 private:
  static int64_t floats(const Forward& call, int64_t rows) {
    const int64_t width = padded(call.E), blocks = (call.S + KEYS - 1) / KEYS + 1;
    int64_t n = rows * (call.D + width + 2 + 2 * W + 2 * call.seen.top) + KEYS * (call.D + width + 1);
    n += 4 * std::max(call.D, call.E) + (call.seen.received ? blocks * rows * (KEYS + 1) : GROUP * KEYS);
    return n + GROUP * KEYS + 16 * 16;
  }

  // One block of keys for all queries of the unit.
  void walk(int64_t block, int64_t key, int64_t count) {
    const int64_t group_head = h_ / (call_.H / call_.G);
    pack_transposed(call_.key, call_.type, n_, group_head, key, count, call_.D, key_, room_, watch_);
    pack_panels(call_.value, call_.type, n_, group_head, key, count, call_.E, value_, room_, watch_);
    if (column_bits_)
      for (int64_t j = 0; j < KEYS; j++) column_bits_[j] = dropout_column(key + j, call_.dropout.seed);
    for (int64_t r = 0; r < count_; r += GROUP) {
      const int64_t rows = std::min(GROUP, count_ - r);
      Span span = keys_of_rows(call_, n_, first_ + r, first_ + r + rows);
      span = {std::max(span.first, key) - key, std::min(span.last, key + count) - key};
      if (call_.seen.received) used_[static_cast<size_t>(block * (count_ / GROUP + 1) + r / GROUP)] = span;
      if (!span.empty()) meet(block, key, count, r, rows, span);
    }
  }

  // Queries [r, r + rows) of the unit and the keys of `span` in the block.
  void meet(int64_t block, int64_t key, int64_t count, int64_t r, int64_t rows, Span span) {
    const int64_t from = span.first / NR * NR, to = (span.last + W - 1) / W * W;
    float* s = weights_ + (call_.seen.received ? (block * rows_ + r) * KEYS : 0);
    product<false>(rows, to - from, 0, call_.D, call_.D, {query_ + r * call_.D, call_.D, 1}, key_ + from * call_.D, s + from,
                   KEYS);
    const bool extra = has_extras(call_);
    for (int64_t i = 0; i < rows; i++) {
      float* row = s + i * KEYS;
      const Span keys = spans_[static_cast<size_t>(r + i)];
      if (extra || keys.first > key + from || keys.last < key + to)
        finish_scores(call_, n_, h_, first_ + r + i, key, keys, row, from, to);
      if (strongest_.k) strongest_.see(r + i, row, key, from, to);
      if (state_.spread) soften<true>(state_, r + i, row, from, to);
      else soften<false>(state_, r + i, row, from, to);
      if (largest_) largest_[block * rows_ + r + i] = state_.largest[r + i];
    }
    const float* p = s;
    if (dropped_) p = drop(s, r, rows, from, to);
    product<true>(rows, call_.E, from, std::min(to, count) - from, count, {p, KEYS, 1}, value_, sum_ + r * width_, width_,
                  state_.change + r);
  }

  const float* drop(const float* s, int64_t r, int64_t rows, int64_t from, int64_t to) {
    const DropoutRule rule(call_.dropout.rate);
    for (int64_t i = 0; i < rows; i++) {
      const uint32_t bits = dropout_row((n_ * call_.H + h_) * call_.T + first_ + r + i, call_.dropout.seed);
      for (int64_t j = from; j < to; j += W)
        store(dropped_ + i * KEYS + j, load(s + i * KEYS + j) * rule.kept(bits, column_bits_ + j));
    }
    return dropped_;
  }

  void finish() {
    const float sink = sink_of(call_, n_, h_);
    for (int64_t r = 0; r < count_; r++) {
      const float m = state_.largest[r], spread = state_.spread ? sum_of(load(state_.spread + r * W)) : 0.0f;
      const RowEnd end = end_of_row(m, sum_of(load(state_.total + r * W)), spread, sink);
      const int64_t row = (n_ * call_.H + h_) * call_.T + first_ + r;
      Tensor output = call_.output;
      write_row(row_at(output, call_.type, n_, h_, first_ + r), call_.type, output.column, call_.E, sum_ + r * width_, end.by);
      if (call_.lse) call_.lse[row] = end.lse;
      if (call_.rows) call_.rows[2 * row] = end.m, call_.rows[2 * row + 1] = end.inverse;
      if (state_.spread) call_.seen.entropy[row] = end.entropy;
      for (int32_t k = 0; k < strongest_.k; k++) {
        const float score = strongest_.score[r * strongest_.k + k];
        call_.seen.top_index[row * strongest_.k + k] = strongest_.index[r * strongest_.k + k];
        call_.seen.top_weight[row * strongest_.k + k] = score == -INF ? 0.0f : exp_scalar(score - m) * end.by;
      }
      state_.change[r] = end.by;
    }
  }

  // received[j] += sum_i weight_i p_ij e^(m_i then - m_i) / l_i, from the weights that were kept.
  void sweep(Span all, int64_t blocks, float* received) {
    float sums[KEYS], factor[GROUP];
    const float* by = call_.seen.row_weight;
    for (int64_t block = 0; block < blocks; block++) {
      std::fill(sums, sums + KEYS, 0.0f);
      for (int64_t r = 0; r < count_; r += GROUP) {
        const Span span = used_[static_cast<size_t>(block * (count_ / GROUP + 1) + r / GROUP)];
        if (span.empty()) continue;
        const int64_t rows = std::min(GROUP, count_ - r);
        for (int64_t i = 0; i < GROUP; i++) {
          const float inverse = i < rows ? state_.change[r + i] : 0.0f;
          factor[i] = inverse == 0 ? 0.0f : exp_scalar(largest_[block * rows_ + r + i] - state_.largest[r + i]) * inverse;
          if (by && i < rows) factor[i] *= by[(n_ * call_.H + h_) * call_.T + first_ + r + i];
        }
        add_rows(weights_ + (block * rows_ + r) * KEYS, rows, factor, sums, span);
      }
      const int64_t key = all.first + block * KEYS, count = std::min(KEYS, all.last - key);
      for (int64_t j = 0; j < count; j++) received[key + j] += sums[j];
    }
  }

  static void add_rows(const float* p, int64_t rows, const float* factor, float* sums, Span span) {
    const int64_t from = span.first / NR * NR, to = (span.last + W - 1) / W * W;
    for (int64_t i = 0; i < rows; i += 4) {
      const int64_t a = std::min(i + 1, rows - 1), b = std::min(i + 2, rows - 1), c = std::min(i + 3, rows - 1);
      const vf f0 = splat(factor[i]), f1 = splat(i + 1 < rows ? factor[i + 1] : 0.0f);
      const vf f2 = splat(i + 2 < rows ? factor[i + 2] : 0.0f), f3 = splat(i + 3 < rows ? factor[i + 3] : 0.0f);
      for (int64_t j = from; j < to; j += W)
        store(sums + j, load(sums + j) + f0 * load(p + i * KEYS + j) + f1 * load(p + a * KEYS + j) +
                            (f2 * load(p + b * KEYS + j) + f3 * load(p + c * KEYS + j)));
    }
  }

  const Forward& call_;
  int64_t rows_, width_, blocks_;
  Scratch scratch_;
  float *query_, *sum_, *key_, *value_, *room_, *weights_, *largest_ = nullptr, *dropped_ = nullptr;
  uint32_t* column_bits_ = nullptr;
  RowState state_;
  Strongest strongest_;
  std::vector<Span> spans_, used_;
  Watch watch_;
  int64_t n_ = 0, h_ = 0, first_ = 0, count_ = 0;
};

inline bool dot_forward(const Forward& call) {
  const int64_t rows = rows_per_unit(call), per_head = (call.T + rows - 1) / rows, units = call.N * call.H * per_head;
  if (units == 0) return true;
  std::vector<int64_t> costs(static_cast<size_t>(units));
  for (int64_t unit = 0; unit < units; unit++) {
    const int64_t n = unit / (call.H * per_head), first = unit % per_head * rows;
    const Span keys = keys_of_rows(call, n, first, std::min(call.T, first + rows));
    costs[static_cast<size_t>(unit)] = 16 + std::max<int64_t>(0, keys.last - keys.first);
  }
  const int64_t work = call.N * call.H * call.T * call.S * (call.D + call.E);
  const int parts = static_cast<int>(std::min<int64_t>({call.threads, units, 1 + work / 200000}));
  const std::vector<int64_t> ends = balanced(costs, parts);
  // What a head's keys receive is summed by the part that begins the head; parts that go on with it have sums of their own.
  std::vector<float> shared(call.seen.received ? static_cast<size_t>(parts) * call.S : 0);
  std::vector<char> clean(static_cast<size_t>(parts), 1);
  in_parallel(parts, [&](int part) {
    const int64_t begin = ends[static_cast<size_t>(part)], end = ends[static_cast<size_t>(part) + 1];
    if (begin == end) return;
    DotForward pass(call, rows);
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t plane = unit / per_head, first = unit % per_head * rows;
      float* received = nullptr;
      if (call.seen.received)
        received = plane * per_head < begin ? shared.data() + part * call.S : call.seen.received + plane * call.S;
      pass.run(plane / call.H, plane % call.H, first, std::min(rows, call.T - first), received);
    }
    clean[static_cast<size_t>(part)] = pass.clean();
  });
  if (call.seen.received)
    for (int part = 0; part < parts; part++) {
      const int64_t begin = ends[static_cast<size_t>(part)];
      if (begin >= units || begin % per_head == 0) continue;
      float* received = call.seen.received + begin / per_head * call.S;
      for (int64_t j = 0; j < call.S; j++) received[j] += shared[static_cast<size_t>(part) * call.S + j];
    }
  return std::all_of(clean.begin(), clean.end(), [](char one) { return one; });
}

}  // namespace limelight::LIMELIGHT_ISA
