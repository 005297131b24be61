// Additive scores of small blocks: sum_d v_d tanh(q_d + k_d) without a tanh per pair.
//
// With a = e^2q and b = e^2k, tanh(q + k) = 1 - 2 r, r = 1 / (1 + a b). So with w = v / scale, |w| <= 1,
//   score = 2 scale sum_d w_d (1/2 - r_d),   w_d r_d = 1 / x_d,   x_d = a_d / w_d b_d + 1 / w_d,
// and features are summed as one fraction, two or four at a time (1/x + 1/y = (x + y) / (x y)): one multiply-add and a
// share of 12 instructions per feature. Where the products would leave fp32's range (`Form::direct`), or where the
// arguments are so small that 1/2 - r would lose their digits (`Form::small`), the tanh is taken of each pair.
#pragma once

#include <algorithm>

#include "vec.h"

namespace limelight::LIMELIGHT_ISA::additive {

constexpr int64_t KEYS = 64;              // keys of a block
constexpr int64_t ROWS = 32;              // queries of a block, at most
constexpr int64_t PANEL = KEYS * W + 16;  // floats from panel to panel of keys [D / W][KEYS][W]; 16 keep them apart in the cache

enum class Form { quads, pairs, small, direct };

constexpr int64_t vectors(int64_t width) { return (width + W - 1) / W; }

LL_INLINE vf absolute(vf x) { return as_float(as_int(x) & 0x7fffffff); }

// e^2x for |x| <= 43, error about 1e-7 relative: 2 x = n ln 2 + f with n ln 2 in two parts, the first of them exact;
// e^f = 2^g by the polynomial of exp2, |g| <= 1/2.
LL_INLINE vf exp_twice(vf x) {
  const vf magic = splat(12582912.0f + 127.0f);  // 1.5 * 2^23: the sum's low bits are n + 127
  const vf t = x * (2 * LOG2E) + magic;
  const vf n = t - magic;
  const vf g = ((2.0f * x - n * 0.693359375f) + n * 2.12194440e-4f) * LOG2E;
  vf p = splat(1.5403530393381609e-4f);
  p = p * g + 1.3333558146428443e-3f;
  p = p * g + 9.6181291076284770e-3f;
  p = p * g + 5.5504108664821580e-2f;
  p = p * g + 2.4022650695910072e-1f;
  p = p * g + 6.9314718055994531e-1f;
  p = p * g + 1.0f;
  return p * as_float(as_int(t) << 23);
}

// top / bottom to about 2e-7 relative for bottom in [2^-100, 2^124]: with an estimate of 1 / bottom, one Newton step.
LL_INLINE vf quotient(vf top, vf bottom) {
#if defined(LL_AVX512)
  const vf estimate = (vf)_mm512_rcp14_ps((__m512)bottom);
  return top * estimate * (2.0f - bottom * estimate);
#elif defined(LL_AVX2)
  const vf estimate = (vf)_mm256_rcp_ps((__m256)bottom);
  return top * estimate * (2.0f - bottom * estimate);
#else
  return top / bottom;
#endif
}

// tanh, error about 1e-7 relative: an odd rational function of degrees 9 and 8 up to 9, +-1 beyond; NaN stays NaN.
LL_INLINE vf tanh_of(vf x) {
  const vf z = -larger(splat(-9.0f), -larger(splat(-9.0f), x)), y = z * z;
  vf p = splat(1.331889913304828e-08f);
  p = p * y + 2.0583353102863476e-05f;
  p = p * y + 3.494026721958924e-03f;
  p = p * y + 1.337971136346622e-01f;
  p = p * y + 9.999999790352323e-01f;
  vf q = splat(7.761947547566243e-07f);
  q = q * y + 3.283080033611087e-04f;
  q = q * y + 2.5871043427483503e-02f;
  q = q * y + 4.6713026609672353e-01f;
  q = q * y + 1.0f;
  return z == x ? z * p / q : z * (1 / 9.0f);
}

// tanh of |x| <= 3/4: an odd polynomial of degree 11, as accurate.
LL_INLINE vf tanh_of_small(vf x) {
  const vf y = x * x;
  vf p = splat(-4.716280767213919e-03f);
  p = p * y + 1.9582945565461037e-02f;
  p = p * y + -5.334445175119613e-02f;
  p = p * y + 1.332540656445736e-01f;
  p = p * y + -3.333295893600803e-01f;
  p = p * y + 9.999999710302918e-01f;
  return x * p;
}

LL_INLINE v4 folded(vf x) {
#if defined(LL_AVX512)
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
  return (v4)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(LL_AVX2)
  return (v4)_mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
#else
  return x;
#endif
}

// {sum of a's lanes, of b's, of c's, of d's}
LL_INLINE v4 sums_of(const vf x[4]) {
  typedef int32_t i4 __attribute__((vector_size(16)));
  const v4 a = folded(x[0]), b = folded(x[1]), c = folded(x[2]), d = folded(x[3]);
  const v4 ab = __builtin_shuffle(a, b, i4{0, 4, 1, 5}) + __builtin_shuffle(a, b, i4{2, 6, 3, 7});
  const v4 cd = __builtin_shuffle(c, d, i4{0, 4, 1, 5}) + __builtin_shuffle(c, d, i4{2, 6, 3, 7});
  return __builtin_shuffle(ab, cd, i4{0, 1, 4, 5}) + __builtin_shuffle(ab, cd, i4{2, 3, 6, 7});
}

// The value vector of a head, made ready.
struct Vector {
  static constexpr float least = 9.094947e-13f;  // 2^-40: |w| is raised to it, far below the sum's own rounding
  int64_t count = 0;                             // vectors
  float scale = 0;                               // a power of two above all |v|
  float *plain = nullptr, *inverse = nullptr;    // v and 1 / w, [count][W]
  float *half_2 = nullptr, *half_4 = nullptr;    // sum of w / 2 of every two, four vectors
  float* bits_2 = nullptr;                       // sum of log2(2 / |w|) of every two, rounded up

