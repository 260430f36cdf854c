// Logarithms against a mixture m = weight p + (1 - weight) q, relative to the larger of p and q: the argument of log
// lies in [weight of the larger, 1], nothing overflows, and p = q gives exact zeros. NaN where p = q = 0
// and, by the order of minimum's and maximum's arguments, where either is NaN.
#pragma once

#include "term.h"

namespace KD_NAMESPACE {

template <class Real> struct OverMixture {
  Real log_p, log_q, m; // log(p / m), log(q / m), m
};

template <class Real> KD_FN OverMixture<Real> over_mixture(Real log_ratio, Real q, Real p, Real weight) {
  const bool teacher_leads = p >= q;
  const Real leading = teacher_leads ? weight : 1 - weight;
  const Real log_m = log(leading + (1 - leading) * (minimum(p, q) / maximum(q, p)));
  return {teacher_leads ? -log_m : log_ratio - log_m, teacher_leads ? -log_ratio - log_m : -log_m,
          weight * p + (1 - weight) * q};
}

} // namespace KD_NAMESPACE
