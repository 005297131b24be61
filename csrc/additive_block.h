// Blocks of queries and of keys made ready for additive scores, and the scores of one with the other.
#pragma once

#include <vector>

#include "additive_tile.h"
#include "product.h"
#include "work.h"

namespace limelight::LIMELIGHT_ISA::additive {

// Row `row` of `width` numbers, readable in whole vectors, zeros behind: where it lies, or copied to `room`.
LL_INLINE const float* whole_row(const Tensor& t, Type type, int64_t n, int64_t head, int64_t row, int64_t width, float* room) {
  const float* at = read_row(t, type, n, head, row, width, room);
  if (width % W == 0) return at;
  if (at != room) std::copy(at, at + width, room);
  std::fill(room + width, room + vectors(width) * W, 0.0f);
  return room;
}

// Queries first, first + 1, ... of a head.
struct Queries {
  int64_t wide = 0;         // floats of a row: whole vectors
  float* plain = nullptr;   // q, [ROWS][wide]
  float* factor = nullptr;  // a / w, a = e^2q, [ROWS][wide]
  float* half = nullptr;    // a / 2, where it is wanted
  float* top = nullptr;     // max |q_d|, [wide]

  static int64_t floats(int64_t rows, int64_t width) { return (3 * rows + 1) * vectors(width) * W + 64; }

  void place(int64_t rows, int64_t width, Scratch& scratch) {
    wide = vectors(width) * W;
    plain = scratch.take(rows * wide), factor = scratch.take(rows * wide), top = scratch.take(wide);
  }

  void read(const Call& call, int64_t n, int64_t h, int64_t first, int64_t rows) {
    std::fill(top, top + wide, 0.0f);
    for (int64_t r = 0; r < rows; r++) {
      float* to = plain + r * wide;
      const float* from = whole_row(call.query, call.type, n, h, first + r, call.D, to);
      for (int64_t d = 0; d < wide; d += W) {
        const vf x = load(from + d);
        store(to + d, x);
        store(top + d, larger(absolute(x), load(top + d)));
      }
    }
  }

  // factor = e^2q times 1 / w of each feature.
  void factorise(int64_t rows, const float* inverse) {
    for (int64_t at = 0; at < rows * wide; at += wide)
      for (int64_t d = 0; d < wide; d += W) {
        const vf a = exp_twice(load(plain + at + d));
        if (half) store(half + at + d, 0.5f * a);
        store(factor + at + d, a * load(inverse + d));
      }
  }
};

// Keys of a block, in panels [D / W][KEYS][W] that are PANEL floats apart.
struct KeyPanels {
  int64_t count = 0;  // vectors
  float* data = nullptr;
  float* top = nullptr;  // max |k_d|

  static int64_t floats(int64_t width) { return vectors(width) * (PANEL + W) + 32; }

  void place(int64_t width, Scratch& scratch) {
    count = vectors(width);
    data = scratch.take(count * PANEL), top = scratch.take(count * W);
  }

