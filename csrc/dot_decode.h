// Forward pass of dot scores for few queries, as in decoding: one token against a long cache, or many short sequences.
// The work is to read keys and values once, so nothing is packed. A piece is a run of stretches of keys of one key head,
// met by all queries that share it; each piece has a softmax of its own, and the pieces of a head are put together in order.
#pragma once

#include <numeric>
#include <utility>

#include "few.h"
#include "gathered.h"
#include "softmax.h"

namespace limelight::LIMELIGHT_ISA {

constexpr double CACHED = 32 << 20;  // bytes of keys and values that a third cache may hold from call to call

class DotDecode {
 public:
  explicit DotDecode(const Forward& call)
      : call_(call), shared_(call.H / call.G), rows_(shared_ * call.T), width_(whole_vectors(call.E)),
        stretches_((call.S + STRETCH - 1) / STRETCH), score_row_(whole_vectors(call.S)), pool_(call),
        looks_back_(call.seen.received || call.seen.top || call.seen.chosen_count || pool_), units_(call.N * call.G),
        parts_(threads_for(call, pairs_of(call) * (call.D + call.E), 100000)),
        cuts_(std::min(stretches_, parts_ / std::gcd(units_, parts_))), whole_(cuts_ <= 1),
        own_size_(rows_ * (Scratch::room(call.D) + STRETCH + 3 * W + 2) + AT_ONCE * call.D + STRETCH * call.E + 9 * 16),
        scratch_(sum_places() * rows_ * width_ + (looks_back_ ? score_places() * rows_ * score_row_ : 0) + parts_ * own_size_ +
                 3 * 16),
        ends_(static_cast<size_t>(sum_places() * rows_)) {
    sums_ = scratch_.take(sum_places() * rows_ * width_);
    scores_ = looks_back_ ? scratch_.take(score_places() * rows_ * score_row_) : nullptr;
    own_ = scratch_.take(parts_ * own_size_);
  }

  // False where NaN or inf came into the sums.
  bool run() {
    std::vector<char> clean(static_cast<size_t>(parts_), 1);
    const int64_t pieces = units_ * cuts_;
    in_parallel(static_cast<int>(parts_), [&](int part) {
      const Own own = own_of(part);
      Ending ending(call_.seen.top);
      for (int64_t piece = pieces * part / parts_; piece < pieces * (part + 1) / parts_; piece++) {
        const Place place = whole_ ? Place{part, part} : Place{piece, piece / cuts_};
        meet(piece, place, own);
        if (whole_) conclude(piece, place, ending);
      }
      clean[static_cast<size_t>(part)] = ending.watch.clean();
    });
    if (!whole_) {
      Ending ending(call_.seen.top);
      for (int64_t unit = 0; unit < units_; unit++) conclude(unit, {unit * cuts_, unit}, ending);
      clean[0] = ending.watch.clean();
    }
    return std::all_of(clean.begin(), clean.end(), [](char one) { return one; });
  }

 private:
  struct Own {  // what a thread works with
    float *query, *weights, *key, *value;
    RowState state;
  };

  Own own_of(int part) const {
    float* at = own_ + part * own_size_;
    const auto take = [&at](int64_t floats) { return std::exchange(at, at + Scratch::room(floats)); };
    Own own{take(rows_ * call_.D), take(rows_ * STRETCH), take(AT_ONCE * call_.D), take(STRETCH * call_.E), {}};
    own.state = {take(rows_), take(rows_), take(rows_ * W), call_.seen.entropy ? take(rows_ * W) : nullptr,
                 call_.seen.distance ? take(rows_ * W) : nullptr};
    return own;
  }

  // Where the sums of a piece and the scores of a unit are: where a piece is a whole unit, each thread has one place for all.
  struct Place {
    int64_t sums, scores;
  };
  int64_t sum_places() const { return whole_ ? parts_ : units_ * cuts_; }
  int64_t score_places() const { return whole_ ? parts_ : units_; }

  // What heads are ended with.
  struct Ending {
    Watch watch;
    std::vector<float> scores;
    std::vector<int32_t> keys;
    Strongest strongest;
    explicit Ending(int32_t top)
        : scores(static_cast<size_t>(whole_vectors(top))), keys(scores.size()), strongest(top, scores.data(), keys.data()) {}
  };

