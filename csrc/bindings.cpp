// The Python module limelight._native. A call arrives as one flat tuple of numbers, in the order of `read` below:
// a tuple costs a microsecond to unpack, tensor objects would cost ten.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "dispatch.h"
#include "dlpack.h"

namespace nb = nanobind;

namespace {

using limelight::Backward;
using limelight::Call;
using limelight::Forward;
using limelight::Observed;
using limelight::Tensor;

// The numbers of a tuple one after the other; one that ends too soon, or does not end, is no call.
class Numbers {
 public:
  explicit Numbers(nb::tuple from) : from_(from), count_(nb::len(from)) {}
  int64_t whole() { return nb::cast<int64_t>(next()); }
  double real() { return nb::cast<double>(next()); }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(nb::cast<uint64_t>(next())));
  }
  Tensor tensor() {
    Tensor t;
    t.data = pointer<void>();
    t.n = whole(), t.head = whole(), t.row = whole(), t.column = whole();
    return t;
  }
  bool more() const { return place_ < count_; }
  void end() const {
    if (more()) refuse();
  }

 private:
  [[noreturn]] static void refuse() { throw std::invalid_argument("limelight._native: a call of another length"); }
  nb::handle next() {
    if (!more()) refuse();
    return from_[place_++];
  }

  nb::tuple from_;
  size_t count_, place_ = 0;
};

void read(Numbers& from, limelight::Mask& mask) {
  mask.low = from.whole(), mask.high = from.whole();
  mask.lengths = from.pointer<int64_t>();
  mask.first = from.pointer<int32_t>(), mask.last = from.pointer<int32_t>();
  mask.dense = from.tensor();
}

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
  read(from, call.mask);
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
  if (from.more()) seen.mean = from.pointer<float>();
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

// A dot product with nothing besides but a mask: whether its tensors can be read and fit, and the call is now in `call`.
bool plain(const limelight::Reader& reader, nb::handle query, nb::handle key, nb::handle value, Call& call) {
  limelight::Borrowed q, k, v;
  if (!reader.read(query, q) || !reader.read(key, k) || !reader.read(value, v)) return false;
  call.N = q.size[0], call.H = q.size[1], call.T = q.size[2], call.D = q.size[3];
  call.G = k.size[1], call.S = k.size[2], call.E = v.size[3];
  call.type = q.type;
  if (k.type != q.type || v.type != q.type || !v.is(call.N, call.G, call.S, call.E) || !k.is(call.N, call.G, call.S, call.D))
    return false;
  constexpr int64_t most_width = int64_t{1} << 16, most_keys = (int64_t{1} << 31) - 1;
  constexpr double most_numbers = 281474976710656.0;  // 2^48
  const double heads = static_cast<double>(call.N) * static_cast<double>(call.H);
  const double length = static_cast<double>(std::max(call.T, call.S)), width = static_cast<double>(std::max(call.D, call.E));
  if (call.N < 1 || call.G < 1 || call.H < call.G || call.H % call.G || call.T < 1 || call.S < 1 || call.D < 1 || call.E < 1)
    return false;
  if (std::max(call.D, call.E) > most_width || call.S > most_keys || heads * length * width > most_numbers) return false;
  call.query = q.tensor, call.key = k.tensor, call.value = v.tensor;
  return true;
}

// What else a plain call is: scale, mask and threads.
void read(double scale, nb::tuple mask, int threads, Call& call) {
  call.scale = static_cast<float>(scale);
  Numbers from(mask);
  if (from.more()) read(from, call.mask);
  from.end();
  call.threads = threads;
}

// Whether the object is a tensor of that type and size, which is now in `to`.
bool fits(const limelight::Reader& reader, nb::handle object, limelight::Type type, int64_t n, int64_t heads, int64_t rows,
          int64_t columns, Tensor& to) {
  limelight::Borrowed found;
  if (!reader.read(object, found) || found.type != type || !found.is(n, heads, rows, columns)) return false;
  to = found.tensor;
  return true;
}

float* floats(uint64_t address) { return reinterpret_cast<float*>(static_cast<uintptr_t>(address)); }

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
      "plain_dot",
      [](nb::handle query, nb::handle key, nb::handle value, nb::handle output, double scale, nb::tuple mask, int threads,
         uint64_t lse, uint64_t rows, uint64_t exact, nb::tuple observed) {
        static const limelight::Reader reader(query.type());
        Forward call;
        if (!plain(reader, query, key, value, call)) return false;
        if (!fits(reader, output, call.type, call.N, call.H, call.T, call.E, call.output)) return false;
        read(scale, mask, threads, call);
        call.lse = floats(lse), call.rows = floats(rows), call.exact = floats(exact);
        Numbers from(observed);
        if (from.more()) read(from, call.seen);
        from.end();
        return run(limelight::kernels().dot_forward, call);
      },
      nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg() = 0, nb::arg() = 0, nb::arg() = 0,
      nb::arg() = nb::make_tuple(),
      "Run softmax(scale q k') v, tensors [N, H, T, D], [N, G, S, D], [N, G, S, E] into output [N, H, T, E]; then, in this\n"
      "order, scale, the mask as in the tuple of dot_forward, or (), the threads, the addresses of lse, rows and output in\n"
      "fp32, or 0, and what is observed, as in that tuple. False where that is no such call, or NaN or inf stands in it: output\n"
      "is of no use then.");
  module.def(
      "plain_dot_backward",
      [](nb::handle query, nb::handle key, nb::handle value, nb::handle output, nb::handle grad_output, nb::handle grad_query,
         nb::handle grad_key, nb::handle grad_value, double scale, nb::tuple mask, int threads, uint64_t lse, uint64_t rows,
         uint64_t grad_lse) {
        static const limelight::Reader reader(query.type());
        Backward call;
        if (!plain(reader, query, key, value, call)) return false;
        if (!fits(reader, output, limelight::Type::f32, call.N, call.H, call.T, call.E, call.output) ||
            !fits(reader, grad_output, call.type, call.N, call.H, call.T, call.E, call.grad_output) ||
            !fits(reader, grad_query, call.type, call.N, call.H, call.T, call.D, call.grad_query) ||
            !fits(reader, grad_key, call.type, call.N, call.G, call.S, call.D, call.grad_key) ||
            !fits(reader, grad_value, call.type, call.N, call.G, call.S, call.E, call.grad_value))
          return false;
        read(scale, mask, threads, call);
        call.lse = floats(lse), call.rows = floats(rows), call.grad_lse = floats(grad_lse);
        return run(limelight::kernels().dot_backward, call);
      },
      "The backward pass of plain_dot: its tensors, output in fp32, the gradient of output, room for those of query, key and\n"
      "value, then the numbers as there, and the addresses of lse and rows as it left them and of the gradient of lse, or 0.");
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
