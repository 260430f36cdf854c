#pragma once

#include "mixture.h"

namespace KD_NAMESPACE {

// KL(q || m), m = alpha q + (1 - alpha) p: h = q (log(q / m) + alpha (m - q) / m), a multiple of q less.
template <class Real> struct SkewReverseKL {
  static constexpr bool balanced = false;
  Real alpha;
  explicit SkewReverseKL(const Parameters &parameters) : alpha(Real(parameters.scalar)) {}
  KD_FN Term<Real> operator()(Real log_ratio, Real q, Real p, int64_t) const {
    const auto over = over_mixture(log_ratio, q, p, 1 - alpha);
    const Real f = q == 0 ? 0 : q * over.log_q;
    return {f, f + (over.m == 0 ? 0 : alpha * (1 - alpha) * q * ((p - q) / over.m))};
  }
};

} // namespace KD_NAMESPACE
