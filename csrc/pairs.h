// Numbers that are bf16 as they come, kept as such where the machine multiplies pairs of them, in half the steps (numbers below
// 2^-126 count as 0 there). Products of query and key and of grad o and value are exact then. What is computed on the way, the
// weights and the gradients of scores, is fp32 to all who look at it, and rounded to bf16 to be multiplied with rows, as
// FlashAttention rounds it (Dao et al. 2022, arXiv 2205.14135).
// A pair is 32 bits, two numbers that follow one another in a row, the first in the lower half, moved about as a float; of an
// odd row the last one's upper half is 0.
#pragma once

#include "product.h"

namespace limelight::LIMELIGHT_ISA {

LL_INLINE int64_t pairs_in(int64_t width) { return (width + 1) / 2; }

// Whether a number of at least 2^56, NaN or inf was among those of the pairs that went by: products of smaller ones, up to 2^14
// of them, do not leave fp32's range before they are scaled.
struct PairWatch {
  static constexpr int32_t large = (127 + 56) << 7;
  typedef int32_t i4 __attribute__((vector_size(16)));
  i4 found{};
  LL_INLINE void see(v4 pairs) {
    i4 bits;
    std::memcpy(&bits, &pairs, sizeof bits);
    found |= ((bits & 0x7f80) >= large) | ((bits & 0x7f800000) >= large << 16);
  }
  LL_INLINE void see_4(v4 a, v4 b, v4 c, v4 d) { see(a), see(b), see(c), see(d); }
  LL_INLINE void see(float pair) { see(v4{pair, 0, 0, 0}); }
  LL_INLINE void tell(Watch& watch) const {
    if (found[0] | found[1] | found[2] | found[3]) watch.see(INF);
  }
};

// The pairs of a row of bf16: where they lie if they can be read there, else copied to `room`.
LL_INLINE const float* read_pairs(const Tensor& t, int64_t n, int64_t head, int64_t row, int64_t width, float* room) {
  const char* at = row_at(t, Type::bf16, n, head, row);
  if (t.column == 1) expect<0>(t, Type::bf16, at, width);
  const bool aligned = reinterpret_cast<uintptr_t>(at) % alignof(float) == 0;
  if (t.column == 1 && width % 2 == 0 && aligned) return reinterpret_cast<const float*>(at);
  const uint16_t* p = reinterpret_cast<const uint16_t*>(at);
  uint16_t* to = reinterpret_cast<uint16_t*>(room);
  for (int64_t i = 0; i < width; i++) to[i] = p[i * t.column];
  if (width % 2) to[width] = 0;
  return room;
}

// As `pack_rows`: rows [first, first + count) one after the other, [count][pairs].
inline void pack_pair_rows(const Tensor& t, int64_t n, int64_t head, int64_t first, int64_t count, int64_t width, float* to,
                           float* room, Watch& watch) {
  const int64_t pairs = pairs_in(width);
  PairWatch seen;
  for (int64_t r = 0; r < count; r++) {
    const float* from = read_pairs(t, n, head, first + r, width, room);
    std::memcpy(to + r * pairs, from, static_cast<size_t>(pairs) * sizeof(float));
    int64_t pair = 0;
    for (; pair + 4 <= pairs; pair += 4) seen.see(*(const v4_loose*)(from + pair));
    for (; pair < pairs; pair++) seen.see(from[pair]);
  }
  seen.tell(watch);
}

// As `pack_transposed`: panels [panel of NR rows][pairs][NR]. `room` holds 4 rows.
inline void pack_pairs_transposed(const Tensor& t, int64_t n, int64_t head, int64_t first, int64_t count, int64_t width,
                                  float* to, float* room, Watch& watch) {
  const int64_t pairs = pairs_in(width);
  PairWatch seen;
  const auto read = [&](int64_t r, int i) { return read_pairs(t, n, head, first + r, width, room + i * pairs); };
  transpose_rows(count, pairs, to, read, seen);
  seen.tell(watch);
}

// Rows and what they are multiplied with, in whichever way the call allows: how many steps a product of `width` numbers has,
// the two operands packed, and the product itself, scaled.
class Factors {
 public:
  Factors(bool paired, int64_t width) : paired_(PAIRS && paired), width_(width), steps_(paired_ ? pairs_in(width) : width) {}

  int64_t steps() const { return steps_; }

  // The rows on the left, [count][steps]. Of floats `ignored` may be told: NaN and inf of a row spoil that row alone.
  void pack_left(const Tensor& t, Type type, int64_t n, int64_t head, int64_t first, int64_t count, float scale, float* to,
                 float* room, Watch& watch, Watch& ignored) const {
    if (paired_) pack_pair_rows(t, n, head, first, count, width_, to, room, watch);
    else pack_rows(t, type, n, head, first, count, width_, scale, to, room, ignored);
  }

  // The rows on the right, transposed.
  void pack_right(const Tensor& t, Type type, int64_t n, int64_t head, int64_t first, int64_t count, float* to, float* room,
                  Watch& watch) const {
    if (paired_) pack_pairs_transposed(t, n, head, first, count, width_, to, room, watch);
    else pack_transposed(t, type, n, head, first, count, width_, to, room, watch);
  }

