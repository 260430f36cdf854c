// One softmaxed row while it is walked: block by block, so that a row of any length leaves memory once and only scalars
// are merged. A block's exponentials are relative to a base, the largest logit when the base was last chosen: float has
// room for later logits to exceed it, so that a block needs no walk of its own for its largest.
#pragma once

#include "blocks.inl"

namespace KD_NAMESPACE {

// How far, in units of the temperature, a logit may exceed the base: e^16 times a row of any length is far from
// overflow.
constexpr double kHeadroom = 16;

template <class Real> struct Side {
  const Matrix *matrix;
  Real scale;         // 1 / temperature
  Real *exponentials; // (padded vocab)
  Real *bases;        // (blocks): what the block's exponentials are relative to, -inf where all logits so far were
  double base, largest, sum, log_sum; // sum: relative to base; log_sum: relative to the largest

  void start() {
    base = largest = -kInfinity;
    sum = 0;
  }

  void take(int64_t block, const Real *x, int64_t count) {
    Real *e = exponentials + block * kBlock, top = -kInfinity;
    double part = 0;
    if (base > -kInfinity)
      part = exponentiate(x, count, static_cast<Real>(base), scale, e, top);
    if (!((top - base) * scale <= kHeadroom)) { // also where there is no base yet
      top = KD_NAMESPACE::largest(x, count);
      const bool empty = top == -kInfinity; // nothing to be relative to; the sum is 0, or NaN if the block holds one
      part = exponentiate(x, count, empty ? Real(0) : top, scale, e, top);
      if (base > -kInfinity)
        sum *= __builtin_exp((base - top) * scale);
      base = top;
    }
    bases[block] = static_cast<Real>(base);
    sum += part;
    largest = top > largest ? top : largest;
  }

  void finish() { log_sum = __builtin_log(sum) + (base - largest) * scale; }

  // 1 / sum e^((x - largest) scale); NaN as below.
  Real share() const { return static_cast<Real>(__builtin_exp((largest - base) * scale) / sum); }

  // What turns the block's exponentials into probabilities; NaN for a row that is -inf throughout or holds a NaN.
  Real probability(int64_t block) const {
    if (bases[block] == -kInfinity)
      return static_cast<Real>(0.0 / sum);
    return static_cast<Real>((bases[block] == base ? 1.0 : __builtin_exp((bases[block] - base) * scale)) / sum);
  }
};

} // namespace KD_NAMESPACE
