// Forward pass of additive scores: softmax(v . tanh(q + k) + bias) value, with the observations gathered on the way.
//
// A unit of work is a block of queries of one head. Its scores with all the keys that it may see are held, a few rows of S
// numbers; then each row becomes weights, is observed, and the product with the values follows. What is derived from
// the keys and values (e^2k, panels of values) is kept for the next unit of the same head, as far as there is room.
#pragma once

#include <memory>

#include "additive_block.h"
#include "dropout.h"
#include "gathered.h"
#include "softmax.h"

namespace limelight::LIMELIGHT_ISA::additive {

// Sizes that all units of a call share.
struct ForwardPlan {
  static constexpr int64_t held_scores = int64_t{2} << 20;  // floats: 8 MiB
  static constexpr int64_t held_keys = int64_t{1} << 20;    // floats: 4 MiB
  int64_t rows, per_head, units, stride = 0, slots = 1;
  std::vector<int64_t> costs;

  explicit ForwardPlan(const Forward& call) {
    const int64_t most = std::clamp<int64_t>(held_scores / std::max<int64_t>(1, call.S), 4, ROWS);
    int64_t blocks = (call.T + most - 1) / most;
    if (call.N * call.H * blocks < 2 * call.threads)  // few heads: smaller blocks, so that all threads have some
      blocks = std::min(std::max(blocks, (call.T + 3) / 4), 2 * int64_t{call.threads});
    rows = std::max<int64_t>(1, (call.T + blocks - 1) / std::max<int64_t>(1, blocks));
    per_head = (call.T + rows - 1) / rows;
    units = call.N * call.H * per_head;
    costs.reserve(static_cast<size_t>(units));
    for (int64_t unit = 0; unit < units; unit++) {
      const int64_t n = unit / (call.H * per_head), first = unit % per_head * rows;
      const Span keys = keys_of_rows(call, n, first, std::min(call.T, first + rows));
      const int64_t count = std::max<int64_t>(0, keys.last - keys.first);
      stride = std::max(stride, count);
      costs.push_back(16 + count);
    }
    stride += KEYS + 4 + W;
    const int64_t key_blocks = (call.S + KEYS - 1) / KEYS, slot = KeyPanels::floats(call.D) + KEYS * padded(call.E);
    if (per_head * (call.H / call.G) > 1 && key_blocks * slot <= held_keys) slots = std::max<int64_t>(1, key_blocks);
  }
};

class ForwardPass {
 public:
  ForwardPass(const Forward& call, const ForwardPlan& plan)
      : call_(call), plan_(plan), single_(call.T == 1), width_(padded(call.E)), keep_(call.dropout.rate), pool_(call),
        scratch_(floats(call, plan)), slots_(static_cast<size_t>(single_ ? 0 : plan.slots)) {
    queries_.place(plan.rows, call.D, scratch_);
    vector_.place(call.D, scratch_.take(Vector::floats(call.D)));
    room_ = scratch_.take(4 * vectors(std::max(call.D, call.E)) * W);
    scores_ = scratch_.take(plan.rows * plan.stride);
    sum_ = scratch_.take(plan.rows * width_);
    for (Slot& slot : slots_) slot.keys.place(call.D, scratch_), slot.values = scratch_.take(KEYS * width_);
    if (call.dropout.rate > 0) columns_ = reinterpret_cast<uint32_t*>(scratch_.take(call.S + 2 * W));
    if (columns_)
      for (int64_t j = 0; j < call.S + W; j++) columns_[j] = dropout_column(j, call.dropout.seed);
    if (call.seen.top) {
      const int64_t room = whole_vectors(call.seen.top);
      float* scores = scratch_.take(room);
      strongest_ = Strongest(call.seen.top, scores, reinterpret_cast<int32_t*>(scratch_.take(room)));
    }
  }

