// What is gathered of the weights themselves, beside what each row knows of itself (softmax.h): sums of a head that many
// rows join, such as what its keys receive, the pooled matrix, and the rows of chosen queries.
#pragma once

#include <vector>

#include "work.h"

namespace limelight::LIMELIGHT_ISA {

// Numbers of each head that its units sum up, or take the largest of. The part that begins a head does so in place; a part
// that goes on with it has numbers of its own, which join when all are done. Part p has the units [ends[p], ends[p + 1]),
// a head has `per_head` of them.
class HeadSums {
 public:
  // `to` [heads][size], 0 at first; null: nothing is wanted.
  HeadSums(float* to, int64_t size, int64_t per_head, const std::vector<int64_t>& ends, bool largest = false)
      : to_(to), size_(size), per_head_(per_head), ends_(ends), largest_(largest),
        own_(to ? (ends.size() - 1) * static_cast<size_t>(size) : 0) {}

  // Where a part sums up those of a head.
  float* of(int part, int64_t head) {
    if (!to_) return nullptr;
    return head * per_head_ < ends_[static_cast<size_t>(part)] ? own_.data() + part * size_ : to_ + head * size_;
  }

  void join() {
    for (size_t part = 0; to_ && part + 1 < ends_.size(); part++) {
      if (ends_[part] % per_head_ == 0) continue;
      float* sums = to_ + ends_[part] / per_head_ * size_;
      const float* own = own_.data() + static_cast<int64_t>(part) * size_;
      for (int64_t j = 0; j < size_; j++) sums[j] = largest_ ? std::max(sums[j], own[j]) : sums[j] + own[j];
    }
  }

 private:
  float* to_;
  int64_t size_, per_head_;
  const std::vector<int64_t>& ends_;
  bool largest_;
  std::vector<float> own_;
};

// The cells of the pooled matrix: of `count` cells along `size` positions, cell c has [c size / count, (c + 1) size / count).
class Pool {
 public:
  explicit Pool(const Forward& call)
      : queries_(call.T), keys_(call.S), rows_(call.seen.pooled.rows), columns_(call.seen.pooled.columns),
        largest_(call.seen.pooled.largest) {
    if (!call.seen.pooled.to) return;
    for (int64_t c = 0; c <= columns_; c++) edges_.push_back(c * keys_ / columns_);
  }

  explicit operator bool() const { return !edges_.empty(); }
  bool largest() const { return largest_; }
  int64_t size() const { return rows_ * columns_; }

  // The row of cells that holds query i, and the query at which it ends.
  int64_t row_of(int64_t i) const { return ((i + 1) * rows_ - 1) / queries_; }
  int64_t end_of(int64_t row) const { return (row + 1) * queries_ / rows_; }

  // Weights p of keys [key, key + count), or what some queries' come to, join the cells `to` of a head, in that row.
  void pour(const float* p, int64_t key, int64_t count, int64_t row, float* to) const {
    if (count <= 0) return;
    const int64_t first = ((key + 1) * columns_ - 1) / keys_;
    const int64_t* edge = edges_.data() + first;
    float* cell = to + row * columns_ + first;
    for (int64_t j = 0; j < count; cell++) {
      const int64_t end = std::min(count, *++edge - key);
      *cell = largest_ ? std::max(*cell, largest_in(p + j, end - j)) : *cell + sum_in(p + j, end - j);
      j = end;
    }
  }

 private:
  static float sum_in(const float* p, int64_t count) {
    vf wide{};
    float rest = 0;
    int64_t j = 0;
    for (; j + W <= count; j += W) wide += load(p + j);
    for (; j < count; j++) rest += p[j];
    return count < W ? rest : rest + sum_of(wide);
  }
  static float largest_in(const float* p, int64_t count) {
    vf wide{};
    float rest = 0;
    int64_t j = 0;
    for (; j + W <= count; j += W) wide = larger(load(p + j), wide);
    for (; j < count; j++) rest = std::max(rest, p[j]);
    return count < W ? rest : std::max(rest, largest_of(wide));
  }

  int64_t queries_, keys_, rows_, columns_;
  bool largest_;
  std::vector<int64_t> edges_;  // of columns
};

// Where the weights of query i go, the one of key 0; null unless it is chosen.
LL_INLINE float* chosen_row(const Forward& call, int64_t n, int64_t h, int64_t i) {
  const Observed& seen = call.seen;
  if (!seen.chosen_count) return nullptr;
  const int64_t *end = seen.chosen + seen.chosen_count, *at = std::lower_bound(seen.chosen, end, i);
  if (at == end || *at != i) return nullptr;
  return seen.chosen_weight + ((n * call.H + h) * seen.chosen_count + (at - seen.chosen)) * call.S;
}

// Scores become weights: e^(s - m), times `by`; 0 where that is 0, as in an empty row, and NaN where it is NaN.
inline void weigh(float* s, int64_t count, float m, float by) {
  if (!(by > 0)) return std::fill(s, s + count, by);
  int64_t j = 0;
  for (; j + W <= count; j += W) store(s + j, exp(load(s + j) - m) * by);
  for (; j < count; j++) s[j] = exp_scalar(s[j] - m) * by;
}

}  // namespace limelight::LIMELIGHT_ISA
