#pragma once

#include "mixture.h"

namespace KD_NAMESPACE {

// KL(p || m), m = alpha p + (1 - alpha) q: h = -(1 - alpha) p q / m + (1 - alpha) q = (1 - alpha)^2 q (q - p) / m.
template <class Real> struct SkewKL {
  static constexpr bool balanced = false;
  Real alpha;
  explicit SkewKL(const Parameters &parameters) : alpha(Real(parameters.scalar)) {}
  KD_FN Term<Real> operator()(Real log_ratio, Real q, Real p, int64_t) const {
    const auto over = over_mixture(log_ratio, q, p, alpha);
    const Real h = (1 - alpha) * (1 - alpha) * q * ((q - p) / over.m);
    return {p == 0 ? 0 : p * over.log_p, over.m == 0 ? 0 : h};
  }
};

} // namespace KD_NAMESPACE
