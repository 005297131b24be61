// What the passes of few queries are made of, forward and backward: keys and values are read as they come, once, and nothing
// is packed.
#pragma once

#include "product.h"
#include "work.h"

namespace limelight::LIMELIGHT_ISA {

constexpr int64_t FEW = W > 8 ? 12 : 6;     // queries that share a key head, at most, where a head has several
constexpr int64_t STRETCH = 128;            // keys that are met at a time
constexpr int AT_ONCE = W > 8 ? W / 2 : 4;  // keys in a register tile

// The other way packs keys for rows of one head: with one or two of them that is too much. This way keeps the scores of all rows
// where weights are looked at: with so few heads no more than there are keys and values.
inline bool few_queries(const Call& call) {
  const int64_t shared = call.H / call.G;
  return ((call.T == 1 && shared <= 96) || (call.T == 2 && shared <= 8) || shared * call.T <= FEW) && call.dropout.rate == 0;
}

// Rows that are met once others are done with. They are asked for meanwhile, into the second cache: keys and values lie in two
// places, and where memory is only asked for what comes next in one, it waits at each change between them.
struct Soon {
  const char* at = nullptr;
  int64_t row = 0, bytes = 0, count = 0;

  Soon() = default;
  Soon(const Tensor& t, Type type, int64_t n, int64_t g, int64_t first, int64_t last, int64_t width)
      : at(row_at(t, type, n, g, first)), row(size_of(type) * t.row), bytes(t.column == 1 ? size_of(type) * width : 0),
        count(last - first) {}

  LL_INLINE void ask(int64_t from, int64_t to) const {
    for (int64_t j = from; j < std::min(to, count); j++)
      for (int64_t x = 0; x < bytes; x += 64) __builtin_prefetch(at + j * row + x, 0, 2);
  }
};

// s[j] = q . k_j for COUNT keys.
template <int COUNT>
LL_INLINE void dots(const float* q, const float* const* keys, int64_t width, float* s) {
  vf sum[COUNT]{};
  int64_t x = 0;
  for (; x + W <= width; x += W)
    for (int j = 0; j < COUNT; j++) sum[j] += load(q + x) * load(keys[j] + x);
  for (int j = 0; j < COUNT; j++) {
    float rest = 0;
    for (int64_t y = x; y < width; y++) rest += q[y] * keys[j][y];
    s[j] = sum_of(sum[j]) + rest;
  }
}

// The same for two rows q: s[j] and s[AT_ONCE + j].
LL_INLINE void dots_of_two(const float* q, const float* const* keys, int64_t width, float* s) {
  const float* other = q + width;
  vf sum[2 * AT_ONCE]{};
  int64_t x = 0;
  for (; x + W <= width; x += W)
    for (int j = 0; j < AT_ONCE; j++) {
      const vf key = load(keys[j] + x);
      sum[j] += load(q + x) * key, sum[AT_ONCE + j] += load(other + x) * key;
    }
  for (int j = 0; j < 2 * AT_ONCE; j += W) store(s + j, sums_of(sum + j));
  for (int j = 0; x < width && j < AT_ONCE; j++) {
    float rest = 0, of_other = 0;
    for (int64_t y = x; y < width; y++) rest += q[y] * keys[j][y], of_other += other[y] * keys[j][y];
    s[j] += rest, s[AT_ONCE + j] += of_other;
  }
}

// Products of `rows` rows on the left, [rows][width], and rows [first, last) of a key head: s[r * stride + j - first]. The
// backward pass takes its scores from here as the forward pass does: with other roundings e^(s - m) would be off by as much as
// s is. `room` holds AT_ONCE rows; `soon` are rows that come after these.
inline void products_of_few(const Tensor& t, Type type, int64_t n, int64_t g, int64_t first, int64_t last, int64_t width,
                            const float* left, int64_t rows, float* s, int64_t stride, float* room, const Soon& soon = {}) {
  for (int64_t j = first; j < last; j += AT_ONCE) {
    soon.ask(j - first, j - first + AT_ONCE);
    const float* right[AT_ONCE];
    for (int64_t i = 0; i < AT_ONCE; i++)  // beyond the end: the last one once more
      right[i] = read_row(t, type, n, g, std::min(j + i, last - 1), width, room + i * width);
    const size_t size = sizeof(float) * static_cast<size_t>(std::min<int64_t>(AT_ONCE, last - j));
    float found[2 * AT_ONCE], *to = s + j - first;
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
      dots_of_two(left + r * width, right, width, found);
      std::memcpy(to + r * stride, found, size), std::memcpy(to + (r + 1) * stride, found + AT_ONCE, size);
    }
    if (r == rows) continue;
    dots<AT_ONCE>(left + r * width, right, width, found);
    std::memcpy(to + r * stride, found, size);
  }
}

