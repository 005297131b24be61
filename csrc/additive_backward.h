// Backward pass of additive scores, from the row sums that the forward pass left: with p = e^(score - m) / sum_j e^(score_j - m) computed again,
//   grad value = p' grad o,   g = p (grad o value' - delta),   delta_i = sum_e o_ie grad o_ie - grad lse_i,
// and the slopes of additive_slope.h. With dropout d (0 or 1 / (1 - rate)): grad value takes d p, and grad o value' is
// multiplied by d.
//
// A unit of work is a block of keys of one key head: it owns the gradients of its keys and values. The queries' gradients
// are summed by the part that begins a key head; parts that go on with it have sums of their own, added in order.
#pragma once

#include <memory>

#include "additive_slope.h"
#include "bias_gradient.h"
#include "dropout.h"

namespace limelight::LIMELIGHT_ISA::additive {

class BackwardPass {
 public:
  // `begin`: this part's first unit; `bias`: where it finds the bias's gradient.
  BackwardPass(const Backward& call, int64_t key_blocks, int64_t begin, float* bias)
      : call_(call), bias_(call, bias), key_blocks_(key_blocks), begin_(begin), shared_(call.H / call.G), width_(padded(call.E)),
        keep_(call.dropout.rate), scratch_(floats(call, begin % key_blocks != 0)),
        to_vector_(static_cast<size_t>(call.vector_head ? call.H * call.D : call.D), 0.0) {
    const int64_t rows = std::min(ROWS, call.T);
    queries_.place(rows, call.D, scratch_);
    wide_ = queries_.wide, queries_.half = scratch_.take(rows * wide_);
    keys_.place(call.D, scratch_), plain_keys_.place(call.D, scratch_);
    vector_.place(call.D, scratch_.take(Vector::floats(call.D)));
    room_ = scratch_.take(4 * vectors(std::max(call.D, call.E)) * W);
    values_ = scratch_.take(KEYS * std::max(wide_, width_) + KEYS * call.E);
    grad_output_ = scratch_.take(rows * call.E), grad_output_panels_ = scratch_.take(rows * width_);
    weights_ = scratch_.take(rows * KEYS), slopes_ = scratch_.take(rows * KEYS);
    grad_rows_ = scratch_.take(rows * wide_), grad_panels_ = scratch_.take(keys_.count * PANEL);
    grad_vector_ = scratch_.take(wide_);
    grad_key_ = scratch_.take(KEYS * wide_), grad_value_ = scratch_.take(KEYS * width_);
    delta_ = scratch_.take(shared_ * call.T);
    own_ = scratch_.take(shared_ * call.T * wide_);
    if (begin % key_blocks != 0) carried_ = scratch_.take(shared_ * call.T * wide_);
  }

  void run(int64_t unit) {
    const int64_t plane = unit / key_blocks_, key = unit % key_blocks_ * KEYS;
    n_ = plane / call_.G, g_ = plane % call_.G;
    if (unit == begin_ || key == 0) start_plane(plane);
    const int64_t all = std::min(KEYS, call_.S - key);
    const int64_t end = call_.mask.lengths ? std::min(call_.S, call_.mask.lengths[n_]) : call_.S;
    std::fill(grad_key_, grad_key_ + KEYS * wide_, 0.0f);
    std::fill(grad_value_, grad_value_ + KEYS * width_, 0.0f);
    key_ = key, count_ = std::clamp<int64_t>(end - key, 0, all);
    const Span rows = rows_of_keys(call_, n_, key_, key_ + count_);
    if (count_ > 0 && !rows.empty()) {
      read_keys();
      for (int64_t i = 0; i < shared_; i++) run_head(i, rows);
    }
    for (int64_t j = 0; j < all; j++) {
      put(call_.grad_key, g_, key + j, call_.D, grad_key_ + j * wide_);
      put(call_.grad_value, g_, key + j, call_.E, grad_value_ + j * width_);
    }
    if (key == (key_blocks_ - 1) * KEYS && !carries(plane)) finish_plane(plane);
  }

  // Whether this part goes on with a key head that another began.
  bool carries(int64_t plane) const { return plane * key_blocks_ < begin_; }
  const float* carried() const { return carried_; }
  const std::vector<double>& to_vector() const { return to_vector_; }
  bool clean() const { return watch_.clean(); }

  // The queries' gradients of a key head are complete once `others` is added: they are written.
  void add(const float* others) {
    for (int64_t i = 0; i < shared_ * call_.T * wide_; i += W) store(own_ + i, load(own_ + i) + load(others + i));
  }
  void finish_plane(int64_t plane) {
    n_ = plane / call_.G, g_ = plane % call_.G;
    for (int64_t i = 0; i < shared_ * call_.T; i++)
      put(call_.grad_query, g_ * shared_ + i / call_.T, i % call_.T, call_.D, own_ + i * wide_);
  }

