// Forward pass of dot scores: softmax(scale q k' + bias) v, block by block, with the observations gathered on the way.
//
// A unit of work is a block of queries of one head. It walks over the keys it may see in blocks: keys are packed
// transposed and values in panels, once a thread and key head where that is not too much to keep, else once a unit; then,
// a few queries at a time, scores, their softmax and the sum over values stay in the first cache.
#pragma once

#include "dot_decode.h"
#include "dropout.h"
#include "gathered.h"
#include "pairs.h"
#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

constexpr int64_t KEYS = 512;                 // keys of a block
constexpr int64_t GROUP = 4 * MR;             // queries whose scores are held at a time
constexpr int64_t ROWS = 8 * GROUP;           // queries of a unit, at most
constexpr int64_t PACKED = int64_t{4} << 20;  // floats of packed keys and values that a thread may keep: 16 MiB
constexpr int64_t NEAR = int64_t{1} << 20;    // and of those that are soon read: 4 MiB
constexpr int64_t STORE = int64_t{48} << 10;  // floats of all weights that are kept to look back at: part of a second cache

static_assert(KEYS % NR == 0);

inline int64_t blocks_of(int64_t keys) { return (keys + KEYS - 1) / KEYS; }

// Floats of the packed keys and values of a key head, and whether they are packed once.
inline int64_t packed_floats(const Forward& call) { return blocks_of(call.S) * KEYS * (call.D + padded(call.E)); }
inline bool packed_once(const Forward& call) { return packed_floats(call) <= PACKED; }

// The blocks that a thread keeps packed: one where no other unit, of `rows` queries, asks for them again.
inline int64_t packed_blocks(const Forward& call, int64_t rows) {
  return packed_once(call) && (rows < call.T || call.G < call.H) ? blocks_of(call.S) : 1;
}

// Whether something is gathered once a row is complete, from what was kept of all its weights.
inline bool looks_back(const Forward& call) { return call.seen.received || call.seen.pooled.to || call.seen.mean; }

// Heads that different threads may have: with the mean over the heads a thread has all heads of its queries.
inline int64_t heads_apart(const Forward& call) { return call.seen.mean ? 1 : call.H; }

// Queries per unit: even parts of T, whole groups, and fewer where something of all keys is kept, but not so few that
// packing for each unit, or reading from a third cache what is packed, would show. Where there are few heads, so many parts
// that each thread has about as much to do as the others.
inline int64_t rows_per_unit(const Forward& call, int64_t threads) {
  int64_t most = ROWS;
  if (looks_back(call)) {
    const int64_t store = packed_once(call) ? STORE : 64 * STORE;
    const int64_t least = packed_floats(call) <= NEAR ? GROUP : packed_once(call) ? 4 * GROUP : 2 * GROUP;
    most = std::clamp(store / std::max<int64_t>(1, call.S) / GROUP * GROUP, least, ROWS);
  }
  int64_t units = std::max<int64_t>(1, (call.T + most - 1) / most);
  while (uneven(call.N * heads_apart(call) * units, threads) && call.T / (units + 1) >= GROUP) units++;
  return std::max<int64_t>(1, ((call.T + units - 1) / units + MR - 1) / MR * MR);
}

