// The softmax schedule for short rows: kLanes rows at once, one per vector lane, as in short.inl.
#pragma once

#include "short.inl"

namespace KD_NAMESPACE {

using kd_cpu::Softmax;

// Logits become probabilities, or their logarithms. The sum lies in [1, columns], or is NaN: so is its row then.
template <class Real, bool Log>
static void normalise_lanes(int64_t vocab, Real scale, const Columns<Real> &exponentials, const Real (&largest)[kLanes],
                            const Real (&sum)[kLanes], Columns<Real> &x) {
  Real share[kLanes], log_sum[kLanes];
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row)
    share[row] = 1 / sum[row], log_sum[row] = log(sum[row]);
  for (int64_t v = 0; v < vocab; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row)
      x[v][row] = Log ? (x[v][row] - largest[row]) * scale - log_sum[row] : exponentials[v][row] * share[row];
}

template <class Real> struct SoftmaxGroup {
  using Number = Real;
  Columns<Real> x, exponentials;
  Real largest[kLanes], sum[kLanes];
  Staged<Real> staged;
};

template <class Real, bool Log>
static void short_softmax(const Softmax &call, int64_t begin, int64_t end, void *scratch) {
  auto &[x, exponentials, largest, sum, staged] = group_in<SoftmaxGroup<Real>>(scratch);
  const Real scale = static_cast<Real>(call.inverse_temperature);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    const auto at = [=](int64_t row) { return first + row; };
    read_lanes(call.input, call.vocab, [=](int64_t row) { return row < rows; }, at, staged, x);
    complete_turn<Real>(call.vocab, -kInfinity, x);
    exponentiate_lanes(x, call.vocab, scale, exponentials, largest, sum);
    normalise_lanes<Real, Log>(call.vocab, scale, exponentials, largest, sum, x);
    write_lanes(x, call.output, first, rows, call.vocab, staged);
  }
}

} // namespace KD_NAMESPACE
