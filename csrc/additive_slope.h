// The slopes of additive scores. With g_ij the gradient of score ij and t_ijd = tanh(q_id + k_jd):
//   dq_id = v_d sum_j g (1 - t^2),   dk_jd = v_d sum_i g (1 - t^2),   dv_d = sum_ij g t.
// Here v_d is left to the caller, who multiplies the sums by it.
#pragma once

#include "additive_block.h"

namespace limelight::LIMELIGHT_ISA::additive {

// tanh of W features: from e^2q / 2 and e^2k, as 1 - 1 / (1/2 + e^2(q + k) / 2), or from q and k themselves.
template <Form FORM>
LL_INLINE vf tanh_as(vf q, vf k) {
  if constexpr (FORM == Form::direct) return tanh_of(q + k);
  else if constexpr (FORM == Form::small) return tanh_of_small(q + k);
  else return 1.0f - reciprocal(q * k + 0.5f);
}

// Queries that met a block of keys.
struct SlopeBlock {
  const float* query;     // e^2q / 2 or q, [rows][wide]
  const KeyPanels& keys;  // e^2k or k
  const float* g;         // [rows][KEYS]
  int64_t rows;
  float* to_query;   // [rows][wide], these three added to
  float* to_keys;    // panels like those of the keys
  float* to_vector;  // [wide]
};

// Some rows of it and one vector of features.
struct SlopeTile {
  const float *query, *keys, *g;
  float *to_query, *to_keys;
  int64_t wide;
  Span span;  // keys that these rows meet, counted from the block's first
};

// R rows; returns their part of sum g t.
template <int R, Form FORM>
LL_INLINE vf slope_tile(const SlopeTile& tile) {
  vf q[R], row_sum[R], vector_sum{};
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) q[r] = load(tile.query + r * tile.wide), row_sum[r] = vf{};
  for (int64_t j = tile.span.first; j < tile.span.last; j++) {
    const vf k = load(tile.keys + j * W);
    vf key_sum = load(tile.to_keys + j * W);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const vf g = splat(tile.g[r * KEYS + j]), t = tanh_as<FORM>(q[r], k), g_t = g * t, slope = g - g_t * t;
      vector_sum += g_t;
      row_sum[r] += slope;
      key_sum += slope;
    }
    store(tile.to_keys + j * W, key_sum);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) store(tile.to_query + r * tile.wide, load(tile.to_query + r * tile.wide) + row_sum[r]);
  return vector_sum;
}

template <Form FORM>
LL_INLINE vf slope_rows(int64_t rows, const SlopeTile& tile) {
  switch (rows) {
    case 4: return slope_tile<4, FORM>(tile);
    case 3: return slope_tile<3, FORM>(tile);
    case 2: return slope_tile<2, FORM>(tile);
    default: return slope_tile<1, FORM>(tile);
  }
}

// All of a block; spans[r] are row r's keys, the block's first being `key`.
template <Form FORM>
inline void add_slopes(const SlopeBlock& block, const Span* spans, int64_t key) {
  const int64_t wide = block.keys.count * W, rows = block.rows;
  Span met[(ROWS + 3) / 4];  // by every four rows
  for (int64_t r = 0; r < rows; r += 4) {
    Span& all = met[r / 4] = {KEYS, 0};
    for (int64_t i = r; i < std::min(r + 4, rows); i++)
      if (!spans[i].empty()) all = {std::min(all.first, spans[i].first - key), std::max(all.last, spans[i].last - key)};
  }
  for (int64_t m = 0; m < block.keys.count; m++) {
    vf sum{};
    for (int64_t r = 0; r < rows; r += 4) {
      if (met[r / 4].empty()) continue;
      const int64_t at = r * wide + m * W;
      sum += slope_rows<FORM>(std::min<int64_t>(4, rows - r), {block.query + at, block.keys.data + m * PANEL, block.g + r * KEYS,
                                                               block.to_query + at, block.to_keys + m * PANEL, wide, met[r / 4]});
    }
    store(block.to_vector + m * W, load(block.to_vector + m * W) + sum);
  }
}

}  // namespace limelight::LIMELIGHT_ISA::additive
