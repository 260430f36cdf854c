// What a term is: a functor (log q, log p, q, p, column) -> (f, h) with h = df / d(log q), up to a multiple of q.
//
// q and p are the exponentials of log_q and log_p, which the schedules have anyway. `balanced` promises sum_v h_v = 0.
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
