// How a call is cut up and shared out: threads, scratch memory, and the keys that a row may see.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace limelight::LIMELIGHT_ISA {

// Run f(part) for part 0 .. parts - 1, each once, on as many threads; which thread runs a part changes no result.
template <class F>
void in_parallel(int parts, F f) {
  if (parts <= 1) return f(0);
  std::exception_ptr thrown;  // none may leave a parallel region
#pragma omp parallel num_threads(parts)
  try {
    for (int part = omp_get_thread_num(); part < parts; part += omp_get_num_threads()) f(part);
  } catch (...) {
#pragma omp critical(limelight_thrown)
    thrown = std::current_exception();
  }
  if (thrown) std::rethrow_exception(thrown);
}

// Aligned memory of a thread that is kept from call to call, up to a limit: page faults cost more than small kernels.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : size_(floats) {
    if (watched) return;
    if (floats <= kept_limit) {
      thread_local Kept kept;
      if (!kept.busy) {
        kept.grow(floats);
        kept.busy = true;
        data_ = kept.data;
        kept_ = &kept;
        return;
      }
    }
    data_ = allocate(floats);
  }
  ~Scratch() {
    if (kept_) kept_->busy = false;
    else std::free(data_);
    for (float* piece : pieces_) std::free(piece);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The next `floats` floats, on a cache line of their own.
  float* take(int64_t floats) {
    const int64_t at = used_;
    used_ += room(floats);
    if (!watched) return data_ + at;
    if (used_ > size_) throw std::length_error("scratch memory: more is taken than was asked for");
    pieces_.push_back(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(room(floats) * 4))));
    return pieces_.back();
  }
  static int64_t room(int64_t floats) { return (floats + 15) / 16 * 16; }

 private:
  static constexpr int64_t kept_limit = int64_t{1} << 20;  // 4 MiB
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool watched = true;  // every piece is a block of its own: a step beyond it is seen
#else
  static constexpr bool watched = false;
#endif
  struct Kept {
    float* data = nullptr;
    int64_t size = 0;
    bool busy = false;
    void grow(int64_t floats) {
      if (floats <= size) return;
      std::free(data);
      data = nullptr;
      size = 0;
      data = allocate(floats);
      size = floats;
    }
    ~Kept() { std::free(data); }
  };
  static float* allocate(int64_t floats) {
    void* p = std::aligned_alloc(64, static_cast<size_t>(room(floats) * 4 + 64));
    if (!p) throw std::bad_alloc();
    return static_cast<float*>(p);
  }
  float* data_ = nullptr;
  Kept* kept_ = nullptr;
  int64_t size_, used_ = 0;
  std::vector<float*> pieces_;  // where they are watched
};

struct Span {
  int64_t first, last;  // [first, last)
  bool empty() const { return first >= last; }
};

// The keys that query i of batch entry n may see, `dense` left aside: an interval.
LL_INLINE Span keys_of_row(const Call& call, int64_t n, int64_t i) {
  const Mask& mask = call.mask;
  Span span{std::max<int64_t>(0, i + mask.low), std::min(call.S, i + mask.high + 1)};
  if (mask.lengths) span.last = std::min(span.last, mask.lengths[n]);
  if (mask.first) {
    span.first = std::max<int64_t>(span.first, mask.first[n * call.T + i]);
    span.last = std::min<int64_t>(span.last, mask.last[n * call.T + i]);
  }
  return span;
}

// The smallest interval that holds the keys of all queries in [first, last).
inline Span keys_of_rows(const Call& call, int64_t n, int64_t first, int64_t last) {
  if (!call.mask.first) {  // both ends rise with the row
    const Span low = keys_of_row(call, n, first), high = keys_of_row(call, n, last - 1);
    return {low.first, high.last};
  }
  Span all{call.S, 0};
  for (int64_t i = first; i < last; i++) {
    const Span one = keys_of_row(call, n, i);
    if (one.empty()) continue;
    all = {std::min(all.first, one.first), std::max(all.last, one.last)};
  }
  return all;
}

// The queries that may see any key in [first, last): an interval.
inline Span rows_of_keys(const Call& call, int64_t n, int64_t first, int64_t last) {
  const Mask& mask = call.mask;
  if (mask.lengths) last = std::min(last, mask.lengths[n]);
  if (last <= first) return {0, 0};
  Span rows{std::max<int64_t>(0, first - mask.high), std::min(call.T, last - mask.low)};
  if (!mask.first) return rows;
  Span all{call.T, 0};
  for (int64_t i = rows.first; i < rows.last; i++) {
    const Span keys = keys_of_row(call, n, i);
    if (keys.first >= last || keys.last <= first || keys.empty()) continue;
    all = {std::min(all.first, i), i + 1};
  }
  return all;
}

// Pairs of a query and a key: for long sequences with a narrow window more than 64 bits count, times a width.
inline double pairs_of(const Call& call) { return static_cast<double>(call.N) * call.H * call.T * call.S; }

// Threads worth starting: one more for every `each` of the work.
inline int threads_for(const Call& call, double work, double each = 200000) {
  return static_cast<int>(std::clamp<double>(1 + work / each, 1, std::max(1, call.threads)));
}

// Whether so many units of equal cost leave more than a tenth of the threads' time unused.
inline bool uneven(int64_t units, int64_t threads) { return (units + threads - 1) / threads * threads - units > units / 10; }

// Cut [0, costs.size()) into `parts` stretches of about equal cost; returns their parts + 1 ends.
inline std::vector<int64_t> balanced(const std::vector<int64_t>& costs, int parts) {
  int64_t total = 0, done = 0;
  for (int64_t cost : costs) total += cost;
  std::vector<int64_t> ends(static_cast<size_t>(parts) + 1, static_cast<int64_t>(costs.size()));
  ends[0] = 0;
  int part = 1;
  for (size_t i = 0; i < costs.size() && part < parts; i++) {
    done += costs[i];
    while (part < parts && done * parts >= total * part) ends[static_cast<size_t>(part++)] = static_cast<int64_t>(i) + 1;
  }
  return ends;
}

}  // namespace limelight::LIMELIGHT_ISA