 private:
  static int64_t floats(const Backward& call, bool carries) {
    const int64_t rows = std::min(ROWS, call.T), width = padded(call.E), wide = vectors(call.D) * W, shared = call.H / call.G;
    int64_t n = Queries::floats(rows, call.D) + 2 * KeyPanels::floats(call.D) + Vector::floats(call.D);
    n += 4 * vectors(std::max(call.D, call.E)) * W + KEYS * (std::max(wide, width) + call.E) + rows * (call.E + width);
    n += rows * (2 * KEYS + wide) + vectors(call.D) * PANEL + wide + KEYS * (wide + width);
    return n + shared * call.T * (1 + wide * (carries ? 2 : 1)) + 20 * 16;
  }

  void put(const Tensor& to, int64_t head, int64_t row, int64_t width, const float* from) {
    int64_t i = 0;
    for (; i + W <= width; i += W) watch_.see(load(from + i));
    for (; i < width; i++) watch_.see(from[i]);
    write_row(to, call_.type, n_, head, row, width, from, 1.0f);
  }

  // delta, and no gradients yet, of all queries of a key head.
  void start_plane(int64_t plane) {
    to_query_ = carries(plane) ? carried_ : own_;
    std::fill(to_query_, to_query_ + shared_ * call_.T * wide_, 0.0f);
    for (int64_t i = 0; i < shared_ * call_.T; i++) {
      const int64_t h = g_ * shared_ + i / call_.T, row = i % call_.T;
      const float* grad = whole_row(call_.grad_output, call_.type, n_, h, row, call_.E, room_);
      const float* output = whole_row(call_.output, Type::f32, n_, h, row, call_.E, room_ + vectors(call_.E) * W);
      vf sum{};
      for (int64_t e = 0; e < call_.E; e += W) {
        watch_.see(load(grad + e));
        sum += load(grad + e) * load(output + e);
      }
      delta_[i] = sum_of(sum) - (call_.grad_lse ? call_.grad_lse[(n_ * call_.H + h) * call_.T + row] : 0.0f);
    }
  }

  void read_keys() {
    plain_ = false;
    if (call_.T > 1) {
      keys_.read<true>(call_, n_, g_, key_, count_, room_);
      pack_transposed(call_.value, call_.type, n_, g_, key_, count_, call_.E, values_, room_, watch_);
    }
  }

  void run_head(int64_t i, Span rows) {
    h_ = g_ * shared_ + i;
    const int64_t head = call_.vector_head ? h_ : 0;
    if (head != vector_of_) vector_.prepare(call_.vector + h_ * call_.vector_head, call_.D);
    vector_of_ = head;
    std::fill(grad_panels_, grad_panels_ + keys_.count * PANEL, 0.0f);
    std::fill(grad_vector_, grad_vector_ + wide_, 0.0f);
    for (int64_t row = rows.first; row < rows.last; row += ROWS)
      meet(row, std::min(ROWS, rows.last - row), to_query_ + i * call_.T * wide_, delta_ + i * call_.T);
    for (int64_t m = 0; m < keys_.count; m++) {
      const vf by = load(vector_.plain + m * W);
      for (int64_t j = 0; j < count_; j++) {
        float* to = grad_key_ + j * wide_ + m * W;
        store(to, load(to) + by * load(grad_panels_ + m * PANEL + j * W));
      }
    }
    double* to_vector = to_vector_.data() + head * call_.D;
    for (int64_t d = 0; d < call_.D; d++) to_vector[d] += grad_vector_[d];
  }

  // Queries [row, row + rows) of the head and the block's keys.
  void meet(int64_t row, int64_t rows, float* to_query, const float* delta) {
    const Span all = cut_spans(call_, n_, row, rows, {key_, key_ + count_}, spans_);
    if (all.empty()) return;
    queries_.read(call_, n_, h_, row, rows);
    const Form form = score(rows);
    weigh(row, rows, delta + row);
    const bool factorised = form == Form::quads || form == Form::pairs;
    if (!factorised && !plain_) plain_keys_.read<false>(call_, n_, g_, key_, count_, room_), plain_ = true;
    std::fill(grad_rows_, grad_rows_ + rows * wide_, 0.0f);
    const SlopeBlock block{factorised ? queries_.half : queries_.plain,
                           factorised ? keys_ : plain_keys_,
                           slopes_,
                           rows,
                           grad_rows_,
                           grad_panels_,
                           grad_vector_};
    if (factorised) add_slopes<Form::quads>(block, spans_, key_);
    else if (form == Form::small) add_slopes<Form::small>(block, spans_, key_);
    else add_slopes<Form::direct>(block, spans_, key_);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t d = 0; d < wide_; d += W) {
        float* to = to_query + (row + r) * wide_ + d;
        store(to, load(to) + load(vector_.plain + d) * load(grad_rows_ + r * wide_ + d));
      }
  }

