// How fast this machine multiplies and adds: the ceiling that benchmarks hold kernels against.
#pragma once

#include <chrono>

#include "work.h"

namespace limelight::LIMELIGHT_ISA {

// fp32 multiplications and additions per second of `threads` threads, measured over `seconds`: sums in registers alone.
inline double multiply_add_peak(int threads, double seconds) {
  constexpr int SUMS = 10;  // more than latency times width; they and an operand fit the registers of every set
  std::vector<double> rates(static_cast<size_t>(threads), 0.0);
  in_parallel(threads, [&](int part) {
    using Clock = std::chrono::steady_clock;
    vf sum[SUMS]{}, factor = splat(0.999f);
    asm volatile("" : "+m"(factor));
    const auto start = Clock::now();
    double took = 0, rounds = 0;
    while (took < seconds) {
      for (int i = 0; i < 100000; i++) {
#pragma GCC unroll 10
        for (int x = 0; x < SUMS; x++) sum[x] = sum[x] * factor + factor;
      }
      rounds += 100000;
      took = std::chrono::duration<double>(Clock::now() - start).count();
    }
    float kept = 0;
    for (int x = 0; x < SUMS; x++) kept += sum_of(sum[x]);
    asm volatile("" : : "r"(kept));
    rates[static_cast<size_t>(part)] = rounds * SUMS * W * 2 / took;
  });
  double all = 0;
  for (double rate : rates) all += rate;
  return all;
}

}  // namespace limelight::LIMELIGHT_ISA