  // Keys first .. first + keys as b = e^2k, or as they are; up to a multiple of four the last one again.
  template <bool FACTOR>
  void read(const Call& call, int64_t n, int64_t group, int64_t first, int64_t keys, float* room) {
    std::fill(top, top + count * W, 0.0f);
    for (int64_t j = 0; j < (keys + 3) / 4 * 4; j++) {
      const float* from = whole_row(call.key, call.type, n, group, first + std::min(j, keys - 1), call.D, room);
      for (int64_t m = 0; m < count; m++) {
        const vf x = load(from + m * W);
        store(top + m * W, larger(absolute(x), load(top + m * W)));
        store(data + m * PANEL + j * W, FACTOR ? exp_twice(x) : x);
      }
    }
  }
};

// Where the scores of a block of queries go: score of row r and key j of the block is s[r * stride + j].
struct Place {
  float* s;
  int64_t stride;
};

// Whether the row's keys include any of [j, j + 4).
LL_INLINE bool meets(const Span& keys, int64_t j) { return keys.first < j + 4 && keys.last > j; }

// Scores of the queries and the block's keys [0, keys), in natural units; spans[r] are the row's keys, the block's first
// being `key`. Four keys are computed together, so there must be room for up to three scores more.
template <int K>
inline void scores(const Vector& vector, const Queries& queries, const KeyPanels& panels, int64_t rows, int64_t key, int64_t keys,
                   const Span* spans, Place to) {
  for (int64_t j = 0; j < keys; j += 4)
    for (int64_t r = 0; r < rows; r++)
      if (meets(spans[r], key + j))
        *(v4_loose*)(to.s + r * to.stride + j) =
            factorised_scores<K>(vector, queries.factor + r * queries.wide, panels.data + j * W);
}

// The same from q and k themselves; `room` holds four rows.
template <Form FORM>
inline void scores_directly(const Vector& vector, const Queries& queries, const Call& call, int64_t n, int64_t group,
                            int64_t rows, int64_t key, int64_t keys, const Span* spans, Place to, float* room) {
  for (int64_t j = 0; j < keys; j += 4) {
    const float* four[4];
    for (int64_t c = 0; c < 4; c++) {
      const int64_t at = key + std::min(j + c, keys - 1);
      four[c] = whole_row(call.key, call.type, n, group, at, call.D, room + c * queries.wide);
    }
    for (int64_t r = 0; r < rows; r++)
      if (meets(spans[r], key + j))
        *(v4_loose*)(to.s + r * to.stride + j) = direct_scores<FORM>(vector, queries.plain + r * queries.wide, four);
  }
}

// Either, as `form` says.
inline void all_scores(Form form, const Vector& vector, const Queries& queries, const KeyPanels& panels, const Call& call,
                       int64_t n, int64_t group, int64_t rows, int64_t key, int64_t keys, const Span* spans, Place to,
                       float* room) {
  switch (form) {
    case Form::quads: return scores<4>(vector, queries, panels, rows, key, keys, spans, to);
    case Form::pairs: return scores<2>(vector, queries, panels, rows, key, keys, spans, to);
    case Form::small: return scores_directly<Form::small>(vector, queries, call, n, group, rows, key, keys, spans, to, room);
    default: return scores_directly<Form::direct>(vector, queries, call, n, group, rows, key, keys, spans, to, room);
  }
}

// Scores s[0] = key `key`, ... of a row's keys take in the bias, and become -inf where the dense mask forbids.
inline void add_bias(const Call& call, int64_t n, int64_t h, int64_t i, int64_t key, Span keys, float* s) {
  if (call.bias.data) {
    const Tensor& t = call.bias;
    const float* bias = static_cast<const float*>(t.data) + n * t.n + h * t.head + i * t.row;
    for (int64_t j = keys.first; j < keys.last; j++) s[j - key] += bias[j * t.column];
  }
  if (call.mask.dense.data) {
    const Tensor& t = call.mask.dense;
    const uint8_t* dense = static_cast<const uint8_t*>(t.data) + n * t.n + h * t.head + i * t.row;
    for (int64_t j = keys.first; j < keys.last; j++)
      if (!dense[j * t.column]) s[j - key] = -INF;
  }
}

// The rows' keys within [first, last); returns what holds them all.
inline Span cut_spans(const Call& call, int64_t n, int64_t row, int64_t rows, Span within, Span* spans) {
  Span all{within.last, within.first};
  for (int64_t r = 0; r < rows; r++) {
    const Span keys = keys_of_row(call, n, row + r);
    Span& span = spans[r];
    span = {std::max(keys.first, within.first), std::min(keys.last, within.last)};
    if (!span.empty()) all = {std::min(all.first, span.first), std::max(all.last, span.last)};
  }
  if (all.empty()) all = {within.first, within.first};
  for (int64_t r = 0; r < rows; r++)
    if (spans[r].empty()) spans[r] = {all.first, all.first};
  return all;
}

// Threads worth starting: one per 50 microseconds of work.
inline int parts_for(const Call& call, int64_t units, double nanoseconds) {
  return static_cast<int>(
      std::clamp<double>(nanoseconds / 50000, 1, std::max<double>(1, std::min<int64_t>(call.threads, units))));
}

}  // namespace limelight::LIMELIGHT_ISA::additive
