// The largest scores of long rows and the log of what their exponentials come to: what a search asks of a vocabulary.
#pragma once

#include <atomic>

#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

// A row's scores with their bias, and -inf up to `room`, a multiple of 2 W.
inline void add_bias(const float* scores, const float* bias, int64_t columns, int64_t room, float* s) {
  if (bias)
    for (int64_t j = 0; j < columns; j++) s[j] = scores[j] + bias[j];
  else
    std::copy(scores, scores + columns, s);
  std::fill(s + columns, s + room, -INF);
}

// False where the row holds NaN or +inf, or less than `top` scores above -inf.
inline bool strongest_of_row(const RowScores& call, int64_t row, int64_t room, float* s, Strongest& strongest) {
  add_bias(call.scores + row * call.stride, call.bias, call.columns, room, s);
  const Highest high = highest(s, 0, room);
  const float m = high.all();
  if (!(m > -INF && m < INF)) return false;

  vf total{}, total_2{};
  for (int64_t j = 0; j < room; j += 2 * W) {
    total += exp(load(s + j) - m);
    total_2 += exp(load(s + j + W) - m);
  }
  const float sum = sum_of(total + total_2);
  if (!(sum < INF)) return false;
  call.lse[row] = m + std::log(sum);

  strongest.clear(1);
  strongest.see(0, s, 0, 0, room, high);
  strongest.copy(0, call.value + row * call.top, call.index + row * call.top);
  return call.value[(row + 1) * call.top - 1] > -INF;
}

inline bool strongest_rows(const RowScores& call) {
  const int64_t links = Strongest::room(call.top), room = (call.columns + 2 * W - 1) / (2 * W) * 2 * W;
  std::atomic<bool> good = true;
  const int parts = static_cast<int>(std::clamp<int64_t>(call.rows, 1, call.threads));
  in_parallel(parts, [&](int part) {
    Scratch scratch(2 * Scratch::room(links) + Scratch::room(room));
    float* values = scratch.take(links);
    Strongest strongest(call.top, values, reinterpret_cast<int32_t*>(scratch.take(links)));
    float* s = scratch.take(room);
    for (int64_t row = part * call.rows / parts; row < (part + 1) * call.rows / parts; row++)
      if (!strongest_of_row(call, row, room, s, strongest)) good = false;
  });
  return good;
}

}  // namespace limelight::LIMELIGHT_ISA
