// Dropout from a counter-based generator, the same as in src/limelight/backends/dropout.py, bit for bit: whether a weight
// is dropped depends on its place and the seed alone.
#pragma once

#include <algorithm>

#include "vec.h"

namespace limelight::LIMELIGHT_ISA {

constexpr uint32_t DROPOUT_FIRST = 0x85EBCA6B, DROPOUT_SECOND = 0xC2B2AE35;

template <class Bits>
LL_INLINE Bits dropout_mix(Bits bits) {
  bits = bits * DROPOUT_FIRST;
  bits = bits ^ (bits >> 15);
  bits = bits * DROPOUT_SECOND;
  return bits ^ (bits >> 13);
}

// 32 random bits of a counter.
LL_INLINE uint32_t dropout_fresh(int64_t counter, uint64_t seed) {
  uint32_t bits = dropout_mix(static_cast<uint32_t>(counter) ^ static_cast<uint32_t>(seed));
  bits ^= static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(static_cast<uint64_t>(counter) >> 32);
  return dropout_mix(bits * DROPOUT_FIRST);
}

// Bits of a row, numbered (n * H + h) * T + i, and of a column, key j.
LL_INLINE uint32_t dropout_row(int64_t row, uint64_t seed) { return dropout_fresh(row, seed); }
LL_INLINE uint32_t dropout_column(int64_t j, uint64_t seed) { return dropout_fresh(-1 - j, seed); }

struct DropoutRule {
  uint32_t threshold;
  float over_rate;  // 1 / (1 - rate)

  explicit DropoutRule(double rate)
      : threshold(static_cast<uint32_t>(std::min(std::nearbyint(rate * 4294967296.0), 4294967295.0)) - 0x80000000u),
        over_rate(static_cast<float>(1.0 / (1.0 - rate))) {}

  // What W weights of a row are multiplied by: 1 / (1 - rate), or 0 where dropped.
  LL_INLINE vf kept(uint32_t row, const uint32_t* columns) const {
    vu bits;
    std::memcpy(&bits, columns, sizeof bits);
    const vi mixed = (vi)dropout_mix<vu>(bits ^ row);
    const vi keep = mixed >= static_cast<int32_t>(threshold);
    return as_float(as_int(splat(over_rate)) & keep);
  }
};

}  // namespace limelight::LIMELIGHT_ISA