  static int64_t floats(int64_t width) { return 5 * (vectors(width) + 4) * W; }

  void place(int64_t width, float* room) {
    count = vectors(width);
    for (float** part : {&plain, &inverse, &half_2, &half_4, &bits_2}) *part = room, room += (count + 4) * W;
  }

  void prepare(const float* v, int64_t width) {
    std::copy(v, v + width, plain);
    std::fill(plain + width, plain + count * W, 0.0f);
    vf most{};
    for (int64_t m = 0; m < count; m++) most = larger(most, absolute(load(plain + m * W)));
    scale = as_float((as_int(splat(largest_of(most))) & 0x7f800000) + (1 << 23))[0];
    std::fill(half_2, half_2 + (count + 4) * W, 0.0f);
    std::fill(bits_2, bits_2 + (count + 4) * W, 0.0f);
    for (int64_t m = 0; m < count; m++) {
      const vf w = load(plain + m * W) * (1 / scale), size = larger(splat(least), absolute(w));
      const vi sign = as_int(w) & static_cast<int32_t>(0x80000000u);
      const vf inverse_size = 1.0f / size;
      store(inverse + m * W, as_float(as_int(inverse_size) | sign));
      float *half = half_2 + m / 2 * W, *bits = bits_2 + m / 2 * W;
      store(half, load(half) + 0.5f * as_float(as_int(size) | sign));
      store(bits, load(bits) + __builtin_convertvector((as_int(inverse_size) >> 23) - 125, vf));
    }
    for (int64_t m = 0; m < count; m += 4) store(half_4 + m / 4 * W, load(half_2 + m / 2 * W) + load(half_2 + (m / 2 + 1) * W));
  }