class DotForward {
 public:
  DotForward(const Forward& call, int64_t rows)
      : call_(call), score_(call.type == Type::bf16, call.D), worth_(call.type == Type::bf16, call.E), rows_(rows),
        width_(padded(call.E)), blocks_(blocks_of(call.S)), kept_(packed_blocks(call, rows)), pool_(call),
        scratch_(floats(call, rows)), packed_(static_cast<size_t>(kept_), -1) {
    query_ = scratch_.take(rows * call.D);
    sum_ = scratch_.take(rows * width_);
    keys_ = scratch_.take(kept_ * KEYS * call.D);
    values_ = scratch_.take(kept_ * KEYS * width_);
    room_ = scratch_.take(4 * std::max(call.D, call.E));
    const int64_t whole = whole_vectors(rows);
    state_ = {scratch_.take(whole), scratch_.take(whole), scratch_.take(whole * W),
              call.seen.entropy ? scratch_.take(whole * W) : nullptr, call.seen.distance ? scratch_.take(whole * W) : nullptr};
    if (looks_back(call)) kept_rows_ = scratch_.take(blocks_ * rows * KEYS), largest_ = scratch_.take(blocks_ * rows + W);
    else weights_ = scratch_.take(GROUP * KEYS);
    if (call.seen.top) {
      const int64_t room = rows * whole_vectors(call.seen.top);
      float* scores = scratch_.take(room);
      strongest_ = Strongest(call.seen.top, scores, reinterpret_cast<int32_t*>(scratch_.take(room)));
    }
    if (PAIRS && call.type == Type::bf16) rounded_ = scratch_.take(GROUP * KEYS / 2);
    if (call.dropout.rate > 0) {
      dropped_ = scratch_.take(GROUP * KEYS);
      column_bits_ = reinterpret_cast<uint32_t*>(scratch_.take(KEYS));
    }
    spans_.resize(static_cast<size_t>(rows));
    if (looks_back(call)) used_.resize(static_cast<size_t>(blocks_ * (rows / GROUP + 1)));
  }

  // Queries [first, first + rows) of head h; what the keys receive is added to `received` [S], and the cells of `pooled`
  // take their part of the weights.
  void run(int64_t n, int64_t h, int64_t first, int64_t rows, float* received, float* pooled) {
    n_ = n, h_ = h, first_ = first, count_ = rows;
    Watch ignored;  // a query that is not finite spoils its own row alone, as it should
    score_.pack_left(call_.query, call_.type, n, h, first, rows, call_.scale, query_, room_, watch_, ignored);
    std::fill(sum_, sum_ + rows * width_, 0.0f);
    state_.clear(rows);
    if (strongest_) strongest_.clear(rows);
    for (int64_t r = 0; r < rows; r++) spans_[static_cast<size_t>(r)] = keys_of_row(call_, n, first + r);
    const Span all = keys_of_rows(call_, n, first, first + rows);
    const int64_t begin = all.first / KEYS, end = all.empty() ? begin : blocks_of(all.last);
    for (int64_t block = begin; block < end; block++) walk(block, block - begin);
    finish();
    if (kept_rows_) look_back(begin, end - begin, received, pooled);
  }

  bool clean() const { return watch_.clean(); }

 private:
  static int64_t floats(const Forward& call, int64_t rows) {
    const int64_t width = padded(call.E), blocks = blocks_of(call.S), kept = packed_blocks(call, rows);
    int64_t n = rows * (call.D + width + 2 * whole_vectors(call.seen.top)) + KEYS * (kept * (call.D + width) + 1);
    n += whole_vectors(rows) * (2 + 3 * W);
    n += 4 * std::max(call.D, call.E) + (looks_back(call) ? blocks * rows * (KEYS + 1) + W : 0);
    return n + 3 * GROUP * KEYS + 20 * 16;
  }

  // Keys and values of a block, packed where they are not yet; the number of its keys.
  int64_t pack(int64_t block) {
    const int64_t key = block * KEYS, g = h_ / (call_.H / call_.G);
    const int64_t there = call_.mask.lengths ? std::min(call_.S, call_.mask.lengths[n_]) : call_.S;
    const int64_t count = std::min(KEYS, there - key), place = kept_ == 1 ? 0 : block,
                  what = (n_ * call_.G + g) * blocks_ + block;
    key_ = keys_ + place * KEYS * call_.D;
    value_ = values_ + place * KEYS * width_;
    if (packed_[static_cast<size_t>(place)] == what) return count;
    score_.pack_right(call_.key, call_.type, n_, g, key, count, key_, room_, watch_);
    worth_.pack(call_.value, call_.type, n_, g, key, count, value_, room_, watch_);
    packed_[static_cast<size_t>(place)] = what;
    return count;
  }

