// What the kernels take: plain structs of pointers, strides and sizes, and the table of kernels of one instruction set.
// Shape letters: N leading axes folded into one, H query heads, G key/value heads, T queries, S keys, D and E widths.
#pragma once

#include <cstdint>

namespace limelight {

enum class Type : int32_t { f32 = 0, bf16 = 1, f16 = 2 };

// A tensor [N, heads, rows, columns] in memory as it comes; strides in elements, 0 where an axis is broadcast.
struct Tensor {
  void* data = nullptr;
  int64_t n = 0, head = 0, row = 0, column = 1;
};

// Who may attend to whom: key j of query i is allowed if i + low <= j <= i + high, j < lengths[n],
// first[n, i] <= j < last[n, i], and dense[n, h, i, j]. What is null or at its widest allows everything.
struct Mask {
  static constexpr int64_t far = int64_t{1} << 40;
  int64_t low = -far, high = far;
  const int64_t* lengths = nullptr;                 // [N]
  const int32_t *first = nullptr, *last = nullptr;  // [N, T]
  Tensor dense;                                     // bytes
};

struct Dropout {
  double rate = 0;
  uint64_t seed = 0;
};

// What is common to the passes.
struct Call {
  int64_t N, H, G, T, S, D, E;
  Type type = Type::f32;           // of query, key, value, output and their gradients
  Tensor query, key, value, bias;  // bias: fp32, added to the scores
  Mask mask;
  Dropout dropout;
  float scale = 1;                // of dot scores
  float cap = 0;                  // of dot scores: s becomes cap tanh(s / cap), before bias and mask; 0: it stays s
  const float* vector = nullptr;  // of additive scores: [D], or [H, D] with vector_head = D
  int64_t vector_head = 0;
  const float* sink = nullptr;  // [N, H] with these strides: one more logit of each row, which gives no value
  int64_t sink_n = 0, sink_head = 0;
  int32_t threads = 1;
};

// The matrix pooled to rows x columns cells (gathered.h): of each cell the sum of its weights, or the largest.
struct Pooled {
  float* to = nullptr;  // [N, H, rows, columns], set to 0 by the caller
  int64_t rows = 0, columns = 0;
  bool largest = false;
};

// What is gathered beside the output; what is null is not.
struct Observed {
  float* entropy = nullptr;           // [N, H, T], nats
  float* distance = nullptr;          // [N, H, T]: the mean |i + S - T - j| of the keys, by weight
  float* received = nullptr;          // [N, H, S], set to 0 by the caller
  const float* row_weight = nullptr;  // [N, H, T], of received; null: 1
  int64_t* top_index = nullptr;       // [N, H, T, top]
  float* top_weight = nullptr;
  int32_t top = 0;
  const int64_t* chosen = nullptr;  // queries whose weights are wanted, ascending, each once
  int64_t chosen_count = 0;
  float* chosen_weight = nullptr;  // [N, H, chosen_count, S], set to 0 by the caller
  Pooled pooled;
  float* mean = nullptr;  // [N, T, S]: the mean of the weights over the heads, set to 0 by the caller; alone, of dot scores
};

struct Forward : Call {
  Tensor output;           // [N, H, T, E]
  float* lse = nullptr;    // [N, H, T]
  float* rows = nullptr;   // [N, H, T, 2]: each row's largest score m and 1 / sum_j e^(s_j - m), 0 and 0 of an empty row
  float* exact = nullptr;  // [N, H, T, E]: the output before it is rounded to bf16 or f16
  Observed seen;
};

struct Backward : Call {
  Tensor output, grad_output;                   // output, fp32, is read only for the row sums of output * grad_output
  const float *lse = nullptr, *rows = nullptr;  // as the forward pass left them
  const float* grad_lse = nullptr;              // [N, H, T] or null
  Tensor grad_query, grad_key, grad_value;
  // fp32, set to 0 by the caller, or null: strides 0 where the bias is broadcast; a row stride of -1: a number per distance
  // j - i. It lies in `bias_size` floats, pair (0, 0) of batch entry 0 and head 0 at `bias_origin`.
  Tensor grad_bias;
  int64_t bias_size = 0, bias_origin = 0;
  float* grad_vector = nullptr;  // additive: as `vector`, set to 0 by the caller
};

// The columns of packed weights stand in groups of so many, the last one filled up, whatever the instruction set.
constexpr int64_t WEIGHT_PANEL = 64;

// A weight [columns, depth], fp32, to be packed into as many floats, the columns rounded up to a multiple of WEIGHT_PANEL.
struct Packing {
  const float* weight = nullptr;
  float* packed = nullptr;
  int64_t columns = 0, depth = 0, stride = 0;
  int32_t threads = 1;
};

// Scores W x + b of rows x [rows, depth], fp32; columns < 2^31. `packed` is W as `pack_weight` left it, `bias` is b, -inf beyond
// the columns up to a multiple of WEIGHT_PANEL. Of each row: log sum_j e^(s_j), and the `top` largest scores with their
// columns, the largest first, of equal ones the lower column first.
struct RowScores {
  const float *features = nullptr, *packed = nullptr, *bias = nullptr;
  int64_t rows = 0, columns = 0, depth = 0, stride = 0;
  float* lse = nullptr;      // [rows]
  float* value = nullptr;    // [rows, top]
  int64_t* index = nullptr;  // [rows, top]
  int32_t top = 1, threads = 1;
};

// Logits z [rows, columns] of an output layer, their bias b left out, fp32, become the gradient of their cross-entropy with
// the columns y: softmax(z + b) - kept [v = y]. `likelihood` of a row is -log softmax(z + b)_y; the gradient's sums over rows
// are those of `sums`, [threads, columns], which the caller sets to 0.
struct CrossEntropy {
  float* logits = nullptr;
  const float* bias = nullptr;
  const int64_t* target = nullptr;  // [rows], in [0, columns)
  int64_t rows = 0, columns = 0;
  float kept = 1;
  float *likelihood = nullptr, *sums = nullptr;
  int32_t threads = 1;
};

// Numbers times 1 / (1 - rate), or 0 where dropped, which their place and the seed decide.
struct ActivationDropout {
  const float* from = nullptr;
  float* to = nullptr;
  int64_t count = 0;
  double rate = 0;
  uint64_t seed = 0;
  int32_t threads = 1;
};

// One table per instruction set. Each kernel returns false, its results then being of no use, where NaN or inf stands
// in what it read: the caller then takes a slower road that keeps them behind the mask.
struct Kernels {
  const char* isa;
  bool (*dot_forward)(const Forward&);
  bool (*dot_backward)(const Backward&);
  bool (*additive_forward)(const Forward&);
  bool (*additive_backward)(const Backward&);
  void (*pack_weight)(const Packing&);
  bool (*strongest_rows)(const RowScores&);
  void (*cross_entropy)(const CrossEntropy&);
  void (*activation_dropout)(const ActivationDropout&);
  double (*multiply_add_peak)(int threads, double seconds);
};

}  // namespace limelight