  // How to sum where |q_d| <= query_top[d] and |k_d| <= key_top[d]: log2 |x_d| is at most log2(2 / |w|) + 2 log2(e) |q + k|.
  Form form(const float* query_top, const float* key_top) const {
    const vf room = splat(120.0f);  // bits of the product; the sum over it is at most 4 times as large
    vf top{}, most_2{}, most_4{};
    for (int64_t m = 0; m < count; m += 4) {
      vf four{};
      for (int64_t i = m; i < std::min(m + 4, count); i += 2) {
        const vf x = load(query_top + i * W) + load(key_top + i * W);
        vf two = x;
        top = larger(top, x);
        if (i + 1 < count) {
          const vf y = load(query_top + (i + 1) * W) + load(key_top + (i + 1) * W);
          top = larger(top, y);
          two += y;
        }
        two = two * (2 * LOG2E) + load(bits_2 + i / 2 * W);
        most_2 = larger(most_2, two);
        four += two;
      }
      most_4 = larger(most_4, four);
    }
    if (!lanes_above(top, splat(0.75f))) return Form::small;
    if (lanes_above(most_2, room)) return Form::direct;
    return lanes_above(most_4, room) ? Form::pairs : Form::quads;
  }
};

// Numerator and denominator of sum_m 1 / x_m over K vectors, x_m = a_m b_m + inverse_m.
template <int K>
LL_INLINE void fraction(const vf* a, const float* b, const float* inverse, vf& top, vf& bottom) {
  if constexpr (K == 1) {
    top = splat(1.0f);
    bottom = a[0] * load(b) + load(inverse);
  } else if constexpr (K == 2) {
    const vf x = a[0] * load(b) + load(inverse), y = a[1] * load(b + PANEL) + load(inverse + W);
    top = x + y;
    bottom = x * y;
  } else {
    vf top_1, bottom_1, top_2, bottom_2;
    fraction<2>(a, b, inverse, top_1, bottom_1);
    fraction<K - 2>(a + 2, b + 2 * PANEL, inverse + 2 * W, top_2, bottom_2);
    top = top_1 * bottom_2 + top_2 * bottom_1;
    bottom = bottom_1 * bottom_2;
  }
}

// Adds the terms of K vectors of features to the sums of four keys.
template <int K>
LL_INLINE void add_terms(const float* row, const float* keys, const float* inverse, const float* half, vf sum[4]) {
  vf a[K];
#pragma GCC unroll 4
  for (int m = 0; m < K; m++) a[m] = load(row + m * W);
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    vf top, bottom;
    fraction<K>(a, keys + c * W, inverse, top, bottom);
    sum[c] += load(half) - quotient(top, bottom);
  }
}

// Scores of one query and four keys; `row` holds a / w, `keys` the first key's b in its panel.
template <int K>
LL_INLINE v4 factorised_scores(const Vector& vector, const float* row, const float* keys) {
  vf sum[4] = {};
  const float *inverse = vector.inverse, *half = K == 4 ? vector.half_4 : vector.half_2;
  int64_t m = vector.count;
  for (; m >= K; m -= K, row += K * W, keys += K * PANEL, inverse += K * W, half += W)
    add_terms<K>(row, keys, inverse, half, sum);
  if (m == 1) add_terms<1>(row, keys, inverse, half, sum);
  if constexpr (K > 2) {
    if (m == 2) add_terms<2>(row, keys, inverse, half, sum);
    if (m == 3) add_terms<3>(row, keys, inverse, half, sum);
  }
  return sums_of(sum) * (2 * vector.scale);
}

// The same of q and of k themselves, the four keys in rows.
template <Form FORM>
LL_INLINE v4 direct_scores(const Vector& vector, const float* row, const float* const keys[4]) {
  vf sum[4] = {};
  for (int64_t d = 0; d < vector.count * W; d += W) {
    const vf q = load(row + d), v = load(vector.plain + d);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const vf x = q + load(keys[c] + d);
      sum[c] += v * (FORM == Form::small ? tanh_of_small(x) : tanh_of(x));
    }
  }
  return sums_of(sum);
}

}  // namespace limelight::LIMELIGHT_ISA::additive