  // Block `number` of the keys, the unit's `block`-th, for all queries of the unit.
  void walk(int64_t number, int64_t block) {
    const int64_t key = number * KEYS, count = pack(number);
    if (column_bits_)
      for (int64_t j = 0; j < KEYS; j++) column_bits_[j] = dropout_column(key + j, call_.dropout.seed);
    for (int64_t r = 0; r < count_; r += GROUP) {
      const int64_t rows = std::min(GROUP, count_ - r);
      Span span = keys_of_rows(call_, n_, first_ + r, first_ + r + rows);
      span = {std::max(span.first, key) - key, std::min(span.last, key + count) - key};
      if (kept_rows_) used_[static_cast<size_t>(block * (count_ / GROUP + 1) + r / GROUP)] = span;
      if (!span.empty()) meet(block, key, count, r, rows, span);
    }
  }

  // Queries [r, r + rows) of the unit and the keys of `span` in the block.
  void meet(int64_t block, int64_t key, int64_t count, int64_t r, int64_t rows, Span span) {
    const int64_t from = span.first / NR * NR, to = (span.last + W - 1) / W * W;
    float* s = kept_rows_ ? kept_rows_ + (block * rows_ + r) * KEYS : weights_;
    score_.multiply(rows, to - from, query_ + r * score_.steps(), key_ + from * score_.steps(), call_.scale, s + from, KEYS);
    const bool extra = has_extras(call_);
    for (int64_t i = 0; i < rows; i++) {
      float* row = s + i * KEYS;
      const Span keys = spans_[static_cast<size_t>(r + i)];
      if (extra || keys.first > key + from || keys.last < key + to)
        finish_scores(call_, n_, h_, first_ + r + i, key, keys, row, from, to);
      const Highest high = highest(row, from, to);
      if (strongest_) strongest_.see(r + i, row, key, from, to, high);
      if (call_.seen.chosen_count) keep_chosen(r + i, row, key, {from, to});
      soften(state_, r + i, high, row, row, from, to, key - (first_ + r + i + call_.S - call_.T));
      if (largest_) largest_[block * rows_ + r + i] = state_.largest[r + i];
    }
    const float* kept = dropped_ ? drop(s, r, rows, from, to) : s;
    worth_.add(rows, from, std::min(to, count) - from, count, kept, KEYS, value_, sum_ + r * width_, width_, state_.change + r,
               rounded_);
  }

  // Scores s of keys from `key` on, of which `there` are there, go to where the weights of query r of the unit are wanted,
  // until the row is complete. Not inlined: it is called for few rows, and the loop that calls it is tight.
  __attribute__((noinline)) void keep_chosen(int64_t r, const float* s, int64_t key, Span there) const {
    float* chosen = chosen_row(call_, n_, h_, first_ + r);
    const Span keys = spans_[static_cast<size_t>(r)];
    const int64_t from = std::max(keys.first - key, there.first), to = std::min(keys.last - key, there.last);
    if (chosen && from < to) std::copy(s + from, s + to, chosen + key + from);
  }

  __attribute__((noinline)) void weigh_chosen(int64_t r, float by) const {
    float* chosen = chosen_row(call_, n_, h_, first_ + r);
    const Span keys = spans_[static_cast<size_t>(r)];
    if (chosen && !keys.empty()) weigh(chosen + keys.first, keys.last - keys.first, state_.largest[r], by);
  }

  const float* drop(const float* p, int64_t r, int64_t rows, int64_t from, int64_t to) {
    const DropoutRule rule(call_.dropout.rate);
    for (int64_t i = 0; i < rows; i++) {
      const uint32_t bits = dropout_row((n_ * call_.H + h_) * call_.T + first_ + r + i, call_.dropout.seed);
      for (int64_t j = from; j < to; j += W)
        store(dropped_ + i * KEYS + j, load(p + i * KEYS + j) * rule.kept(bits, column_bits_ + j));
    }
    return dropped_;
  }

