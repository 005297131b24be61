// The largest of the scores W x + b of many rows x and the log of what their exponentials come to: what a search asks of a
// vocabulary. The scores are never all there: a block of them is made, asked and forgotten.
#pragma once

#include <atomic>

#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

static_assert(WEIGHT_PANEL % NR == 0);

// The weights of columns, panel after panel, as products read them.
inline void pack_weight(const Packing& call) {
  Tensor weight;
  weight.data = const_cast<float*>(call.weight);
  weight.row = call.stride, weight.column = 1;
  const int parts = static_cast<int>(std::clamp<int64_t>(call.columns * call.depth / (1 << 16), 1, call.threads));
  in_parallel(parts, [&](int part) {
    const int64_t all = panels(call.columns), first = part * all / parts * NR, last = (part + 1) * all / parts * NR;
    Watch watch;  // NaN and inf show in the scores
    pack_transposed(weight, Type::f32, 0, 0, first, std::min(last, call.columns) - first, call.depth,
                    call.packed + first * call.depth, nullptr, watch);
  });
}

class RowsAsked {
 public:
  explicit RowsAsked(const RowScores& call)
      : call_(call), scratch_(Scratch::room(ROWS * COLUMNS) + 2 * Scratch::room(ROWS) + Scratch::room(ROWS * W) +
                              2 * Scratch::room(ROWS * whole_vectors(call.top))),
        scores_(scratch_.take(ROWS * COLUMNS)),
        state_{scratch_.take(ROWS), scratch_.take(ROWS), scratch_.take(ROWS * W), nullptr, nullptr} {
    const int64_t links = ROWS * whole_vectors(call.top);
    float* values = scratch_.take(links);
    strongest_ = Strongest(call.top, values, reinterpret_cast<int32_t*>(scratch_.take(links)));
  }

  // Rows [first, last). False where one holds NaN or +inf, or less than `top` scores above -inf.
  bool run(int64_t first, int64_t last) {
    const int64_t blocks = (last - first + ROWS - 1) / ROWS;
    bool good = true;
    for (int64_t block = 0; block < blocks; block++)
      if (!run_block(first + block * (last - first) / blocks, first + (block + 1) * (last - first) / blocks)) good = false;
    return good;
  }

 private:
  static constexpr int64_t ROWS = 252, COLUMNS = 256;  // a block of scores

  bool run_block(int64_t first, int64_t last) {
    const int64_t rows = last - first, columns = whole_vectors(call_.columns);
    state_.clear(rows);
    strongest_.clear(rows);
    for (int64_t column = 0; column < columns; column += COLUMNS) {
      const int64_t width = std::min(COLUMNS, columns - column);
      score(first, rows, column, width);
      for (int64_t r = 0; r < rows; r++) {
        float* s = scores_ + r * COLUMNS;
        for (int64_t j = 0; j < width; j += W) store(s + j, load(s + j) + load(call_.bias + column + j));
        const Highest high = highest(s, 0, width);
        strongest_.see(r, s, column, 0, width, high);
        soften(state_, r, high, s, s, 0, width, 0);
      }
    }
    bool good = true;
    for (int64_t r = 0; r < rows; r++)
      if (!write(first + r, r)) good = false;
    return good;
  }

  void score(int64_t first, int64_t rows, int64_t column, int64_t width) {
    const Operand features{call_.features + first * call_.stride, call_.stride, 1};
    const float* panel = call_.packed + column * call_.depth;
    whole_product(rows, width, call_.depth, features, panel, scores_, COLUMNS);
  }

  bool write(int64_t row, int64_t r) const {
    const RowSums sums = sums_of_row(state_, r);
    strongest_.copy(r, call_.value + row * call_.top, call_.index + row * call_.top);
    call_.lse[row] = sums.m + std::log(sums.total);
    return sums.m < INF && sums.total > 0 && sums.total < INF && call_.value[(row + 1) * call_.top - 1] > -INF;
  }

  const RowScores& call_;
  Scratch scratch_;
  float* scores_;
  RowState state_;
  Strongest strongest_;
};

inline bool strongest_rows(const RowScores& call) {
  std::atomic<bool> good = true;
  const int parts = static_cast<int>(std::clamp<int64_t>((call.rows + MR - 1) / MR, 1, call.threads));
  in_parallel(parts, [&](int part) {
    RowsAsked asked(call);
    if (!asked.run(part * call.rows / parts, (part + 1) * call.rows / parts)) good = false;
  });
  return good;
}

}  // namespace limelight::LIMELIGHT_ISA
