// What a call to a kernel holds: plain arguments, the same for CPUs and GPUs.
#pragma once

#include <stdint.h>

namespace kd_calls {

enum class DType : int { float32, float16, bfloat16, float64 };

static inline int64_t item_bytes(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

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
  const void *table; // (orders, width), Real, or null
  int64_t orders, width;
};

// Row sums over softmax(student), softmax(teacher), a label and the class's row of `class_mean` (data may be null).
struct Trilateral {
  Matrix student, teacher, class_mean, gradient; // gradient: backward only
  const int64_t *labels;
  void *distances;      // Real (rows, 3), with a class mean (rows, 5); backward reads them
  void *statistics;     // Real (rows, kStatistics), null where no backward will follow
  const void *upstream; // Real, like distances; backward only
  int64_t rows, vocab, ignore_index;
  bool squared;
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

} // namespace kd_calls