  void finish() {
    const float sink = sink_of(call_, n_, h_);
    for (int64_t r = 0; r < count_; r += W) {
      const RowEnds ends = ends_of_rows(sums_of_rows(state_, r), sink);
      write_ends(call_, n_, h_, first_ + r, std::min<int64_t>(W, count_ - r), ends);
      store(state_.change + r, ends.by);
    }
    for (int64_t r = 0; r < count_; r++) {
      const float by = state_.change[r];
      write_output(call_, n_, h_, first_ + r, sum_ + r * width_, by);
      if (strongest_) strongest_.write(call_.seen, (n_ * call_.H + h_) * call_.T + first_ + r, r, state_.largest[r], by);
      if (call_.seen.chosen_count) weigh_chosen(r, by);
    }
  }

  Span used(int64_t block, int64_t r) const { return used_[static_cast<size_t>(block * (count_ / GROUP + 1) + r / GROUP)]; }

  // What is gathered of complete rows, from the weights p that were kept: each was taken with the m that its row had then.
  void look_back(int64_t begin, int64_t blocks, float* received, float* pooled) const {
    float sums[KEYS], factor[ROWS + W];
    const float* by = call_.seen.row_weight ? call_.seen.row_weight + (n_ * call_.H + h_) * call_.T + first_ : nullptr;
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t key = (begin + block) * KEYS, count = std::min(KEYS, call_.S - key);
      complete_rows(largest_ + block * rows_, factor);
      if (call_.seen.mean) add_to_mean(block, key, count, factor);
      for (int64_t r = 0, end; pooled && r < count_; r = end) {
        const int64_t row = pool_.row_of(first_ + r);
        end = std::min(count_, pool_.end_of(row) - first_);
        if (pool_.largest()) sum_rows<true>(block, r, end, factor, sums);
        else sum_rows<false>(block, r, end, factor, sums);
        pool_.pour(sums, key, count, row, pooled);
      }
      if (!received) continue;
      for (int64_t r = 0; by && r < count_; r++) factor[r] *= by[r];
      sum_rows<false>(block, 0, count_, factor, sums);
      for (int64_t j = 0; j < count; j++) received[key + j] += sums[j];
    }
  }

  // The weights of keys [key, key + count) in a block join the mean over the heads.
  void add_to_mean(int64_t block, int64_t key, int64_t count, const float* factor) const {
    const float share = 1.0f / static_cast<float>(call_.H);
    for (int64_t r = 0; r < count_; r++) {
      const Span span = used(block, r);
      const float *p = kept_rows_ + (block * rows_ + r) * KEYS, by = factor[r] * share;
      float* mean = call_.seen.mean + (n_ * call_.T + first_ + r) * call_.S + key;
      int64_t j = span.first;
      const int64_t end = std::min(span.last, count);
      for (; j + W <= end; j += W) store(mean + j, load(mean + j) + load(p + j) * by);
      for (; j < end; j++) mean[j] += p[j] * by;
    }
  }

  // What each row's p, taken with m `then`, are to be multiplied by to become weights.
  void complete_rows(const float* then, float* factor) const {
    for (int64_t r = 0; r < count_; r += W) {
      const vf inverse = load(state_.change + r);
      store(factor + r, inverse == 0.0f ? vf{} : exp(load(then + r) - load(state_.largest + r)) * inverse);
    }
  }

  // sums[j] = sum_r factor_r p_rj over queries [from, end) of the unit and the keys of a block, or the LARGEST of them.
  template <bool LARGEST>
  void sum_rows(int64_t block, int64_t from, int64_t end, const float* factor, float* sums) const {
    std::fill(sums, sums + KEYS, 0.0f);
    for (int64_t r = from, next; r < end; r = next) {
      next = std::min(end, (r / GROUP + 1) * GROUP);
      const Span span = used(block, r);
      if (!span.empty()) add_rows<LARGEST>(kept_rows_ + (block * rows_ + r) * KEYS, next - r, factor + r, sums, span);
    }
  }

  template <bool LARGEST>
  static void add_rows(const float* kept, int64_t rows, const float* factor, float* sums, Span span) {
    const int64_t from = span.first / NR * NR, to = (span.last + W - 1) / W * W;
    constexpr int AT_ONCE = 6;
    for (int64_t i = 0; i < rows; i += AT_ONCE) {
      const float* p[AT_ONCE];
      vf f[AT_ONCE];
      for (int64_t x = 0; x < AT_ONCE; x++) {  // beyond the end: the last one, times 0
        p[x] = kept + std::min(i + x, rows - 1) * KEYS;
        f[x] = splat(i + x < rows ? factor[i + x] : 0.0f);
      }
      for (int64_t j = from; j < to; j += W) {
        vf sum = load(sums + j), other = f[0] * load(p[0] + j);
        if constexpr (LARGEST) {
          for (int x = 1; x < AT_ONCE; x++) sum = larger(f[x] * load(p[x] + j), sum);
          store(sums + j, larger(sum, other));
          continue;
        }
        for (int x = 1; x + 1 < AT_ONCE; x += 2) sum += f[x] * load(p[x] + j), other += f[x + 1] * load(p[x + 1] + j);
        sum += f[AT_ONCE - 1] * load(p[AT_ONCE - 1] + j);
        store(sums + j, sum + other);
      }
    }
  }

  const Forward& call_;
  Factors score_;   // query and key
  Summands worth_;  // values
  int64_t rows_, width_, blocks_, kept_;
  Pool pool_;
  Scratch scratch_;
  float *query_, *sum_, *keys_, *values_, *key_ = nullptr, *value_ = nullptr, *room_, *weights_ = nullptr, *kept_rows_ = nullptr;
  float *largest_ = nullptr, *dropped_ = nullptr, *rounded_ = nullptr;
  std::vector<int64_t> packed_;  // which block lies at each place
  uint32_t* column_bits_ = nullptr;
  RowState state_;
  Strongest strongest_;
  std::vector<Span> spans_, used_;
  Watch watch_;
  int64_t n_ = 0, h_ = 0, first_ = 0, count_ = 0;
};