  // C [rows, columns] = scale left right'; floats on the left are scaled already.
  LL_INLINE void multiply(int64_t rows, int64_t columns, const float* left, const float* right, float scale, float* c,
                          int64_t c_row) const {
    const Operand a{left, steps_, 1};
    if constexpr (PAIRS)
      if (paired_) return whole_product(rows, columns, steps_, a, right, c, c_row, ScaledPairs{{}, scale});
    whole_product(rows, columns, steps_, a, right, c, c_row);
  }

 private:
  bool paired_;
  int64_t width_, steps_;
};

// As `pack_panels`, rows two and two: panels [panel][pair of rows][NR]. Beside the last of an odd count stand zeros.
inline void pack_pair_panels(const Tensor& t, int64_t n, int64_t head, int64_t first, int64_t count, int64_t width, float* to,
                             float* room, Watch& watch) {
  typedef uint16_t halves __attribute__((vector_size(2 * W)));
  const int64_t pairs = pairs_in(count);
  const auto row = [&](int64_t r, float* copy) -> const char* {
    const char* at = row_at(t, Type::bf16, n, head, first + r);
    if (t.column == 1) {
      expect<0>(t, Type::bf16, at, width);
      return at;
    }
    for (int64_t i = 0; i < width; i++) std::memcpy(reinterpret_cast<char*>(copy) + 2 * i, at + 2 * i * t.column, 2);
    return reinterpret_cast<const char*>(copy);
  };
  const auto read = [=](const char* from, int64_t column) {  // as the upper halves
    halves some{};
    if (column + W <= width) std::memcpy(&some, from + 2 * column, sizeof some);
    else if (column < width) std::memcpy(&some, from + 2 * column, static_cast<size_t>(2 * (width - column)));
    return __builtin_convertvector(some, vu) << 16;
  };
  Watch seen;
  for (int64_t r = 0; r < count; r += 2) {
    const char *even = row(r, room), *odd = r + 1 < count ? row(r + 1, room + width) : nullptr;
    for (int64_t column = 0; column < width; column += W) {
      const vu lower = read(even, column), upper = odd ? read(odd, column) : vu{};
      seen.see(as_float((vi)lower), as_float((vi)upper));
      store(to + column / NR * NR * pairs + r / 2 * NR + column % NR, as_float((vi)(lower >> 16 | upper)));
    }
  }
  watch.join(seen);
}

// Rows and the weights that they are added up with, in whichever way the call allows. In pairs the weights P are rounded in `room`,
// half as many floats as P has, rows made even.
class Summands {
 public:
  Summands(bool paired, int64_t width) : paired_(PAIRS && paired), width_(width) {}

  void pack(const Tensor& t, Type type, int64_t n, int64_t head, int64_t first, int64_t count, float* to, float* room,
            Watch& watch) const {
    if (paired_) pack_pair_panels(t, n, head, first, count, width_, to, room, watch);
    else pack_panels(t, type, n, head, first, count, width_, to, room, watch);
  }

  // C [rows, width] = before * C + P [rows, from ..] B: `count` of the `stored` rows of B, from an even one on. P's rows, the
  // first number that of B's row 0, lie `stride` apart, an even number; beyond the count they are 0, up to whole vectors.
  LL_INLINE void add(int64_t rows, int64_t from, int64_t count, int64_t stored, const float* p, int64_t stride,
                     const float* packed, float* c, int64_t c_row, const float* before, float* room) const {
    if constexpr (PAIRS)
      if (paired_) {
        for (int64_t r = 0; r < rows; r++)
          for (int64_t j = from; j < from + count; j += 2 * W)
            store(room + (r * stride + j) / 2, pairs_in_order(load(p + r * stride + j), load(p + r * stride + j + W)));
        return product<true>(rows, width_, from / 2, pairs_in(count), pairs_in(stored), {room, stride / 2, 1}, packed, c, c_row,
                             before, Pairs{});
      }
    product<true>(rows, width_, from, count, stored, {p, stride, 1}, packed, c, c_row, before);
  }

  // C [columns, width] += P [rows, columns]' B.
  LL_INLINE void add_across(int64_t rows, int64_t columns, const float* p, int64_t stride, const float* packed, float* c,
                            int64_t c_row, float* room) const {
    if constexpr (PAIRS)
      if (paired_) {
        for (int64_t r = 0; r < rows; r += 2)
          for (int64_t j = 0; j < columns; j += W)
            store(room + r / 2 * stride + j,
                  pairs_of_lanes(load(p + r * stride + j), r + 1 < rows ? load(p + (r + 1) * stride + j) : vf{}));
        const int64_t pairs = pairs_in(rows);
        return product<true>(columns, width_, 0, pairs, pairs, {room, 1, stride}, packed, c, c_row, nullptr, Pairs{});
      }
    product<true>(columns, width_, 0, rows, rows, {p, 1, stride}, packed, c, c_row);
  }

 private:
  bool paired_;
  int64_t width_;
};

}  // namespace limelight::LIMELIGHT_ISA
