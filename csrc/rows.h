// Passes over rows of numbers that stand between the products of training: no product among them.
#pragma once

#include <type_traits>

#include "dropout.h"
#include "work.h"

namespace limelight::LIMELIGHT_ISA {

// The first `count` < W numbers at p, `rest` beyond them.
LL_INLINE vf load_some(const float* p, int64_t count, float rest) {
  vf x = splat(rest);
  std::memcpy(&x, p, static_cast<size_t>(count) * 4);
  return x;
}

// f(j, count) for every stretch of count = W columns from j on, and for the last, shorter one.
template <class F>
LL_INLINE void for_each_vector(int64_t columns, F f) {
  int64_t j = 0;
  for (; j + W <= columns; j += W) f(j, std::integral_constant<int64_t, W>());
  if (j < columns) f(j, columns - j);
}

LL_INLINE vf load_of(const float* p, std::integral_constant<int64_t, W>, float) { return load(p); }
LL_INLINE vf load_of(const float* p, int64_t count, float rest) { return load_some(p, count, rest); }
LL_INLINE void store_of(float* p, std::integral_constant<int64_t, W>, vf x) { store(p, x); }
LL_INLINE void store_of(float* p, int64_t count, vf x) { std::memcpy(p, &x, static_cast<size_t>(count) * 4); }

// One row z of logits without their bias becomes softmax(z + b) - kept [v = y], which is added to `sums`; returns -log of
// the softmax at y. A row stays in a core's cache between its three passes.
inline float cross_entropy_row(const CrossEntropy& call, float* z, int64_t y, float* sums) {
  vf highest = splat(-INF);
  for_each_vector(call.columns, [&](int64_t j, auto count) {
    const vf t = load_of(z + j, count, -INF) + load_of(call.bias + j, count, 0);
    store_of(z + j, count, t);
    highest = larger(highest, t);
  });
  const float m = largest_of(highest), right = z[y];
  vf total{};
  for_each_vector(call.columns, [&](int64_t j, auto count) {
    const vf e = exp(load_of(z + j, count, -INF) - m);
    store_of(z + j, count, e);
    total += e;
  });
  const float sum = sum_of(total), share = 1 / sum;
  for_each_vector(call.columns, [&](int64_t j, auto count) {
    const vf p = load_of(z + j, count, 0) * share;
    store_of(z + j, count, p);
    store_of(sums + j, count, load_of(sums + j, count, 0) + p);
  });
  z[y] -= call.kept;
  sums[y] -= call.kept;
  return (m - right) + std::log(sum);
}

inline void cross_entropy(const CrossEntropy& call) {
  const int parts = static_cast<int>(std::clamp<int64_t>(call.rows * call.columns / (1 << 14), 1, call.threads));
  in_parallel(parts, [&](int part) {
    float* sums = call.sums + part * call.columns;
    for (int64_t row = part * call.rows / parts; row < (part + 1) * call.rows / parts; row++)
      call.likelihood[row] = cross_entropy_row(call, call.logits + row * call.columns, call.target[row], sums);
  });
}

// Numbers in stretches of STRETCH: a stretch is a row of the generator, a place in it a column.
inline void activation_dropout(const ActivationDropout& call) {
  constexpr int64_t STRETCH = 1024;
  const DropoutRule rule(call.rate);
  Scratch scratch(STRETCH);
  uint32_t* columns = reinterpret_cast<uint32_t*>(scratch.take(STRETCH));
  for (int64_t j = 0; j < std::min(STRETCH, (call.count + W - 1) / W * W); j++) columns[j] = dropout_column(j, call.seed);
  const int64_t stretches = (call.count + STRETCH - 1) / STRETCH;
  const int parts = static_cast<int>(std::clamp<int64_t>(stretches / 8, 1, call.threads));
  in_parallel(parts, [&](int part) {
    for (int64_t i = part * stretches / parts; i < (part + 1) * stretches / parts; i++) {
      const uint32_t row = dropout_row(i, call.seed);
      const float* from = call.from + i * STRETCH;
      float* to = call.to + i * STRETCH;
      for_each_vector(std::min(STRETCH, call.count - i * STRETCH), [&](int64_t j, auto count) {
        store_of(to + j, count, load_of(from + j, count, 0) * rule.kept(row, columns + j));
      });
    }
  });
}

}  // namespace limelight::LIMELIGHT_ISA
