// Products of small blocks. Operand B lies in panels of NR columns, [panel][k][NR], so that a register tile of up to
// MR rows and NR columns streams it once; operand A is read one number at a time with any strides.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace limelight::LIMELIGHT_ISA {

constexpr int64_t panels(int64_t columns) { return (columns + NR - 1) / NR; }
constexpr int64_t padded(int64_t columns) { return panels(columns) * NR; }

// How a product spreads a number on the left, what it does at each step of its inner axis, and with the sum. `longest`:
// steps of one sum; a longer one errs more.
struct Floats {
  static constexpr int64_t longest = 256;
  LL_INLINE static vf all(float x) { return splat(x); }
  LL_INLINE vf step(vf sum, vf a, vf b) const { return sum + a * b; }
  LL_INLINE vf end(vf sum) const { return sum; }
};

// The numbers are pairs of bf16 (pairs.h).
struct Pairs {
  static constexpr int64_t longest = 128;
  LL_INLINE static vf all(float pair) {  // as bits: arithmetic might change what is no number
    int32_t bits;
    std::memcpy(&bits, &pair, sizeof bits);
    return as_float(vi{} + bits);
  }
  LL_INLINE vf step(vf sum, vf a, vf b) const { return add_pairs(sum, a, b); }
  LL_INLINE vf end(vf sum) const { return sum; }
};

// The same, and the sum is multiplied by a scale.
struct ScaledPairs : Pairs {
  float scale;
  LL_INLINE vf end(vf sum) const { return sum * scale; }
};

// C[m, :] = before[m] * C[m, :] + sum_k A[m, k] B[k, :]; before is 1 where it is null; without ADD, C is only written. The
// sum begins at 0 and joins C at the end: over many blocks that errs less than one long sum.
template <int ROWS, int VECS, bool ADD, class KIND>
LL_INLINE void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k, float* c,
                    int64_t c_row, const float* before, KIND kind) {
  vf sum[ROWS][VECS] = {};
  const auto step = [&](const float* left, const float* right) __attribute__((always_inline)) {
    vf column[VECS];
#pragma GCC unroll 4
    for (int v = 0; v < VECS; v++) column[v] = load(right + v * W);
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; m++) {
      const vf one = KIND::all(left[m * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < VECS; v++) sum[m][v] = kind.step(sum[m][v], one, column[v]);
    }
  };
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    step(a, b);
    step(a + a_k, b + b_k);
    a += 2 * a_k, b += 2 * b_k;
  }
  if (k < depth) step(a, b);
#pragma GCC unroll 6
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; v++) {
      float* to = c + m * c_row + v * W;
      const vf all = kind.end(sum[m][v]);
      store(to, !ADD ? all : before ? load(to) * before[m] + all : load(to) + all);
    }
}

template <int VECS, bool ADD, class KIND>
LL_INLINE void tile_rows(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                         float* c, int64_t c_row, const float* before, KIND kind) {
  switch (rows) {
    case 6: return tile<6, VECS, ADD>(depth, a, a_row, a_k, b, b_k, c, c_row, before, kind);
    case 5: return tile<5, VECS, ADD>(depth, a, a_row, a_k, b, b_k, c, c_row, before, kind);
    case 4: return tile<4, VECS, ADD>(depth, a, a_row, a_k, b, b_k, c, c_row, before, kind);
    case 3: return tile<3, VECS, ADD>(depth, a, a_row, a_k, b, b_k, c, c_row, before, kind);
    case 2: return tile<2, VECS, ADD>(depth, a, a_row, a_k, b, b_k, c, c_row, before, kind);
    default: return tile<1, VECS, ADD>(depth, a, a_row, a_k, b, b_k, c, c_row, before, kind);
  }
}

struct Operand {
  const float* data;
  int64_t row, k;  // strides
};