  // Scores of the block into weights_.
  Form score(int64_t rows) {
    const Form form = call_.T == 1 ? Form::direct : vector_.form(queries_.top, keys_.top);
    if (form == Form::quads || form == Form::pairs) queries_.factorise(rows, vector_.inverse);
    all_scores(form, vector_, queries_, keys_, call_, n_, g_, rows, key_, count_, spans_, {weights_, KEYS}, room_);
    return form;
  }

  // Scores become weights, as they met the values, and slopes_ the scores' gradients; the values' gradients take their share.
  void weigh(int64_t row, int64_t rows, const float* delta) {
    grad_weights(row, rows);
    if (bias_) bias_.begin(n_, h_, row, rows, key_);
    for (int64_t r = 0; r < rows; r++) {
      soften(row + r, spans_[r], delta[r], weights_ + r * KEYS, slopes_ + r * KEYS);
      if (bias_) bias_.add(row + r, slopes_ + r * KEYS, 0, count_);
    }
    if (bias_) bias_.end();
    pack_panels(call_.grad_output, call_.type, n_, h_, row, rows, call_.E, grad_output_panels_, room_, watch_);
    product<true>(count_, call_.E, 0, rows, rows, {weights_, 1, KEYS}, grad_output_panels_, grad_value_, width_);
  }

  // slopes_ = grad o value'
  void grad_weights(int64_t row, int64_t rows) {
    if (call_.T > 1) {
      pack_rows(call_.grad_output, call_.type, n_, h_, row, rows, call_.E, 1.0f, grad_output_, room_, watch_);
      return whole_product(rows, count_, call_.E, {grad_output_, call_.E, 1}, values_, slopes_, KEYS);
    }
    const int64_t wide = vectors(call_.E) * W;
    const float* grad = whole_row(call_.grad_output, call_.type, n_, h_, row, call_.E, values_);
    for (int64_t j = 0; j < count_; j += 4) {
      vf sum[4] = {};
      for (int64_t c = 0; c < 4; c++) {
        const float* value = whole_row(call_.value, call_.type, n_, g_, key_ + std::min(j + c, count_ - 1), call_.E, room_);
        for (int64_t e = 0; e < wide; e += W) sum[c] += load(grad + e) * load(value + e);
      }
      *(v4_loose*)(slopes_ + j) = sums_of(sum);
    }
  }

  // One row: s from scores to weights, dropped where they were; t from grad o value' to the scores' gradients.
  void soften(int64_t i, Span keys, float delta, float* s, float* t) {
    const int64_t row = (n_ * call_.H + h_) * call_.T + i, first = keys.first - key_, last = keys.last - key_;
    // p = e^(score - m) / sum_j e^(score_j - m): lse would bring its own rounding.
    const float m = call_.rows ? call_.rows[2 * row] : call_.lse[row], inverse = call_.rows ? call_.rows[2 * row + 1] : 1.0f;
    if (inverse == 0 || m == -INF || first >= last) {
      std::fill(s, s + KEYS, 0.0f);
      std::fill(t, t + KEYS, 0.0f);
      return;
    }
    add_bias(call_, n_, h_, i, key_, keys, s);
    std::fill(s, s + first, -INF);
    std::fill(s + last, s + KEYS, -INF);
    const bool drop = call_.dropout.rate > 0;
    const uint32_t bits = drop ? dropout_row(row, call_.dropout.seed) : 0;
    for (int64_t j = 0; j < KEYS; j += W) {
      const vf score = load(s + j);
      // Behind a mask the product with a value may have left fp32's range: 0 times it would be NaN.
      vf p = exp2((score - m) * LOG2E) * inverse, grad = score == -INF ? vf{} : load(t + j), weight = p;
      if (drop) {
        uint32_t columns[W];
        for (int c = 0; c < W; c++) columns[c] = dropout_column(key_ + j + c, call_.dropout.seed);
        const vf kept = keep_.kept(bits, columns);
        weight *= kept, grad *= kept;
      }
      store(s + j, weight);
      store(t + j, p * (grad - delta));
    }
    std::fill(t, t + first, 0.0f);
    std::fill(t + last, t + KEYS, 0.0f);
  }

