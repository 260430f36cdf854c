// What a term is: a functor (log(p / q), q, p, column) -> (f, h) with h = df / d(log q), up to a multiple of q.
//
// The schedules form log(p / q) before log q and log p are rounded: a divergence depends on the logarithms through it,
// and their own rounding, alike in many columns, would be an error of some 1e-6 in the value. A NaN in q or p has to
// reach f and h. `balanced` promises sum_v h_v = 0.
#pragma once

#include "../math.h"

namespace KD_NAMESPACE {

struct Parameters {
  double scalar;     // beta, alpha, ...
  const void *table; // class-indexed parameters in the arithmetic's type, or null
  int64_t orders;    // rows of the table
};

template <class Real> struct Term {
  Real f, h;
};

} // namespace KD_NAMESPACE
