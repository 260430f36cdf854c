#pragma once

#include "term.h"

namespace KD_NAMESPACE {

// 1/2 sum |p - q|: h = q sign(q - p) / 2.
template <class Real> struct TotalVariation {
  static constexpr bool balanced = false;
  explicit TotalVariation(const Parameters &) {}
  KD_FN Term<Real> operator()(Real, Real q, Real p, int64_t) const {
    // The last branch is 0 at equality and keeps a NaN. (A difference q - p may be fused with the products that made q
    // and p, and is then not 0 there.)
    const Real half = q > p ? Real(0.5) : q < p ? Real(-0.5) : 0 * (q + p);
    return {half * (q - p), half * q};
  }
};

} // namespace KD_NAMESPACE