  // Queries [first, first + rows) of head h; what the keys receive is added to `received` [S], and the cells of `pooled`
  // take their part of the weights.
  void run(int64_t n, int64_t h, int64_t first, int64_t rows, float* received, float* pooled) {
    n_ = n, h_ = h, group_ = h / (call_.H / call_.G), first_ = first, rows_ = rows;
    const int64_t head = call_.vector_head ? h : 0;
    if (head != vector_of_) vector_.prepare(call_.vector + h * call_.vector_head, call_.D);
    vector_of_ = head;
    const Span all = cut_spans(call_, n, first, rows, {0, call_.S}, spans_);
    const int64_t start = all.first / KEYS * KEYS;
    std::fill(sum_, sum_ + rows * width_, 0.0f);
    if (!all.empty()) score(start, all);
    for (int64_t r = 0; r < rows; r++) soften(r, start, all, received, pooled);
    if (!all.empty()) weigh(start, all);
    for (int64_t r = 0; r < rows; r++) write_output(call_, n, h, first + r, sum_ + r * width_, 1.0f);
  }

  bool clean() const { return watch_.clean(); }

 private:
  // What is derived from a block of keys and values, and the names of the blocks that it was derived from.
  struct Slot {
    KeyPanels keys;
    float* values = nullptr;  // panels [E / NR][keys][NR]
    int64_t keys_of = -1, values_of = -1;
  };

  static int64_t floats(const Forward& call, const ForwardPlan& plan) {
    const int64_t width = padded(call.E);
    int64_t n = Queries::floats(plan.rows, call.D) + Vector::floats(call.D) + 4 * vectors(std::max(call.D, call.E)) * W;
    n += plan.rows * (plan.stride + width) + 2 * call.seen.top + 16 * 16;
    if (call.T != 1) n += plan.slots * (KeyPanels::floats(call.D) + KEYS * width + 64);
    return n + (call.dropout.rate > 0 ? call.S + 2 * W : 0);
  }

  // Keys of the block that begins at `key`: what lies behind the batch entry's length is not read.
  int64_t keys_at(int64_t key) const {
    const int64_t end = call_.mask.lengths ? std::min(call_.S, call_.mask.lengths[n_]) : call_.S;
    return std::min(KEYS, end - key);
  }

  int64_t name_of(int64_t key) const { return (n_ * call_.G + group_) * ((call_.S + KEYS - 1) / KEYS) + key / KEYS; }

  const KeyPanels& panels_at(int64_t key) {
    Slot& slot = slots_[static_cast<size_t>(key / KEYS % plan_.slots)];
    if (slot.keys_of != name_of(key)) slot.keys.read<true>(call_, n_, group_, key, keys_at(key), room_);
    slot.keys_of = name_of(key);
    return slot.keys;
  }

  const float* values_at(int64_t key) {
    Slot& slot = slots_[static_cast<size_t>(key / KEYS % plan_.slots)];
    if (slot.values_of != name_of(key))
      pack_panels(call_.value, call_.type, n_, group_, key, keys_at(key), call_.E, slot.values, room_, watch_);
    slot.values_of = name_of(key);
    return slot.values;
  }

  // Scores of the unit's queries and the keys of `all`; column 0 is key `start`.
  void score(int64_t start, Span all) {
    queries_.read(call_, n_, h_, first_, rows_);
    if (single_) {
      const int64_t keys = all.last - all.first;
      return scores_directly<Form::direct>(vector_, queries_, call_, n_, group_, 1, all.first, keys, spans_,
                                           {scores_ + (all.first - start), plan_.stride}, room_);
    }
    queries_.factorise(rows_, vector_.inverse);
    for (int64_t key = start; key < all.last; key += KEYS) {
      const int64_t keys = std::min(KEYS, all.last - key);
      const KeyPanels& panels = panels_at(key);
      const Place to{scores_ + (key - start), plan_.stride};
      all_scores(vector_.form(queries_.top, panels.top), vector_, queries_, panels, call_, n_, group_, rows_, key, keys, spans_,
                 to, room_);
    }
  }

