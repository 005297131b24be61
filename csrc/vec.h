// The small vector type that every kernel is written in: W floats side by side, whatever the instruction set.
// GCC and Clang vector extensions do the arithmetic; the few operations that they lack stand here once per instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// Whose intrinsics stand in for what the vector extensions lack; CMakeLists.txt asks for emulation.
#if defined(LIMELIGHT_EMULATE_avx512) || defined(LIMELIGHT_EMULATE_avx512bf16)
#include "emulate.h"
#define LL_AVX512
#elif defined(LIMELIGHT_EMULATE_neon) || defined(__aarch64__)
#define LL_NEON  // none
#elif defined(__AVX512F__)
#include <immintrin.h>
#define LL_AVX512
#elif defined(__AVX2__)
#include <immintrin.h>
#define LL_AVX2
#elif defined(__SSE2__)
#include <emmintrin.h>
#define LL_SSE2
#endif
#if defined(__F16C__) && !defined(LL_NEON)
#define LL_F16C
#endif
// Emulated AVX-512 without it stays without it, whatever the machine has.
#if defined(LIMELIGHT_EMULATE_avx512bf16) || (defined(LL_AVX512) && defined(__AVX512BF16__) && !defined(LIMELIGHT_EMULATE_avx512))
#define LL_AVX512BF16
#endif
#if defined(LL_AVX512) && defined(__AVX512VBMI2__) && !defined(LIMELIGHT_EMULATE_avx512) && !defined(LIMELIGHT_EMULATE_avx512bf16)
#define LL_AVX512VBMI2
#endif

#define LL_INLINE inline __attribute__((always_inline))