// C [rows, VECS vectors]: tiles of MR rows and what is left, or of less where that makes them even. Rows of B lie `b_k` apart.
template <int VECS, bool ADD, class KIND>
LL_INLINE void panel(int64_t rows, int64_t depth, Operand a, const float* b, int64_t b_k, float* c, int64_t c_row,
                     const float* before, KIND kind) {
  const int64_t tiles = (rows + MR - 1) / MR, even = (rows + tiles - 1) / std::max<int64_t>(1, tiles);
  int64_t m = 0;
  if (even == MR)
    for (; m + MR <= rows; m += MR)
      tile<MR, VECS, ADD>(depth, a.data + m * a.row, a.row, a.k, b, b_k, c + m * c_row, c_row, before ? before + m : nullptr,
                          kind);
  for (; m < rows; m += even)
    tile_rows<VECS, ADD>(std::min(even, rows - m), depth, a.data + m * a.row, a.row, a.k, b, b_k, c + m * c_row, c_row,
                         before ? before + m : nullptr, kind);
}

// C [rows, columns] = (before * C +) A [rows, depth] B [depth, columns]. `first` and `depth` choose a part of the inner
// axis of panels that hold `stored` of it. C's rows have room for whole vectors.
template <bool ADD, class KIND = Floats>
inline void product(int64_t rows, int64_t columns, int64_t first, int64_t depth, int64_t stored, Operand a, const float* b,
                    float* c, int64_t c_row, const float* before = nullptr, KIND kind = {}) {
  a.data += first * a.k;
  for (int64_t column = 0; column < columns; column += NR) {
    const float* from = b + column * stored + first * NR;
    const int64_t vectors = columns - column >= NR ? NV : (columns - column + W - 1) / W;
    switch (vectors) {
      case 1: panel<1, ADD>(rows, depth, a, from, NR, c + column, c_row, before, kind); break;
      case 2: panel<2, ADD>(rows, depth, a, from, NR, c + column, c_row, before, kind); break;
      case 3:
        if constexpr (NV > 2) panel<3, ADD>(rows, depth, a, from, NR, c + column, c_row, before, kind);
        break;
      default:
        if constexpr (NV > 3) panel<4, ADD>(rows, depth, a, from, NR, c + column, c_row, before, kind);
    }
  }
}

// C [rows, columns] = A [rows, depth] B [depth, columns], in sums of even parts of the depth that are not too long.
template <class KIND = Floats>
inline void whole_product(int64_t rows, int64_t columns, int64_t depth, Operand a, const float* b, float* c, int64_t c_row,
                          KIND kind = {}) {
  const int64_t parts = (depth + KIND::longest - 1) / KIND::longest, part = (depth + parts - 1) / std::max<int64_t>(1, parts);
  product<false>(rows, columns, 0, std::min(part, depth), depth, a, b, c, c_row, nullptr, kind);
  for (int64_t first = part; first < depth; first += part)
    product<true>(rows, columns, first, std::min(part, depth - first), depth, a, b, c, c_row, nullptr, kind);
}

// --- rows of tensors -------------------------------------------------------------------------------------------------

LL_INLINE int64_t size_of(Type type) { return type == Type::f32 ? 4 : 2; }

LL_INLINE char* row_at(const Tensor& t, Type type, int64_t n, int64_t head, int64_t row) {
  return static_cast<char*>(t.data) + size_of(type) * (n * t.n + head * t.head + row * t.row);
}

// Ask for the row that will be read, or written, soon after this one. Rows of one head lie far apart where heads lie side
// by side, [N, T, H, D], and no core's prefetcher follows them: waiting for memory was a quarter of small calls.
template <int WRITE>
LL_INLINE void expect(const Tensor& t, Type type, const char* row, int64_t width) {
  constexpr int64_t AHEAD = 12;  // rows
  const char* at = row + size_of(type) * AHEAD * t.row;
  for (int64_t i = 0; i < width * size_of(type); i += 64) __builtin_prefetch(at + i, WRITE);
}