  int64_t head(int64_t g, int64_t r) const { return g * shared_ + r / call_.T; }
  float* row_sums(const Place& place, int64_t r) const { return sums_ + (place.sums * rows_ + r) * width_; }
  float* scores(const Place& place, int64_t r) const { return scores_ + (place.scores * rows_ + r) * score_row_; }

  void meet(int64_t piece, const Place& place, const Own& own) {
    const int64_t unit = piece / cuts_, cut = piece % cuts_, n = unit / call_.G, g = unit % call_.G;
    const Span all = keys_of_rows(call_, n, 0, call_.T);
    const int64_t first = std::max<int64_t>(0, all.first) / STRETCH,
                  last = (std::max<int64_t>(0, all.last) + STRETCH - 1) / STRETCH;
    const int64_t count = std::max<int64_t>(0, last - first);
    RowState state = own.state;
    state.clear(rows_);
    float* sums = row_sums(place, 0);
    std::fill(sums, sums + rows_ * width_, 0.0f);
    Watch ignored;
    for (int64_t r = 0; r < rows_; r++)
      pack_rows(call_.query, call_.type, n, head(g, r), r % call_.T, 1, call_.D, call_.scale, own.query + r * call_.D, own.key,
                ignored);
    for (int64_t at = first + count * cut / cuts_; at < first + count * (cut + 1) / cuts_; at++) {
      const int64_t key = at * STRETCH, end = std::min(key + STRETCH, all.last);
      score(n, g, place, std::max(key, all.first), end, key, own, state);
      const int64_t begin = std::max(key, all.first), after = std::min(end + STRETCH, all.last);
      mix_few(call_.value, call_.type, n, g, begin, end, call_.E, own.weights + begin - key, rows_, state.change, sums, width_,
              own.value, soon(call_.key, n, g, end, after, call_.D));
    }
    for (int64_t r = 0; r < rows_; r++) ends_[static_cast<size_t>(place.sums * rows_ + r)] = sums_of_row(state, r);
  }

  // Rows to ask for while others are met: those that lie in memory and not in a cache, where one or two queries have not enough to
  // do with each to wait for nothing.
  Soon soon(const Tensor& t, int64_t n, int64_t g, int64_t first, int64_t last, int64_t width) const {
    const double bytes = static_cast<double>(call_.N) * call_.G * call_.S * (call_.D + call_.E) * size_of(call_.type);
    return bytes > CACHED && rows_ <= 2 ? Soon(t, call_.type, n, g, first, last, width) : Soon{};
  }

  // Scores of keys [first, last), their softmax so far; what is not to be seen in the stretch that begins at `key` is -inf.
  void score(int64_t n, int64_t g, const Place& place, int64_t first, int64_t last, int64_t key, const Own& own,
             RowState& state) {
    products_of_few(call_.key, call_.type, n, g, first, last, call_.D, own.query, rows_, own.weights + first - key, STRETCH,
                    own.key, soon(call_.value, n, g, first, last, call_.E));
    const int64_t to = (last - key + W - 1) / W * W;
    for (int64_t r = 0; r < rows_; r++) {
      float* s = own.weights + r * STRETCH;
      const Span keys = keys_of_row(call_, n, r % call_.T);
      finish_scores(call_, n, head(g, r), r % call_.T, key, {std::max(keys.first, first), std::min(keys.last, last)}, s, 0, to);
      if (scores_) { std::copy(s, s + to, scores(place, r) + key); }
      soften(state, r, highest(s, 0, to), s, s, 0, to, key - (r % call_.T + call_.S - call_.T));
    }
  }

  // The heads of a unit: their pieces put together, written, and what is to be observed of them.
  void conclude(int64_t unit, const Place& place, Ending& ending) {
    for (int64_t r = 0, next; r < rows_; r = next) {
      next = std::min(r + W, (r / call_.T + 1) * call_.T);
      conclude_rows(unit, place, r, next - r, ending);
    }
  }

