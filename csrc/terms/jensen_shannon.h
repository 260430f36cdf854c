#pragma once

#include "mixture.h"

namespace KD_NAMESPACE {

// beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: h = (1 - beta) q log(q / m).
template <class Real> struct JensenShannon {
  static constexpr bool balanced = false;
  Real beta;
  explicit JensenShannon(const Parameters &parameters) : beta(Real(parameters.scalar)) {}
  KD_FN Term<Real> operator()(Real log_ratio, Real q, Real p, int64_t) const {
    const auto over = over_mixture(log_ratio, q, p, beta);
    const Real h = q == 0 ? 0 : (1 - beta) * q * over.log_q;
    return {(p == 0 ? 0 : beta * p * over.log_p) + h, h};
  }
};

} // namespace KD_NAMESPACE