  // Row r of scores becomes weights, 0 beside the row's own keys, and is observed.
  void soften(int64_t r, int64_t start, Span all, float* received, float* pooled) {
    const int64_t row = (n_ * call_.H + h_) * call_.T + first_ + r;
    const Span keys = spans_[r];
    float *all_s = scores_ + r * plan_.stride, *s = all_s + (keys.first - start);
    const int64_t count = keys.last - keys.first;
    add_bias(call_, n_, h_, first_ + r, start, keys, all_s);
    std::fill(s + count, s + count + W, -INF);
    vf high = splat(-INF);
    for (int64_t j = 0; j < count; j += W) high = larger(load(s + j), high);
    const float sink = sink_of(call_, n_, h_), m = std::max(largest_of(high), sink);
    if (call_.seen.top) find_strongest(row, s, keys, m);
    vf total{}, spread{}, away{}, place = splat(static_cast<float>(keys.first - (first_ + r + call_.S - call_.T))) + lanes();
    for (int64_t j = 0; j < count; j += W) {
      const vf x = larger(splat(-127.0f), (load(s + j) - (m == -INF ? 0.0f : m)) * LOG2E), p = exp2(x);
      total += p;
      spread += p * x;
      if (call_.seen.distance) away += p * size_of_each(place), place += static_cast<float>(W);
      store(s + j, p);
    }
    const float of_keys = sum_of(total), sum = of_keys + (sink == -INF ? 0.0f : exp_scalar(sink - m));
    const float inverse = sum == 0 ? 0.0f : 1 / sum;
    watch_.see(sum);
    if (call_.lse) call_.lse[row] = sum == 0 ? -INF : m + std::log(sum);
    if (call_.rows) call_.rows[2 * row] = sum == 0 ? 0.0f : m, call_.rows[2 * row + 1] = inverse;
    if (call_.seen.entropy)
      call_.seen.entropy[row] = of_keys == 0 ? 0.0f : std::max(0.0f, (of_keys * std::log(sum) - LN2 * sum_of(spread)) * inverse);
    if (call_.seen.distance) call_.seen.distance[row] = of_keys == 0 ? 0.0f : sum_of(away) / of_keys;
    if (call_.seen.top)
      for (int32_t k = 0; k < call_.seen.top; k++) call_.seen.top_weight[row * call_.seen.top + k] *= inverse;
    for (int64_t j = 0; j < count; j += W) store(s + j, load(s + j) * inverse);
    gather(first_ + r, s, keys, received, pooled);
    if (columns_) drop(row, s, keys);
    std::fill(all_s + (all.first - start), s, 0.0f);
    std::fill(s + count, std::max(s + count, all_s + (all.last - start)), 0.0f);
  }

  // What is gathered of the weights p of query i.
  void gather(int64_t i, const float* p, Span keys, float* received, float* pooled) const {
    const float by = call_.seen.row_weight ? call_.seen.row_weight[(n_ * call_.H + h_) * call_.T + i] : 1.0f;
    const int64_t count = keys.last - keys.first;
    for (int64_t j = 0; received && j < count; j++) received[keys.first + j] += p[j] * by;
    if (float* chosen = chosen_row(call_, n_, h_, i)) std::copy(p, p + count, chosen + keys.first);
    if (pooled) pool_.pour(p, keys.first, count, pool_.row_of(i), pooled);
  }

  void drop(int64_t row, float* p, Span keys) const {
    const uint32_t bits = dropout_row(row, call_.dropout.seed);
    for (int64_t j = keys.first; j < keys.last; j += W, p += W) store(p, load(p) * keep_.kept(bits, columns_ + j));
  }