  // Rows r .. r + count - 1 of a unit, all of one head; count <= W.
  void conclude_rows(int64_t unit, const Place& place, int64_t r, int64_t count, Ending& ending) {
    const int64_t n = unit / call_.G, h = head(unit % call_.G, r), i = r % call_.T;
    RowsSums keys{};
    for (int64_t x = 0; x < count; x++) {
      RowSums& all = ends_[static_cast<size_t>(place.sums * rows_ + r + x)];
      float* sums = row_sums(place, r + x);
      for (int64_t cut = 1; cut < cuts_; cut++) join(all, (&all)[cut * rows_], sums, sums + cut * rows_ * width_);
      keys.m[x] = all.m, keys.total[x] = all.total, keys.spread[x] = all.spread, keys.away[x] = all.away;
      ending.watch.see(all.total);
      for (int64_t y = 0; y < width_; y += W) ending.watch.see(load(sums + y));
    }
    const RowEnds ends = ends_of_rows(keys, sink_of(call_, n, h));
    write_ends(call_, n, h, i, count, ends);
    for (int64_t x = 0; x < count; x++) {
      write_output(call_, n, h, i + x, row_sums(place, r + x), ends.by[x]);
      if (scores_) look_back(scores(place, r + x), n, h, i + x, keys.m[x], ends.by[x], ending.strongest);
    }
  }

  // Another piece of the same row joins this one: its keys, and what they add to the sums over the values.
  void join(RowSums& keys, const RowSums& other, float* sums, const float* more) const {
    const float m = std::max(keys.m, other.m);
    if (m == -INF) return;
    const float fall = fall_of(keys.m, m), other_fall = fall_of(other.m, m);
    const float change = exp_scalar(fall), other_change = exp_scalar(other_fall);
    const float spread = (keys.spread + keys.total * fall) * change;
    const float other_spread = (other.spread + other.total * other_fall) * other_change;
    keys = {m, keys.total * change + other.total * other_change, spread + other_spread,
            keys.away * change + other.away * other_change};
    for (int64_t x = 0; x < width_; x += W) store(sums + x, load(sums + x) * change + load(more + x) * other_change);
  }

  // Strongest links of a row, and what is gathered of its weights, from its scores.
  void look_back(const float* s, int64_t n, int64_t h, int64_t i, float m, float inverse, Strongest& strongest) const {
    const Span all = keys_of_rows(call_, n, 0, call_.T);
    const int64_t from = std::max<int64_t>(0, all.first) / STRETCH * STRETCH, end = std::max(from, all.last);
    const auto there = [=](int64_t j) { return std::min(STRETCH, (end - j + W - 1) / W * W); };  // whole vectors of a stretch
    const int64_t line = (n * call_.H + h) * call_.T + i;
    if (strongest) {
      strongest.clear(1);
      for (int64_t j = from; j < end; j += STRETCH) strongest.see(0, s + j, j, 0, there(j), highest(s + j, 0, there(j)));
      strongest.write(call_.seen, line, 0, m, inverse);
    }
    float* received = call_.seen.received ? call_.seen.received + (n * call_.H + h) * call_.S : nullptr;
    float* pooled = pool_ ? call_.seen.pooled.to + (n * call_.H + h) * pool_.size() : nullptr;
    float* chosen = chosen_row(call_, n, h, i);
    if (!(inverse > 0) || !(received || pooled || chosen)) return;
    const float by = call_.seen.row_weight ? call_.seen.row_weight[line] : 1.0f;
    for (int64_t j = from; j < end; j += STRETCH) {
      const int64_t count = std::min(STRETCH, end - j);
      float p[STRETCH];
      std::copy(s + j, s + j + there(j), p);
      weigh(p, there(j), m, inverse);
      for (int64_t x = 0; received && x < count; x++) received[j + x] += p[x] * by;
      if (chosen) std::copy(p, p + count, chosen + j);
      if (pooled) pool_.pour(p, j, count, pool_.row_of(i), pooled);
    }
  }

  const Forward& call_;
  int64_t shared_, rows_, width_, stretches_, score_row_;
  Pool pool_;
  bool looks_back_;
  int64_t units_, parts_, cuts_;
  bool whole_;  // a piece is a whole unit
  int64_t own_size_;
  Scratch scratch_;
  float *sums_, *scores_, *own_;
  std::vector<RowSums> ends_;  // [place][row]
};

}  // namespace limelight::LIMELIGHT_ISA
