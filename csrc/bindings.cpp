// The Python module limelight._native. A call arrives as one flat tuple of numbers, in the order of `read` below:
// a tuple costs a microsecond to unpack, tensor objects would cost ten.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dispatch.h"

namespace nb = nanobind;

namespace {

using limelight::Backward;
using limelight::Call;
using limelight::Forward;
using limelight::Observed;
using limelight::Tensor;

// The numbers of a tuple one after the other.
class Numbers {
 public:
  explicit Numbers(nb::tuple from) : from_(from) {}
  int64_t whole() { return nb::cast<int64_t>(from_[place_++]); }
  double real() { return nb::cast<double>(from_[place_++]); }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(nb::cast<uint64_t>(from_[place_++])));
  }
  Tensor tensor() {
    Tensor t;
    t.data = pointer<void>();
    t.n = whole(), t.head = whole(), t.row = whole(), t.column = whole();
    return t;
  }
  bool more() const { return place_ < nb::len(from_); }
  void end() const {
    if (more()) throw std::invalid_argument("limelight._native: a call of another length");
  }

 private:
  nb::tuple from_;
  size_t place_ = 0;
};

void read(Numbers& from, Call& call) {
  call.N = from.whole(), call.H = from.whole(), call.G = from.whole();
  call.T = from.whole(), call.S = from.whole(), call.D = from.whole(), call.E = from.whole();
  call.type = static_cast<limelight::Type>(from.whole());
  call.threads = static_cast<int32_t>(from.whole());
  call.scale = static_cast<float>(from.real());
  call.cap = static_cast<float>(from.real());
  call.dropout.rate = from.real();
  call.dropout.seed = static_cast<uint64_t>(from.whole());
  call.query = from.tensor(), call.key = from.tensor(), call.value = from.tensor(), call.bias = from.tensor();
  call.mask.low = from.whole(), call.mask.high = from.whole();
  call.mask.lengths = from.pointer<int64_t>();
  call.mask.first = from.pointer<int32_t>(), call.mask.last = from.pointer<int32_t>();
  call.mask.dense = from.tensor();
  call.vector = from.pointer<float>();
  call.vector_head = from.whole();
  call.sink = from.pointer<float>();
  call.sink_n = from.whole(), call.sink_head = from.whole();
}

void read(Numbers& from, Observed& seen) {
  seen.entropy = from.pointer<float>();
  seen.distance = from.pointer<float>();
  seen.received = from.pointer<float>();
  seen.row_weight = from.pointer<float>();
  seen.top_index = from.pointer<int64_t>();
  seen.top_weight = from.pointer<float>();
  seen.top = static_cast<int32_t>(from.whole());
  seen.chosen = from.pointer<int64_t>();
  seen.chosen_count = from.whole();
  seen.chosen_weight = from.pointer<float>();
  seen.pooled.to = from.pointer<float>();
  seen.pooled.rows = from.whole(), seen.pooled.columns = from.whole();
  seen.pooled.largest = from.whole() != 0;
}

Forward forward_of(nb::tuple numbers) {
  Numbers from(numbers);
  Forward call;
  read(from, call);
  call.output = from.tensor();
  call.lse = from.pointer<float>();
  call.rows = from.pointer<float>();
  call.exact = from.pointer<float>();
  if (from.more()) read(from, call.seen);
  from.end();
  return call;
}

Backward backward_of(nb::tuple numbers) {
  Numbers from(numbers);
  Backward call;
  read(from, call);
  call.output = from.tensor(), call.grad_output = from.tensor();
  call.lse = from.pointer<float>(), call.rows = from.pointer<float>(), call.grad_lse = from.pointer<float>();
  call.grad_query = from.tensor(), call.grad_key = from.tensor(), call.grad_value = from.tensor();
  call.grad_bias = from.tensor();
  call.bias_size = from.whole(), call.bias_origin = from.whole();
  call.grad_vector = from.pointer<float>();
  from.end();
  return call;
}

limelight::Packing packing_of(nb::tuple numbers) {
  Numbers from(numbers);
  limelight::Packing call;
  call.weight = from.pointer<float>(), call.packed = from.pointer<float>();
  call.columns = from.whole(), call.depth = from.whole(), call.stride = from.whole();
  call.threads = static_cast<int32_t>(from.whole());
  from.end();
  return call;
}

