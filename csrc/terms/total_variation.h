#pragma once

#include "term.h"

namespace KD_NAMESPACE {

// 1/2 sum |p - q|: h = q sign(q - p) / 2.
template <class Real> struct TotalVariation {
  static constexpr bool balanced = false;
  explicit TotalVariation(const Parameters &) {}
  KD_FN Term<Real> operator()(Real, Real, Real q, Real p, int64_t) const {
    const Real half = q > p ? Real(0.5) : q < p ? Real(-0.5) : Real(0);
    return {half * (q - p), half * q};
  }
};

} // namespace KD_NAMESPACE
