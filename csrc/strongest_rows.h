// The largest scores of long rows and the log of what their exponentials come to: what a search asks of a vocabulary.
#pragma once

#include <atomic>

#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

// False where the row holds NaN or +inf, or less than `top` scores above -inf.
inline bool strongest_of_row(const RowScores& call, int64_t row, Strongest& strongest) {
  const float* s = call.scores + row * call.stride;
  const int64_t whole = call.columns / W * W, rest = call.columns - whole;
  alignas(64) float last[W];
  std::fill(last, last + W, -INF);
  std::copy(s + whole, s + call.columns, last);

  Highest high = highest(s, 0, whole);
  high.odd = larger(load(last), high.odd);
  const float m = high.all();
  if (!(m > -INF && m < INF)) return false;

  vf total{}, total_2{};
  int64_t j = 0;
  for (; j + 2 * W <= whole; j += 2 * W) {
    total += exp(load(s + j) - m);
    total_2 += exp(load(s + j + W) - m);
  }
  if (j < whole) total += exp(load(s + j) - m);
  if (rest) total_2 += exp(load(last) - m);
  const float sum = sum_of(total + total_2);
  if (!(sum < INF)) return false;
  call.lse[row] = m + std::log(sum);

  strongest.clear(1);
  strongest.see(0, s, 0, 0, whole, high);
  if (rest) strongest.see(0, last, whole, 0, W, high);
  strongest.copy(0, call.value + row * call.top, call.index + row * call.top);
  return call.value[(row + 1) * call.top - 1] > -INF;
}

inline bool strongest_rows(const RowScores& call) {
  const int64_t room = Strongest::room(call.top);
  std::atomic<bool> good = true;
  const int parts = static_cast<int>(std::clamp<int64_t>(call.rows, 1, call.threads));
  in_parallel(parts, [&](int part) {
    Scratch scratch(2 * Scratch::room(room));
    float* scores = scratch.take(room);
    Strongest strongest(call.top, scores, reinterpret_cast<int32_t*>(scratch.take(room)));
    for (int64_t row = part * call.rows / parts; row < (part + 1) * call.rows / parts; row++)
      if (!strongest_of_row(call, row, strongest)) good = false;
  });
  return good;
}

}  // namespace limelight::LIMELIGHT_ISA