  // Indices, and weights times the row's sum.
  void find_strongest(int64_t row, const float* s, Span keys, float m) {
    strongest_.clear(1);
    const int64_t end = vectors(keys.last - keys.first) * W;
    strongest_.see(0, s, keys.first, 0, end, highest(s, 0, end));
    strongest_.write(call_.seen, row, 0, m, 1.0f);
  }

  // sum_ += weights times values.
  void weigh(int64_t start, Span all) {
    if (single_) return weigh_one(scores_ + (all.first - start), all);
    for (int64_t key = start; key < all.last; key += KEYS) {
      const int64_t from = std::max(all.first, key) - key, to = std::min(all.last, key + KEYS) - key;
      const Operand weights{scores_ + (key - start), plan_.stride, 1};
      product<true>(rows_, call_.E, from, to - from, keys_at(key), weights, values_at(key), sum_, width_);
    }
  }

  // One row of weights: the values are read where they lie, four rows at a time.
  void weigh_one(const float* weights, Span all) {
    const int64_t wide = vectors(call_.E) * W;
    for (int64_t j = all.first; j < all.last; j += 4) {
      const float* four[4];
      vf w[4];
      for (int64_t c = 0; c < 4; c++) {
        four[c] = whole_row(call_.value, call_.type, n_, group_, std::min(j + c, all.last - 1), call_.E, room_ + c * wide);
        w[c] = splat(j + c < all.last ? weights[j + c - all.first] : 0.0f);
      }
      for (int64_t e = 0; e < wide; e += W)
        store(sum_ + e, load(sum_ + e) + (w[0] * load(four[0] + e) + w[1] * load(four[1] + e)) +
                            (w[2] * load(four[2] + e) + w[3] * load(four[3] + e)));
    }
    for (int64_t e = 0; e < wide; e += W) watch_.see(load(sum_ + e));
  }

  const Forward& call_;
  const ForwardPlan& plan_;
  const bool single_;  // one query: its keys are not worth deriving anything from
  const int64_t width_;
  const DropoutRule keep_;
  const Pool pool_;
  Scratch scratch_;
  Queries queries_;
  Vector vector_;
  float *room_, *scores_, *sum_;
  uint32_t* columns_ = nullptr;
  std::vector<Slot> slots_;
  Strongest strongest_;
  Span spans_[ROWS];
  Watch watch_;
  int64_t n_ = 0, h_ = 0, group_ = 0, first_ = 0, rows_ = 0, vector_of_ = -1;
};

}  // namespace limelight::LIMELIGHT_ISA::additive

namespace limelight::LIMELIGHT_ISA {

inline bool additive_forward(const Forward& call) {
  const additive::ForwardPlan plan(call);
  if (plan.units == 0) return true;
  const int parts = additive::parts_for(call, plan.units, pairs_of(call) * (0.1 * call.D + 0.03 * call.E));
  const std::vector<int64_t> ends = balanced(plan.costs, parts);
  HeadSums received(call.seen.received, call.S, plan.per_head, ends);
  const Pooled& cells = call.seen.pooled;
  HeadSums pooled(cells.to, cells.rows * cells.columns, plan.per_head, ends, cells.largest);
  std::vector<char> clean(static_cast<size_t>(parts), 1);
  in_parallel(parts, [&](int part) {
    const int64_t begin = ends[static_cast<size_t>(part)], end = ends[static_cast<size_t>(part) + 1];
    if (begin == end) return;
    additive::ForwardPass pass(call, plan);
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t plane = unit / plan.per_head, first = unit % plan.per_head * plan.rows;
      const int64_t rows = std::min(plan.rows, call.T - first);
      pass.run(plane / call.H, plane % call.H, first, rows, received.of(part, plane), pooled.of(part, plane));
    }
    clean[static_cast<size_t>(part)] = pass.clean();
  });
  received.join(), pooled.join();
  return std::all_of(clean.begin(), clean.end(), [](char one) { return one; });
}

}  // namespace limelight::LIMELIGHT_ISA
