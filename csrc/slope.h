// From the scores of a row to their gradients, in the backward passes of dot scores.
#pragma once

#include "dropout.h"
#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

// Scores s of row i become what the values are weighted with, and grad p, g, becomes grad s, before a cap; s[0] is that of key
// `key`. Ends are multiples of W. `cap_slope` and `column_bits` belong to the same keys, where there is a cap or dropout.
inline void slope(const Backward& call, int64_t n, int64_t h, int64_t i, Span keys, int64_t key, float delta, float* s, float* g,
                  int64_t from, int64_t to, float* cap_slope, const uint32_t* column_bits) {
  if (has_extras(call) || keys.first > key + from || keys.last < key + to) {
    finish_scores(call, n, h, i, key, keys, s, from, to, cap_slope);
    // Behind a mask the product with a value may have left fp32's range: 0 times it would be NaN.
    for (int64_t j = from; j < to; j += W) store(g + j, load(s + j) == -INF ? vf{} : load(g + j));
  }
  const int64_t line = (n * call.H + h) * call.T + i;
  const vf shift = splat(call.rows[2 * line]), inverse = splat(call.rows[2 * line + 1]), sum = splat(delta);
  if (call.dropout.rate > 0) {
    const DropoutRule rule(call.dropout.rate);
    const uint32_t bits = dropout_row(line, call.dropout.seed);
    for (int64_t j = from; j < to; j += W) {
      const vf p = exp(load(s + j) - shift) * inverse, kept = rule.kept(bits, column_bits + j);
      store(s + j, p * kept);
      store(g + j, p * (load(g + j) * kept - sum));
    }
  } else {
    for (int64_t j = from; j < to; j += W) {
      const vf p = exp(load(s + j) - shift) * inverse;
      store(s + j, p);
      store(g + j, p * (load(g + j) - sum));
    }
  }
}

// The gradients of capped scores become those of the products.
inline void scale_by_cap(float* g, const float* cap_slope, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; j += W) store(g + j, load(g + j) * load(cap_slope + j));
}

}  // namespace limelight::LIMELIGHT_ISA