  const Backward& call_;
  BiasGradient bias_;
  const int64_t key_blocks_, begin_, shared_, width_;
  const DropoutRule keep_;
  Scratch scratch_;
  std::vector<double> to_vector_;
  Queries queries_;
  KeyPanels keys_, plain_keys_;
  Vector vector_;
  int64_t wide_ = 0;
  float *room_, *values_, *grad_output_, *grad_output_panels_, *weights_, *slopes_, *grad_rows_, *grad_panels_, *grad_vector_;
  float *grad_key_, *grad_value_, *delta_, *own_, *carried_ = nullptr, *to_query_ = nullptr;
  Span spans_[ROWS];
  Watch watch_;
  bool plain_ = false;  // whether plain_keys_ are those of the block
  int64_t n_ = 0, g_ = 0, h_ = 0, key_ = 0, count_ = 0, vector_of_ = -1;
};

// Cost of each block of keys of key heads [first, last): the queries that may see it.
inline std::vector<int64_t> backward_costs(const Backward& call, int64_t key_blocks, int64_t first_plane, int64_t last_plane) {
  std::vector<int64_t> costs;
  costs.reserve(static_cast<size_t>((last_plane - first_plane) * key_blocks));
  for (int64_t plane = first_plane; plane < last_plane; plane++)
    for (int64_t block = 0; block < key_blocks; block++) {
      const int64_t key = block * KEYS, last = std::min(call.S, key + KEYS);
      const Span rows = rows_of_keys(call, plane / call.G, key, last);
      costs.push_back(16 * KEYS + std::max<int64_t>(0, rows.last - rows.first) * (last - key));
    }
  return costs;
}

}  // namespace limelight::LIMELIGHT_ISA::additive

namespace limelight::LIMELIGHT_ISA {

// Key heads [first_plane, last_plane), shared out to `parts`. `bias(part)`: where a part finds the bias's gradient.
template <class F>
bool additive_backward_planes(const Backward& call, int64_t first_plane, int64_t last_plane, int parts, F bias,
                              std::vector<double>& to_vector) {
  using additive::BackwardPass;
  const int64_t key_blocks = std::max<int64_t>(1, (call.S + additive::KEYS - 1) / additive::KEYS);
  std::vector<int64_t> ends = balanced(additive::backward_costs(call, key_blocks, first_plane, last_plane), parts);
  for (int64_t& end : ends) end += first_plane * key_blocks;
  std::vector<std::unique_ptr<BackwardPass>> passes(static_cast<size_t>(parts));
  in_parallel(parts, [&](int part) {
    const int64_t begin = ends[static_cast<size_t>(part)], end = ends[static_cast<size_t>(part) + 1];
    if (begin == end) return;
    passes[static_cast<size_t>(part)] = std::make_unique<BackwardPass>(call, key_blocks, begin, bias(part));
    for (int64_t unit = begin; unit < end; unit++) passes[static_cast<size_t>(part)]->run(unit);
  });
  bool clean = true;
  BackwardPass* owner = nullptr;  // of the key head that is still open
  for (int part = 0; part < parts; part++) {
    BackwardPass* pass = passes[static_cast<size_t>(part)].get();
    if (!pass) continue;
    for (size_t d = 0; d < to_vector.size(); d++) to_vector[d] += pass->to_vector()[d];
    const int64_t begin = ends[static_cast<size_t>(part)], end = ends[static_cast<size_t>(part) + 1];
    const int64_t plane = begin / key_blocks, plane_end = (plane + 1) * key_blocks;
    if (begin % key_blocks != 0) {
      owner->add(pass->carried());
      if (end >= plane_end) owner->finish_plane(plane);
    }
    if (begin % key_blocks == 0 || end > plane_end) owner = pass;
  }
  for (const auto& pass : passes) clean = clean && (!pass || pass->clean());
  return clean;
}

inline bool additive_backward(const Backward& call) {
  const int64_t key_blocks = std::max<int64_t>(1, (call.S + additive::KEYS - 1) / additive::KEYS), planes = call.N * call.G;
  if (planes == 0) return true;
  const double cost = pairs_of(call) * (0.3 * call.D + 0.06 * call.E);
  const int most = additive::parts_for(call, planes * key_blocks, cost);
  BiasPlan bias(call, most);
  const int64_t each = planes / bias.rounds;
  const int parts = std::min(most, additive::parts_for(call, each * key_blocks, cost / bias.rounds));
  std::vector<double> to_vector(static_cast<size_t>(call.vector_head ? call.H * call.D : call.D), 0.0);
  bool clean = true;
  for (int64_t plane = 0; plane < planes; plane += each)
    clean &= additive_backward_planes(call, plane, plane + each, parts, [&](int part) { return bias.origin(part); }, to_vector);
  bias.finish();
  for (size_t d = 0; d < to_vector.size(); d++) call.grad_vector[d] += static_cast<float>(to_vector[d]);
  return clean;
}

}  // namespace limelight::LIMELIGHT_ISA