inline bool dot_forward(const Forward& call) {
  if (call.N * call.H * call.T > 0 && !call.seen.mean && few_queries(call)) return DotDecode(call).run();
  const int64_t threads = threads_for(call, pairs_of(call) * (call.D + call.E)), apart = heads_apart(call);
  const int64_t rows = rows_per_unit(call, threads), per_head = (call.T + rows - 1) / rows, units = call.N * apart * per_head;
  if (units == 0) return true;
  std::vector<int64_t> costs(static_cast<size_t>(units));
  for (int64_t unit = 0; unit < units; unit++) {
    const int64_t n = unit / (apart * per_head), first = unit % per_head * rows;
    const Span keys = keys_of_rows(call, n, first, std::min(call.T, first + rows));
    costs[static_cast<size_t>(unit)] = 16 + std::max<int64_t>(0, keys.last - keys.first);
  }
  const int parts = static_cast<int>(std::min(units, threads));
  const std::vector<int64_t> ends = balanced(costs, parts);
  HeadSums received(call.seen.received, call.S, per_head, ends);
  const Pooled& cells = call.seen.pooled;
  HeadSums pooled(cells.to, cells.rows * cells.columns, per_head, ends, cells.largest);
  std::vector<char> clean(static_cast<size_t>(parts), 1);
  in_parallel(parts, [&](int part) {
    const int64_t begin = ends[static_cast<size_t>(part)], end = ends[static_cast<size_t>(part) + 1];
    if (begin == end) return;
    DotForward pass(call, rows);
    for (int64_t unit = begin, next; unit < end; unit = next) {
      const int64_t plane = unit / per_head;
      next = std::min(end, (plane + 1) * per_head);
      for (int64_t head = plane * call.H / apart; head < (plane + 1) * call.H / apart; head++)
        for (int64_t at = unit; at < next; at++) {
          const int64_t first = at % per_head * rows, count = std::min(rows, call.T - first);
          pass.run(head / call.H, head % call.H, first, count, received.of(part, head), pooled.of(part, head));
        }
    }
    clean[static_cast<size_t>(part)] = pass.clean();
  });
  received.join(), pooled.join();
  return std::all_of(clean.begin(), clean.end(), [](char one) { return one; });
}

}  // namespace limelight::LIMELIGHT_ISA
