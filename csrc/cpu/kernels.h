// What the instruction sets and the binding agree on: plain arguments, and one table of functions per instruction set.
#pragma once

#include <stdint.h>

namespace kd_cpu {

enum class DType : int { float32, float16, bfloat16, float64 };

inline int64_t item_bytes(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// A (rows, vocab) matrix whose rows are contiguous. Strides in elements.
struct Matrix {
  void *data;
  int64_t stride;
  DType dtype;
};

// Addresses of (rows,) arrays may be null: weights are then 1, labels absent. Real below is double if `wide`.
struct Divergence {
  Matrix student, teacher, gradient; // gradient.data may be null, or the student's
  const int64_t *labels;
  const void *soft_weight, *hard_weight; // Real
  void *values;                          // Real
  int64_t rows, vocab;
  double inverse_temperature, soft_scale, hard_scale;
  double scalar;
  const void *table;
  int64_t orders;
};

struct Softmax {
  Matrix input, upstream, output; // backward reads the forward's output as input and writes the gradient as output
  int64_t rows, vocab;
  double inverse_temperature;
  bool log;
};

struct Scale {
  Matrix gradient;
  const void *factor; // float (double for a float64 gradient), one or `rows` of them
  bool per_row;
  int64_t rows, vocab;
};

// Work on rows [begin, end); `scratch` holds scratch_bytes(vocab, wide) bytes, 64-byte aligned.
struct Kernels {
  const char *name;
  int losses;
  const char *const *loss_names;
  void (*const *divergence)(const Divergence &, int64_t begin, int64_t end, void *scratch); // [loss * 2 + wide]
  void (*softmax[2])(const Softmax &, int64_t begin, int64_t end, void *scratch);           // [wide]
  void (*softmax_backward[2])(const Softmax &, int64_t begin, int64_t end, void *scratch);
  void (*scale[2])(const Scale &, int64_t begin, int64_t end, void *scratch);
};

// Columns are padded to whole blocks of vectors so that no loop has a remainder.
constexpr int64_t kPad = 16;
constexpr int64_t kBlock = 1024; // columns whose logits and exponentials stay in the first-level cache
inline int64_t padded(int64_t vocab) { return (vocab + kPad - 1) / kPad * kPad; }
inline int64_t block_width(int64_t vocab, int64_t block) {
  const int64_t left = vocab - block * kBlock;
  return left < kBlock ? left : kBlock;
}
inline int64_t blocks(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }
// Three rows of exponentials, four block buffers, and the three bases of every block.
inline int64_t scratch_bytes(int64_t vocab, bool wide) {
  return (3 * padded(vocab) + 4 * kBlock + 3 * (blocks(vocab) + kPad)) * (wide ? 8 : 4);
}

extern const Kernels kBaseline;
#ifdef KD_X86
extern const Kernels kAvx2, kAvx512;
#endif

} // namespace kd_cpu
