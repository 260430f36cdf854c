// One softmaxed row while it is walked: block by block, each block's exponentials relative to that block's own maximum,
// so that a row of any length leaves memory once and only scalars are merged.
#pragma once

#include "blocks.inl"

namespace KD_NAMESPACE {

template <class Real> struct Side {
  const Matrix *matrix;
  Real scale;         // 1 / temperature
  Real *exponentials; // (padded vocab)
  Real *shifts;       // (blocks): the block's maximum, -inf where it holds nothing else
  double largest, sum, log_sum;

  void start() {
    largest = -kInfinity;
    sum = 0;
  }

  void take(int64_t block, const Real *x, int64_t count) {
    const Real top = KD_NAMESPACE::largest(x, count);
    const bool empty = top == -kInfinity; // nothing to shift by; the sum is 0, or NaN if the block holds one
    const double part = exponentiate(x, count, empty ? Real(0) : top, scale, exponentials + block * kBlock);
    shifts[block] = top;
    if (block == 0 || empty) {
      sum += part; // an empty block adds 0, or NaN
      largest = top > largest ? top : largest;
    } else if (top > largest) {
      sum = sum * __builtin_exp((largest - top) * scale) + part;
      largest = top;
    } else {
      sum += part * __builtin_exp((top - largest) * scale);
    }
  }

  void finish() { log_sum = __builtin_log(sum); }

  // What turns the block's exponentials into probabilities; NaN for a row that is -inf throughout or holds a NaN.
  Real probability(int64_t block) const {
    if (shifts[block] == -kInfinity)
      return static_cast<Real>(0.0 / sum);
    return static_cast<Real>((shifts[block] == largest ? 1.0 : __builtin_exp((shifts[block] - largest) * scale)) / sum);
  }
};

} // namespace KD_NAMESPACE