// sums = change * sums + p[0] v_0 + ... + p[count - 1] v_(count - 1), VECS vectors wide, LINES values at a time: enough
// sums that none waits for another.
template <int VECS, int LINES>
LL_INLINE void mix(const float* p, const float* values, int64_t row, int64_t count, float change, float* sums, const Soon& soon) {
  vf sum[LINES][VECS]{};
  for (int x = 0; x < VECS; x++) sum[0][x] = load(sums + x * W) * change;
  int64_t j = 0;
  for (; j + LINES <= count; j += LINES) {
    soon.ask(j, j + LINES);
    for (int i = 0; i < LINES; i++)
      for (int x = 0; x < VECS; x++) sum[i][x] += p[j + i] * load(values + (j + i) * row + x * W);
  }
  for (; j < count; j++)
    for (int x = 0; x < VECS; x++) sum[0][x] += p[j] * load(values + j * row + x * W);
  for (int x = 0; x < VECS; x++) {
    for (int i = 1; i < LINES; i++) sum[0][x] += sum[i][x];
    store(sums + x * W, sum[0][x]);
  }
}

// Row r of `sums`, [rows][sum_row], = change[r] * itself + sum_j p[r * STRETCH + j - first] t_j over rows [first, last) of a
// key head. `room` holds STRETCH rows; `soon` are rows that come after these.
inline void mix_few(const Tensor& t, Type type, int64_t n, int64_t g, int64_t first, int64_t last, int64_t width, const float* p,
                    int64_t rows, const float* change, float* sums, int64_t sum_row, float* room, const Soon& soon = {}) {
  const float* from = room;
  int64_t row = width;
  if (type == Type::f32 && t.column == 1) {
    from = reinterpret_cast<const float*>(row_at(t, type, n, g, first));
    row = t.row;
  } else {
    for (int64_t j = first; j < last; j++) read_row(t, type, n, g, j, width, room + (j - first) * row);
  }
  const int64_t count = last - first;
  int64_t begin = 0;
  if (rows > 2) {  // several rows share what they read
    for (; begin + NR <= width; begin += NR)
      panel<NV, true>(rows, count, {p, STRETCH, 1}, from + begin, row, sums + begin, sum_row, change, Floats{});
    for (; begin + W <= width; begin += W)
      panel<1, true>(rows, count, {p, STRETCH, 1}, from + begin, row, sums + begin, sum_row, change, Floats{});
  }
  for (int64_t r = 0; r < rows; r++) {
    const float* mine = p + r * STRETCH;
    float* to = sums + r * sum_row;
    int64_t x = begin;
    const auto ask = [&]() -> Soon { return r == 0 && x == 0 ? soon : Soon{}; };
    for (; x + 8 * W <= width; x += 8 * W) mix<8, 1>(mine, from + x, row, count, change[r], to + x, ask());
    for (; x + 4 * W <= width; x += 4 * W) mix<4, 2>(mine, from + x, row, count, change[r], to + x, ask());
    for (; x + W <= width; x += W) mix<1, 4>(mine, from + x, row, count, change[r], to + x, ask());
    for (; x < width; x++) {
      float sum = to[x] * change[r];
      for (int64_t j = 0; j < count; j++) sum += mine[j] * from[j * row + x];
      to[x] = sum;
    }
  }
}

}  // namespace limelight::LIMELIGHT_ISA