// A row of `width` numbers as floats: where it lies if it can be read there, else copied to `room`.
LL_INLINE const float* read_row(const Tensor& t, Type type, int64_t n, int64_t head, int64_t row, int64_t width, float* room) {
  const char* at = row_at(t, type, n, head, row);
  if (t.column == 1) expect<0>(t, type, at, width);
  if (type == Type::f32) {
    const float* p = reinterpret_cast<const float*>(at);
    if (t.column == 1) return p;
    for (int64_t i = 0; i < width; i++) room[i] = p[i * t.column];
    return room;
  }
  const uint16_t* p = reinterpret_cast<const uint16_t*>(at);
  if (type == Type::bf16)
    for (int64_t i = 0; i < width; i++) room[i] = from_bf16(p[i * t.column]);
  else
    for (int64_t i = 0; i < width; i++) room[i] = from_f16(p[i * t.column]);
  return room;
}

// Write `width` floats, times `factor`, to a row.
LL_INLINE void write_row(const Tensor& t, Type type, int64_t n, int64_t head, int64_t row, int64_t width, const float* from,
                         float factor) {
  char* at = row_at(t, type, n, head, row);
  if (t.column == 1) expect<1>(t, type, at, width);
  if (type == Type::f32) {
    float* p = reinterpret_cast<float*>(at);
    int64_t i = 0;
    if (t.column == 1)
      for (; i + W <= width; i += W) store(p + i, load(from + i) * factor);
    for (; i < width; i++) p[i * t.column] = from[i] * factor;
    return;
  }
  uint16_t* p = reinterpret_cast<uint16_t*>(at);
  if (type == Type::bf16)
    for (int64_t i = 0; i < width; i++) p[i * t.column] = to_bf16(from[i] * factor);
  else
    for (int64_t i = 0; i < width; i++) p[i * t.column] = to_f16(from[i] * factor);
}

// Whether NaN or inf was among the numbers that went by: 0 * x is 0 for all others. One that lives in a loop's registers
// costs little there, one in memory would be loaded and stored with every number: loops have their own and join it.
struct Watch {
  vf sum{};
  v4 quarter{};
  float rest = 0;
  LL_INLINE void see(vf x) { sum += x * 0.0f; }
  LL_INLINE void see(vf x, vf y) { sum += x * 0.0f + y * 0.0f; }
  LL_INLINE void see(float x) { rest += x * 0.0f; }
  LL_INLINE void see_4(v4 a, v4 b, v4 c, v4 d) { quarter += (a * 0.0f + b * 0.0f) + (c * 0.0f + d * 0.0f); }
  LL_INLINE void join(const Watch& other) { sum += other.sum, quarter += other.quarter, rest += other.rest; }
  LL_INLINE bool clean() const { return sum_of(sum) + (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]) + rest == 0; }
};

// --- packing ---------------------------------------------------------------------------------------------------------

// to = factor * from, of any number of columns.
LL_INLINE void copy_row(const float* from, int64_t width, float factor, float* to, Watch& watch) {
  int64_t i = 0;
  for (; i + 2 * W <= width; i += 2 * W) {
    const vf x = load(from + i), y = load(from + i + W);
    watch.see(x, y);
    store(to + i, x * factor), store(to + i + W, y * factor);
  }
  for (; i + W <= width; i += W) {
    const vf x = load(from + i);
    watch.see(x);
    store(to + i, x * factor);
  }
  for (; i < width; i++) {
    watch.see(from[i]);
    to[i] = from[i] * factor;
  }
}

// Rows [first, first + count) of a head as panels [panel][row][NR], the last vector of columns filled up with 0.
inline void pack_panels(const Tensor& t, Type type, int64_t n, int64_t head, int64_t first, int64_t count, int64_t width,
                        float* to, float* room, Watch& watch) {
  Watch seen;
  for (int64_t r = 0; r < count; r++) {
    const float* from = read_row(t, type, n, head, first + r, width, room);
    for (int64_t column = 0; column < width; column += NR) {
      float* at = to + column * count + r * NR;
      const int64_t there = std::min<int64_t>(width - column, NR);
      copy_row(from + column, there, 1, at, seen);
      for (int64_t i = there; i < whole_vectors(there); i++) at[i] = 0;
    }
  }
  watch.join(seen);
}

