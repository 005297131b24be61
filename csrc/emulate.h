// The intrinsics of AVX-512 for machines that lack it (`make emulate`): those of SIMDe, and plain code for what that lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace limelight::LIMELIGHT_ISA {

// 1 / x cut off after the 14 bits that the instruction promises.
inline __attribute__((always_inline)) __m512 reciprocal_14(__m512 x) {
  typedef int32_t bits __attribute__((vector_size(64)));
  return (__m512)((bits)(1.0f / x) & ~0x1ff);
}

inline __attribute__((always_inline)) __m256 half_of(__m512 x, int which) {
  __m256 half[2];
  __builtin_memcpy(half, &x, sizeof half);
  return half[which];
}

}  // namespace limelight::LIMELIGHT_ISA

#undef _mm512_rcp14_ps
#define _mm512_rcp14_ps reciprocal_14
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps half_of
