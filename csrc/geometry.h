// The trilateral distances of one row: from its sums, and back from an upstream gradient. Written once for all C++
// schedules; what is walked is theirs.
//
// S and P are the softmax of the student and the teacher, G the one-hot label y, M the label's class mean. Sums run
// over the columns other than y. At y, 1 - S_y is the sum of the other S, and S_y - P_y is taken from whichever of the
// two forms is not a difference of numbers near 1: a confident student's distance must not drown in their rounding.
#pragma once

#include "math.h"

namespace KD_NAMESPACE {

// What forward leaves for backward, per row: max z, 1 / sum e^(z - max z), the same two of the teacher, 1 - S_y,
// S_y - P_y, S_y - M_y, and the sums of S S, S (S - P) and S (S - M).
constexpr int kStatistics = 10;

KD_FN float square_root(float x) { return __builtin_sqrtf(x); }
KD_FN double square_root(double x) { return __builtin_sqrt(x); }

// Sums over the columns other than the label's, and what the label's own holds.
template <class Real> struct TrilateralSums {
  Real q, p, qq, pp, q_less_p, squared_q_less_p; // q_less_p: S (S - P), squared: (S - P)^2
  Real mm, q_less_m, squared_q_less_m;
  Real label_q, label_p, label_m; // S_y, P_y, M_y

  KD_FN bool confident() const { return q < Real(0.5); }
  KD_FN Real label_q_less_p() const { return confident() ? p - q : label_q - label_p; }
  KD_FN Real label_q_less_m() const { return confident() ? (1 - label_m) - q : label_q - label_m; }
};

// (|S - G|, |P - G|, |S - P|) and with a class mean (|S - M|, |M - G|), or their squares.
template <class Real>
KD_FN void trilateral_distances(const TrilateralSums<Real> &sums, bool with_mean, bool squared, Real *distances) {
  const Real teacher = sums.label_q_less_p(), mean = sums.label_q_less_m(), rest = 1 - sums.label_m;
  const Real squares[5] = {sums.qq + sums.q * sums.q, sums.pp + sums.p * sums.p,
                           sums.squared_q_less_p + teacher * teacher, sums.squared_q_less_m + mean * mean,
                           sums.mm + rest * rest};
  KD_UNROLL
  for (int k = 0; k < 5; ++k)
    if (k < 3 || with_mean)
      distances[k] = squared ? squares[k] : square_root(squares[k]);
}

// The gradient of a row: dL/dz_v = S_v ((w_v - reference) - average), w the sum of the upstreams times their unit
// vectors and average = <S, w - reference>. Where the label has most of the student's mass, all w are taken relative to
// its own, which is what the small rest has to be compared with. Differences of probabilities come before their
// products with 1 / distance.
template <class Real> struct TrilateralPull {
  Real label, teacher, mean, at_label, reference, average;

  KD_FN Real operator()(Real q, Real p, Real m) const {
    return q * (((label * q + teacher * (q - p) + mean * (q - m)) - reference) - average);
  }
  KD_FN Real of_label(Real q) const { return q * ((at_label - reference) - average); }
};

// Below this the square of a distance has lost its digits to underflow, and a quotient by it would overflow.
KD_FN float smallest_distance(float) { return 1e-18f; }
KD_FN double smallest_distance(double) { return 1e-150; }

// What multiplies a difference of probabilities: 0 where the distance is 0, as torch does for norms, or nearly.
template <class Real> KD_FN Real pull_of(Real upstream, Real distance, bool squared) {
  return squared ? 2 * upstream : distance < smallest_distance(distance) ? 0 : upstream / distance;
}

// label_q: S_y.
template <class Real>
KD_FN TrilateralPull<Real> trilateral_pull(const Real *statistics, const Real *distances, const Real *upstream,
                                           Real label_q, bool with_mean, bool squared) {
  const Real label = pull_of(upstream[0], distances[0], squared), teacher = pull_of(upstream[2], distances[2], squared);
  const Real mean = with_mean ? pull_of(upstream[3], distances[3], squared) : 0, rest = statistics[4];
  const Real at_label = -label * rest + teacher * statistics[5] + mean * statistics[6];
  const Real reference = rest < Real(0.5) ? at_label : 0;
  const Real average = label * statistics[7] + teacher * statistics[8] + mean * statistics[9] - reference * rest +
                       label_q * (at_label - reference);
  return {label, teacher, mean, at_label, reference, average};
}

} // namespace KD_NAMESPACE