template <class WATCH>
LL_INLINE void transpose_4(const float* const rows[4], int64_t column, float* to, int64_t to_row, WATCH& watch) {
  typedef int32_t i4 __attribute__((vector_size(16)));
  v4 a = *(const v4_loose*)(rows[0] + column), b = *(const v4_loose*)(rows[1] + column);
  v4 c = *(const v4_loose*)(rows[2] + column), d = *(const v4_loose*)(rows[3] + column);
  watch.see_4(a, b, c, d);
  v4 ac = __builtin_shuffle(a, c, i4{0, 4, 1, 5}), bd = __builtin_shuffle(b, d, i4{0, 4, 1, 5});
  v4 ac_high = __builtin_shuffle(a, c, i4{2, 6, 3, 7}), bd_high = __builtin_shuffle(b, d, i4{2, 6, 3, 7});
  *(v4_loose*)(to) = __builtin_shuffle(ac, bd, i4{0, 4, 1, 5});
  *(v4_loose*)(to + to_row) = __builtin_shuffle(ac, bd, i4{2, 6, 3, 7});
  *(v4_loose*)(to + 2 * to_row) = __builtin_shuffle(ac_high, bd_high, i4{0, 4, 1, 5});
  *(v4_loose*)(to + 3 * to_row) = __builtin_shuffle(ac_high, bd_high, i4{2, 6, 3, 7});
}

// Rows 0 .. count - 1, of `width` floats each, transposed: panels [panel of NR rows][width][NR], the last vector of rows filled up with 0.
// `read(r, i)` finds row r, the i-th of four that are wanted at a time.
template <class READ, class WATCH>
LL_INLINE void transpose_rows(int64_t count, int64_t width, float* to, READ read, WATCH& seen) {
  for (int64_t r = 0; r < count; r += 4) {
    float* at = to + r / NR * NR * width + r % NR;
    const float* rows[4];
    for (int i = 0; i < 4; i++) rows[i] = read(r + i < count ? r + i : r, i);  // beyond the end: any row, cleared below
    int64_t column = 0;
    for (; column + 4 <= width; column += 4) transpose_4(rows, column, at + column * NR, NR, seen);
    for (; column < width; column++)
      for (int i = 0; i < 4; i++) {
        std::memcpy(at + column * NR + i, rows[i] + column, sizeof(float));  // whatever the bits mean
        seen.see(at[column * NR + i]);
      }
  }
  for (int64_t r = count; r < whole_vectors(count); r++)
    for (int64_t column = 0; column < width; column++) to[r / NR * NR * width + column * NR + r % NR] = 0;
}

// Rows [first, first + count) of a head, so transposed. `room` holds 4 rows.
inline void pack_transposed(const Tensor& t, Type type, int64_t n, int64_t head, int64_t first, int64_t count, int64_t width,
                            float* to, float* room, Watch& watch) {
  Watch seen;
  const auto read = [&](int64_t r, int i) { return read_row(t, type, n, head, first + r, width, room + i * width); };
  transpose_rows(count, width, to, read, seen);
  watch.join(seen);
}

// Rows [first, first + count) of a head, times `factor`, one after the other, [count][width].
inline void pack_rows(const Tensor& t, Type type, int64_t n, int64_t head, int64_t first, int64_t count, int64_t width,
                      float factor, float* to, float* room, Watch& watch) {
  Watch seen;
  for (int64_t r = 0; r < count; r++) {
    const float* from = read_row(t, type, n, head, first + r, width, room);
    copy_row(from, width, factor, to + r * width, seen);
  }
  watch.join(seen);
}

}  // namespace limelight::LIMELIGHT_ISA