namespace limelight::LIMELIGHT_ISA {

#if defined(LL_AVX512)
constexpr int W = 16;  // floats in a vector
constexpr int NV = 4;  // vectors in a panel: 6 x 4 sums and 4 operands fit 32 registers
#elif defined(LL_AVX2)
constexpr int W = 8;
constexpr int NV = 2;  // 6 x 2 sums, 2 operands and a broadcast fit 16 registers
#elif defined(LL_NEON)
constexpr int W = 4;
constexpr int NV = 4;
#else
constexpr int W = 4;
constexpr int NV = 2;
#endif
constexpr int NR = W * NV;  // columns of a panel
constexpr int MR = 6;       // rows of a register tile

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef float vf_loose __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float v4 __attribute__((vector_size(16)));
typedef float v4_loose __attribute__((vector_size(16), aligned(4), may_alias));

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
constexpr float INF = std::numeric_limits<float>::infinity();

// Numbers, and what fills up the last vector of them.
constexpr int64_t whole_vectors(int64_t numbers) { return (numbers + W - 1) / W * W; }

LL_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_loose*>(p); }
LL_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_loose*>(p) = x; }
LL_INLINE vf splat(float x) { return x - vf{}; }
LL_INLINE vi load_whole(const int32_t* p) {
  vi x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
LL_INLINE void store_whole(int32_t* p, vi x) { std::memcpy(p, &x, sizeof x); }
LL_INLINE vi as_int(vf x) {
  vi y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
LL_INLINE vf as_float(vi x) {
  vf y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// The larger of the two; `b` where either is NaN.
LL_INLINE vf larger(vf a, vf b) {
#if defined(LL_AVX512)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(LL_AVX2)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(LL_SSE2)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

LL_INLINE vf size_of_each(vf x) { return as_float(as_int(x) & 0x7fffffff); }

// 0, 1, ..., W - 1.
LL_INLINE vf lanes() {
  vf x;
  for (int i = 0; i < W; i++) x[i] = static_cast<float>(i);
  return x;
}

// The smaller of the two; `b` where either is NaN.
LL_INLINE vf smaller(vf a, vf b) {
#if defined(LL_AVX512)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(LL_AVX2)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(LL_SSE2)
  return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

// Which lanes of `a` are above those of `b`: bit i is lane i.
LL_INLINE uint32_t lanes_above(vf a, vf b) {
#if defined(LL_AVX512)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(LL_AVX2)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)));
#elif defined(LL_SSE2)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b)));
#else
  const vi above = a > b;
  uint32_t bits = 0;
  for (int i = 0; i < W; i++) bits |= static_cast<uint32_t>(above[i] & 1) << i;
  return bits;
#endif
}

// Where numbers above `bound` stand among `count`, lowest first, and how many there are. `count` is a multiple of W and at
// most 256; `places` has room for 64 more.
LL_INLINE int places_above(const float* s, int64_t count, vf bound, uint8_t* places) {
  int found = 0;
  for (int64_t j = 0; j < count; j += 64) {
    uint64_t above = 0;
    const int64_t here = count - j < 64 ? count - j : 64;
    for (int64_t x = 0; x < here; x += W) above |= static_cast<uint64_t>(lanes_above(load(s + j + x), bound)) << x;
#if defined(LL_AVX512VBMI2)
    // No branch: which numbers lie above, no core foresees.
    typedef uint8_t v64 __attribute__((vector_size(64)));
    v64 place;
    for (int i = 0; i < 64; i++) place[i] = static_cast<uint8_t>(i);
    place += static_cast<uint8_t>(j);
    _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi8(above, (__m512i)place));
    found += __builtin_popcountll(above);
#else
    for (; above; above &= above - 1) places[found++] = static_cast<uint8_t>(j + __builtin_ctzll(above));
#endif
  }
  return found;
}

// One more in each lane where `a` is above `b`.
LL_INLINE vi count_above(vi count, vf a, vf b) {
#if defined(LL_AVX512)
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
  return (vi)_mm512_mask_add_epi32((__m512i)count, above, (__m512i)count, (__m512i)(vi{} + 1));
#else
  return count - (a > b);
#endif
}

// 1 / x to about 1e-7 relative for x in [1, 1e30]: an estimate and Newton steps, or the division.
LL_INLINE vf reciprocal(vf x) {
#if defined(LL_AVX512)
  vf r = (vf)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#elif defined(LL_AVX2)
  vf r = (vf)_mm256_rcp_ps((__m256)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// The lanes in another order: lane i comes from lane i ^ DISTANCE.
template <int DISTANCE>
LL_INLINE vf swapped(vf x) {
  vi from;
  for (int i = 0; i < W; i++) from[i] = i ^ DISTANCE;
#if defined(__clang__)
  vf y;
  for (int i = 0; i < W; i++) y[i] = x[from[i]];
  return y;
#else
  return __builtin_shuffle(x, from);
#endif
}

// The lanes moved up by one: lane 0 is what all lanes of `first` hold, lane i that of x's lane i - 1.
template <class V>
LL_INLINE V moved_up(V x, V first) {
#if defined(LL_AVX2)
  // Sooner done than a permutation across both halves, and each insertion waits for that before it.
  const __m256i low = _mm256_permute2x128_si256((__m256i)first, (__m256i)x, 0x20);  // first's, x's lower half
  return (V)_mm256_alignr_epi8((__m256i)x, low, 12);
#else
  vi from;
  for (int i = 0; i < W; i++) from[i] = i - 1;
  from[0] = W;
#if defined(__clang__)
  V y;
  for (int i = 0; i < W; i++) y[i] = from[i] == W ? first[0] : x[from[i]];
  return y;
#else
  return __builtin_shuffle(x, first, from);
#endif
#endif
}

LL_INLINE float sum_of(vf x) {
  if constexpr (W > 8) x += swapped<8>(x);
  if constexpr (W > 4) x += swapped<4>(x);
  x += swapped<2>(x);
  return x[0] + x[1];
}

// The first DISTANCE of 2 DISTANCE vectors take in the others: of vector i and i + DISTANCE the lanes without the bit DISTANCE
// become sums of the first's, those with it of the second's.
template <int DISTANCE>
LL_INLINE void fold(vf* x) {
  vi second;
  for (int i = 0; i < W; i++) second[i] = i & DISTANCE ? -1 : 0;
  for (int i = 0; i < DISTANCE; i++) {
    const vf a = x[i], b = x[i + DISTANCE];
    x[i] = (second ? b : a) + swapped<DISTANCE>(second ? a : b);
  }
}

// Lane i is the sum of vector i of W, with the roundings of `sum_of`; the vectors are used up.
LL_INLINE vf sums_of(vf* x) {
  if constexpr (W > 8) fold<8>(x);
  if constexpr (W > 4) fold<4>(x);
  fold<2>(x);
  fold<1>(x);
  return x[0];
}

// The same of `rows`, [W][W].
LL_INLINE vf sums_of(const float* rows) {
  vf x[W];
  for (int i = 0; i < W; i++) x[i] = load(rows + i * W);
  return sums_of(x);
}

LL_INLINE float largest_of(vf x) {
  if constexpr (W > 8) x = larger(x, swapped<8>(x));
  if constexpr (W > 4) x = larger(x, swapped<4>(x));
  x = larger(x, swapped<2>(x));
  return x[0] > x[1] ? x[0] : x[1];
}

// 2^x for -127.4 <= x <= 126: error below 2e-7 relative; exactly 0 for x <= -127; NaN stays NaN.
// x = n + f with |f| <= 1/2; 2^f by its minimax polynomial of degree 6, 2^n by its bits.
LL_INLINE vf exp2_within(vf x) {
  const vf magic = splat(12582912.0f + 127.0f);  // 1.5 * 2^23: the sum's low bits are n + 127
  vf t = x + magic;
  vf f = x - (t - magic);
  vf p = splat(1.5353361893281382e-4f);
  p = p * f + 1.3398874422563128e-3f;
  p = p * f + 9.6184373578083460e-3f;
  p = p * f + 5.5503324710993188e-2f;
  p = p * f + 2.4022647913626613e-1f;
  p = p * f + 6.9314720285508336e-1f;
  p = p * f + 1.0f;
  return p * as_float(as_int(t) << 23);
}

// The same for any x <= 126; exactly 0 for -inf.
LL_INLINE vf exp2(vf x) { return exp2_within(larger(splat(-127.0f), x)); }

// e^x for x <= 0, in the same way.
LL_INLINE vf exp(vf x) { return exp2(x * LOG2E); }
LL_INLINE vf exp_within(vf x) { return exp2_within(x * LOG2E); }  // x from -88.2 on

// log x of normal numbers x > 0, error below 2e-7 relative; NaN stays NaN.
// x = 2^n f with f from 1/sqrt(2) to sqrt(2), and log f = 2 artanh t with t = (f - 1) / (f + 1), |t| < 0.172.
LL_INLINE vf log(vf x) {
  const vi n = (vi)((vu)as_int(x) - 0x3f3504f3u) >> 23;
  const vf f = as_float((vi)((vu)as_int(x) - ((vu)n << 23)));
  const vf t = (f - 1.0f) / (f + 1.0f), y = t * t;
  vf p = splat(1.0f / 9);
  p = p * y + 1.0f / 7;
  p = p * y + 1.0f / 5;
  p = p * y + 1.0f / 3;
  const vf twice = t + t, whole = __builtin_convertvector(n, vf);
  const vf sum = whole * 0.693359375f + (twice + (twice * (y * p) + whole * -2.12194440e-4f));  // log 2 in two parts
  return x == x ? sum : x;
}

LL_INLINE float exp2_scalar(float x) { return exp2(splat(x))[0]; }
LL_INLINE float exp_scalar(float x) { return exp(splat(x))[0]; }

// tanh of any x, error at most 1.6e-7 relative: an odd polynomial of degree 13 up to 3/4, and beyond
// 1 - 2 e / (1 + e) with e = e^-2|x|. NaN stays NaN.
LL_INLINE vf tanh(vf x) {
  const vf y = x * x;
  vf p = splat(1.8949109769045823e-3f);
  p = p * y + -7.915867710422233e-3f;
  p = p * y + 2.1607787406271752e-2f;
  p = p * y + -5.393460789944064e-2f;
  p = p * y + 1.333317281380018e-1f;
  p = p * y + -3.3333332082520895e-1f;
  const vf near = x + x * (y * p);
  const vf size = size_of_each(x), e = exp(-2.0f * size), far = 1.0f - 2.0f * e / (1.0f + e);
  const vi small = size <= 0.75f, sign = as_int(x) & static_cast<int32_t>(0x80000000u);
  return as_float((as_int(near) & small) | ((as_int(far) | sign) & ~small));
}

// --- pairs of bf16 ------------------------------------------------------------------------------------------------------

// Whether the machine multiplies pairs of bf16 numbers, the lower and the upper half of each lane.
#if defined(LL_AVX512BF16)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif

// sum + lower(a) lower(b) + upper(a) upper(b) in each lane: exact products, fp32 sums.
LL_INLINE vf add_pairs(vf sum, [[maybe_unused]] vf a, [[maybe_unused]] vf b) {
#if defined(LIMELIGHT_EMULATE_avx512bf16)
  const vf upper =
      as_float(as_int(a) & static_cast<int32_t>(0xffff0000u)) * as_float(as_int(b) & static_cast<int32_t>(0xffff0000u));
  return (sum + upper) + as_float(as_int(a) << 16) * as_float(as_int(b) << 16);
#elif defined(LL_AVX512BF16)
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  return sum;  // where PAIRS is false nobody calls it
#endif
}

// The bf16 numbers nearest to those of two vectors, ties to even, as pairs: lane i has x's lane i in its lower half and y's in its
// upper half.
LL_INLINE vf pairs_of_lanes([[maybe_unused]] vf x, [[maybe_unused]] vf y) {
#if defined(LL_AVX512BF16) && !defined(LIMELIGHT_EMULATE_avx512bf16)
  typedef int16_t v16 __attribute__((vector_size(64)));
  v16 order;
  for (int i = 0; i < 16; i++) order[2 * i] = static_cast<int16_t>(i), order[2 * i + 1] = static_cast<int16_t>(16 + i);
  return (vf)__builtin_shuffle((v16)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x), order);
#elif defined(LIMELIGHT_EMULATE_avx512bf16)
  const auto rounded = [](vf z) {
    const vu bits = (vu)as_int(z);
    const vi nearest = (vi)(bits + 0x7fff + ((bits >> 16) & 1));
    return (vu)(z == z ? nearest : vi{} + 0x7fc00000);
  };
  return as_float((vi)(rounded(x) >> 16 | (rounded(y) & 0xffff0000u)));
#else
  return x;  // where PAIRS is false nobody calls it
#endif
}

// The same of numbers that follow one another, those of x and then those of y.
LL_INLINE vf pairs_in_order([[maybe_unused]] vf x, [[maybe_unused]] vf y) {
#if defined(LL_AVX512BF16) && !defined(LIMELIGHT_EMULATE_avx512bf16)
  return (vf)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
#elif defined(LIMELIGHT_EMULATE_avx512bf16)
  vi even;
  for (int i = 0; i < W; i++) even[i] = 2 * i;
  return pairs_of_lanes(__builtin_shuffle(x, y, even), __builtin_shuffle(x, y, even + 1));
#else
  return x;
#endif
}

// --- storage types -------------------------------------------------------------------------------------------------

LL_INLINE float from_bf16(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

LL_INLINE uint16_t to_bf16(float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

LL_INLINE float from_f16(uint16_t x) {
#if defined(LL_F16C)
  return _cvtsh_ss(x);
#else
  uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, rest = x & 0x7fff;
  if (rest >= 0x7c00) {  // inf and NaN
    uint32_t bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  }
  uint32_t bits = rest << 13;  // scaled by 2^-112: exact for subnormals too
  float y;
  std::memcpy(&y, &bits, 4);
  y *= 5.192296858534828e33f;
  return sign ? -y : y;
#endif
}

LL_INLINE uint16_t to_f16(float x) {
#if defined(LL_F16C)
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (bits < 0x38800000) {                       // subnormal: the float addition rounds
    float y;
    std::memcpy(&y, &bits, 4);
    y += 0.5f;
    std::memcpy(&bits, &y, 4);
    return sign | static_cast<uint16_t>(bits - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
#endif
}

}  // namespace limelight::LIMELIGHT_ISA
