// Backward pass of dot scores for few queries, as in the steps of a decoder that is trained: keys and values are read as they
// come, and the gradients of a key and its value are sums over few queries, written at once. dot_backward.h has the formulas.
#pragma once

#include "bias_gradient.h"
#include "few.h"
#include "slope.h"

namespace limelight::LIMELIGHT_ISA {

class DotDecodeBackward {
 public:
  // `bias`: where this part finds the bias's gradient.
  DotDecodeBackward(const Backward& call, int64_t, float* bias)
      : call_(call), bias_(call, bias), rows_(call.H / call.G * call.T), width_(padded(call.D)), scratch_(floats(call, rows_)),
        unchanged_(static_cast<size_t>(rows_), 1.0f) {
    query_ = scratch_.take(rows_ * call.D), grad_output_ = scratch_.take(rows_ * call.E);
    weights_ = scratch_.take(rows_ * STRETCH), slopes_ = scratch_.take(rows_ * STRETCH), cap_slope_ = scratch_.take(STRETCH);
    grad_row_ = scratch_.take(whole_vectors(std::max(call.D, call.E)));
    room_ = scratch_.take(std::max(STRETCH * call.D, AT_ONCE * call.E));
  }

  // Keys [first, last) of key head g. `grad_query` [H / G][T][padded(D)] is added to; `delta` [H / G][T] is read.
  void run(int64_t n, int64_t g, int64_t first, int64_t last, float* grad_query, const float* delta) {
    n_ = n, g_ = g;
    Watch ignored;  // what is not finite is seen in the gradients
    for (int64_t r = 0; r < rows_; r++) {
      const int64_t h = head(r), i = r % call_.T;
      pack_rows(call_.query, call_.type, n, h, i, 1, call_.D, call_.scale, query_ + r * call_.D, room_, ignored);
      pack_rows(call_.grad_output, call_.type, n, h, i, 1, call_.E, 1, grad_output_ + r * call_.E, room_, ignored);
    }
    for (int64_t key = first; key < last; key += STRETCH) meet(key, std::min(key + STRETCH, last), grad_query, delta);
    for (int64_t r = 0; r < rows_; r++)
      for (int64_t x = 0; x < call_.D; x++) watch_.see(grad_query[r * width_ + x]);
  }

  bool clean() const { return watch_.clean(); }

 private:
  static_assert(1 + STRETCH <= BiasGradient::most);

  static int64_t floats(const Backward& call, int64_t rows) {
    return rows * (call.D + call.E + 2 * STRETCH) + STRETCH * (1 + call.D) + AT_ONCE * call.E +
           whole_vectors(std::max(call.D, call.E)) + 7 * 16;
  }

  int64_t head(int64_t r) const { return g_ * (call_.H / call_.G) + r / call_.T; }

  // Keys [key, end), at most a stretch.
  void meet(int64_t key, int64_t end, float* grad_query, const float* delta) {
    const Span all = keys_of_rows(call_, n_, 0, call_.T);
    const int64_t first = std::clamp(all.first, key, end), last = std::clamp(all.last, first, end);
    leave(key, first), leave(last, end);
    if (first == last) return;
    float *s = weights_ + first - key, *g = slopes_ + first - key;
    products_of_few(call_.key, call_.type, n_, g_, first, last, call_.D, query_, rows_, s, STRETCH, room_);
    products_of_few(call_.value, call_.type, n_, g_, first, last, call_.E, grad_output_, rows_, g, STRETCH, room_);
    for (int64_t r = 0; r < rows_; r++) slope_of(r, key, {first, last}, delta[r]);
    mix_few(call_.key, call_.type, n_, g_, first, last, call_.D, g, rows_, unchanged_.data(), grad_query, width_, room_);
    for (int64_t j = first; j < last; j++) {
      mix_rows(g + j - first, query_, call_.D);
      write_row(call_.grad_key, call_.type, n_, g_, j, call_.D, grad_row_, 1);
      mix_rows(s + j - first, grad_output_, call_.E);
      write_row(call_.grad_value, call_.type, n_, g_, j, call_.E, grad_row_, 1);
    }
  }

  // Keys that no query may see.
  void leave(int64_t first, int64_t last) {
    if (first < last) std::fill(grad_row_, grad_row_ + std::max(call_.D, call_.E), 0.0f);
    for (int64_t j = first; j < last; j++) {
      write_row(call_.grad_key, call_.type, n_, g_, j, call_.D, grad_row_, 1);
      write_row(call_.grad_value, call_.type, n_, g_, j, call_.E, grad_row_, 1);
    }
  }

  // Query r and the keys `seen` of the stretch that begins at `key`.
  void slope_of(int64_t r, int64_t key, Span seen, float delta) {
    const int64_t h = head(r), i = r % call_.T, from = (seen.first - key) / W * W, to = whole_vectors(seen.last - key);
    const Span keys = keys_of_row(call_, n_, i);
    float *s = weights_ + r * STRETCH, *g = slopes_ + r * STRETCH;
    slope(call_, n_, h, i, {std::max(keys.first, seen.first), std::min(keys.last, seen.last)}, key, delta, s, g, from, to,
          cap_slope_, nullptr);
    if (bias_) {
      bias_.begin(n_, h, i, 1, key);
      bias_.add(i, g, seen.first - key, seen.last - key);
      bias_.end();
    }
    if (call_.cap > 0) scale_by_cap(g, cap_slope_, from, to);
  }

  // grad_row = sum_r by[r * STRETCH] left_r.
  void mix_rows(const float* by, const float* left, int64_t width) {
    int64_t x = 0;
    for (; x + W <= width; x += W) {
      vf sum = by[0] * load(left + x);
      for (int64_t r = 1; r < rows_; r++) sum += by[r * STRETCH] * load(left + r * width + x);
      watch_.see(sum);
      store(grad_row_ + x, sum);
    }
    for (; x < width; x++) {
      float sum = by[0] * left[x];
      for (int64_t r = 1; r < rows_; r++) sum += by[r * STRETCH] * left[r * width + x];
      watch_.see(sum);
      grad_row_[x] = sum;
    }
  }

  const Backward& call_;
  BiasGradient bias_;
  int64_t rows_, width_;
  Scratch scratch_;
  float *query_, *grad_output_, *weights_, *slopes_, *cap_slope_, *grad_row_, *room_;
  std::vector<float> unchanged_;  // 1 for each row: nothing that was summed up so far is changed
  Watch watch_;
  int64_t n_ = 0, g_ = 0;
};

}  // namespace limelight::LIMELIGHT_ISA