limelight::RowScores row_scores_of(nb::tuple numbers) {
  Numbers from(numbers);
  limelight::RowScores call;
  call.features = from.pointer<float>(), call.packed = from.pointer<float>(), call.bias = from.pointer<float>();
  call.rows = from.whole(), call.columns = from.whole(), call.depth = from.whole(), call.stride = from.whole();
  call.lse = from.pointer<float>();
  call.value = from.pointer<float>();
  call.index = from.pointer<int64_t>();
  call.top = static_cast<int32_t>(from.whole());
  call.threads = static_cast<int32_t>(from.whole());
  from.end();
  return call;
}

limelight::CrossEntropy cross_entropy_of(nb::tuple numbers) {
  Numbers from(numbers);
  limelight::CrossEntropy call;
  call.logits = from.pointer<float>(), call.bias = from.pointer<float>(), call.target = from.pointer<int64_t>();
  call.rows = from.whole(), call.columns = from.whole();
  call.kept = static_cast<float>(from.real());
  call.likelihood = from.pointer<float>(), call.sums = from.pointer<float>();
  call.threads = static_cast<int32_t>(from.whole());
  from.end();
  return call;
}

limelight::ActivationDropout activation_dropout_of(nb::tuple numbers) {
  Numbers from(numbers);
  limelight::ActivationDropout call;
  call.from = from.pointer<float>(), call.to = from.pointer<float>();
  call.count = from.whole();
  call.rate = from.real();
  call.seed = static_cast<uint64_t>(from.whole());
  call.threads = static_cast<int32_t>(from.whole());
  from.end();
  return call;
}

template <class Result, class Kind>
Result run(Result (*kernel)(const Kind&), const Kind& call) {
  nb::gil_scoped_release others_may_run;
  return kernel(call);
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Attention kernels for the CPU. Import torch first: its OpenMP runtime runs them.";
  module.def("isa", &limelight::isa,
             "The instruction set in use, chosen on the first call.\n\n"
             "Raises:\n    RuntimeError: the environment variable LIMELIGHT_ISA names one that cannot run here.");
  module.def("compiled", &limelight::compiled, "The instruction sets that were compiled in, fastest first.");
  module.def("available", &limelight::available, "Those of them that this machine can run, fastest first.");
  module.def(
      "multiply_add_peak",
      [](int threads, double seconds) {
        nb::gil_scoped_release others_may_run;
        return limelight::kernels().multiply_add_peak(std::max(1, threads), seconds);
      },
      nb::arg("threads"), nb::arg("seconds") = 0.2,
      "Multiplications and additions per second, fp32, in registers alone: what benchmarks hold kernels against.");
  const char* about =
      "Run a checked call, given as the flat tuple that limelight.backends.native builds. False where NaN or inf stands in\n"
      "what was read: then the results are of no use.";
  module.def("dot_forward", [](nb::tuple call) { return run(limelight::kernels().dot_forward, forward_of(call)); }, about);
  module.def("dot_backward", [](nb::tuple call) { return run(limelight::kernels().dot_backward, backward_of(call)); }, about);
  module.def(
      "additive_forward", [](nb::tuple call) { return run(limelight::kernels().additive_forward, forward_of(call)); }, about);
  module.def(
      "additive_backward", [](nb::tuple call) { return run(limelight::kernels().additive_backward, backward_of(call)); }, about);
  module.def(
      "pack_weight", [](nb::tuple call) { run(limelight::kernels().pack_weight, packing_of(call)); },
      "A weight in the order in which `strongest_rows` reads it, given as the flat tuple that limelight.backends.rows builds.");
  module.attr("WEIGHT_PANEL") = limelight::WEIGHT_PANEL;
  module.def(
      "strongest_rows", [](nb::tuple call) { return run(limelight::kernels().strongest_rows, row_scores_of(call)); },
      "The largest scores of rows and their log-sum-exp, given as the flat tuple that limelight.backends.rows builds.\n"
      "False where a row holds NaN or +inf or less than that above -inf: then the results are of no use.");
  module.def(
      "cross_entropy", [](nb::tuple call) { run(limelight::kernels().cross_entropy, cross_entropy_of(call)); },
      "Logits become the gradient of their cross-entropy, given as the flat tuple that limelight.backends.rows builds.");
  module.def(
      "activation_dropout", [](nb::tuple call) { run(limelight::kernels().activation_dropout, activation_dropout_of(call)); },
      "Dropout of numbers, given as the flat tuple that limelight.backends.rows builds.");
}
