#pragma once

#include "term.h"

namespace KD_NAMESPACE {

// KL(q || p): f = q log(q / p), h = f (+ q).
template <class Real> struct ReverseKL {
  static constexpr bool balanced = false;
  explicit ReverseKL(const Parameters &) {}
  KD_FN Term<Real> operator()(Real log_ratio, Real q, Real, int64_t) const {
    const Real f = q == 0 ? 0 : -q * log_ratio;
    return {f, f};
  }
};

} // namespace KD_NAMESPACE
