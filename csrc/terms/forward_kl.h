#pragma once

#include "term.h"

namespace KD_NAMESPACE {

// KL(p || q): f = p log(p / q), h = -p + q.
template <class Real> struct ForwardKL {
  static constexpr bool balanced = true;
  explicit ForwardKL(const Parameters &) {}
  KD_FN Term<Real> operator()(Real log_ratio, Real q, Real p, int64_t) const {
    return {p == 0 ? 0 : p * log_ratio, q - p};
  }
};

} // namespace KD_NAMESPACE
