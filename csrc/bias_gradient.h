// The gradient of a bias: that of the final scores, summed over all pairs that share one of its numbers.
//
// Where several parts of the work may meet the same number, each part sums in memory of its own, and these sums are added
// in order. A bias with a number per pair, shared by batch entries or heads, is too large for that: those entries or heads
// are then worked on one after the other (`rounds`).
#pragma once

#include "work.h"

namespace limelight::LIMELIGHT_ISA {

class BiasPlan {
 public:
  int64_t rounds = 1;  // stretches of the N * G key heads that are worked on one after the other

  BiasPlan(const Backward& call, int parts) : call_(call), parts_(parts) {
    const Tensor& to = call.grad_bias;
    if (!to.data) return;
    const bool entries = to.n == 0 && call.N > 1, heads = to.head == 0 && call.G > 1, pairs = to.row > 0 && to.column != 0;
    if (!(entries || heads || !pairs) || parts == 1) return;
    if (pairs && parts * call.bias_size > own_limit) rounds = heads ? call.N * call.G : call.N;
    else own_.resize(static_cast<size_t>(parts * call.bias_size));
  }

  // Where a part finds the number of pair (0, 0) of batch entry 0 and head 0.
  float* origin(int part) {
    if (own_.empty()) return static_cast<float*>(call_.grad_bias.data);
    return own_.data() + part * call_.bias_size + call_.bias_origin;
  }

  void finish() {
    if (own_.empty()) return;
    float* to = static_cast<float*>(call_.grad_bias.data) - call_.bias_origin;
    for (int part = 0; part < parts_; part++)
      for (int64_t i = 0; i < call_.bias_size; i++) to[i] += own_[static_cast<size_t>(part * call_.bias_size + i)];
  }

 private:
  static constexpr int64_t own_limit = int64_t{1} << 22;  // floats of all parts: 16 MiB
  const Backward& call_;
  int parts_;
  std::vector<float> own_;
};

// What one part adds to it: block by block, and row by row in each. Numbers that rows share (one per key: the stride of a
// row is 0; one per distance j - i: it is -1) are summed over the block first.
class BiasGradient {
 public:
  static constexpr int64_t most = 512;  // rows and keys of a block together

  BiasGradient(const Backward& call, float* origin) : to_(call.grad_bias), origin_(origin) {}

  explicit operator bool() const { return to_.data != nullptr; }

  // Rows [row, row + rows) of a head and keys [key, ...) follow.
  void begin(int64_t n, int64_t h, int64_t row, int64_t rows, int64_t key) {
    head_ = origin_ + n * to_.n + h * to_.head;
    row_ = row, rows_ = rows, key_ = key;
    if (to_.row <= 0) std::fill(sums_, sums_ + most, 0.0f);
    used_ = 0;
  }

  // Gradients g [first, last) of the scores of row i.
  void add(int64_t i, const float* g, int64_t first, int64_t last) {
    if (last <= first) return;
    if (to_.row <= 0) {
      const int64_t move = to_.row == 0 ? 0 : rows_ - 1 - (i - row_);
      accumulate(sums_ + move + first, g + first, last - first);
      used_ = std::max(used_, move + last);
    } else if (to_.column == 1) {
      accumulate(head_ + i * to_.row + key_ + first, g + first, last - first);
    } else {
      spread(head_ + i * to_.row + (key_ + first) * to_.column, g + first, last - first);
    }
  }

  void end() {
    if (to_.row > 0) return;
    float* to = head_ + key_ * to_.column - (to_.row == 0 ? 0 : row_ + rows_ - 1);
    spread(to, sums_, used_);
  }

 private:
  // Numbers to where they belong, in memory that may have fewer: all to one is a sum that is made first, of W at a time.
  void spread(float* to, const float* from, int64_t count) const {
    if (to_.column != 0) {
      for (int64_t j = 0; j < count; j++)
        if (from[j] != 0) to[j * to_.column] += from[j];
      return;
    }
    vf sum{};
    float rest = 0;
    int64_t j = 0;
    for (; j + W <= count; j += W) sum += load(from + j);
    for (; j < count; j++) rest += from[j];
    *to += sum_of(sum) + rest;
  }

  static void accumulate(float* to, const float* from, int64_t count) {
    int64_t j = 0;
    for (; j + W <= count; j += W) store(to + j, load(to + j) + load(from + j));
    for (; j < count; j++) to[j] += from[j];
  }

  const Tensor to_;
  float* origin_;
  float* head_ = nullptr;
  int64_t row_ = 0, rows_ = 0, key_ = 0, used_ = 0;
  float sums_[most];
};

}  // namespace limelight::LIMELIGHT_ISA
