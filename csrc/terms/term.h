// What a term is: a functor (log(p / q), q, p, column) -> (f, h) with h = df / d(log q), up to a multiple of q.
//
// The schedules form log(p / q) before log q and log p are rounded: a divergence depends on the logarithms through it,
// and their own rounding, alike in many columns, would be an error of some 1e-6 in the value. A NaN in q or p has to
// reach f and h. `balanced` promises sum_v h_v = 0.
#pragma once

#include "../math.h"

namespace KD_NAMESPACE {

struct Parameters {
  double scalar;         // beta, alpha, ...
  const void *table;     // (orders, width) in the arithmetic's type, or null
  int64_t orders, width; // width: 1 where all columns share a value, else the padded vocabulary
};

template <class Real> struct Term {
  Real f, h;
};

// Hands `body` the term that the parameters ask for: the one there is, unless a loss specialises this.
template <class Term> struct Choose {
  template <class Body> static void with(const Parameters &parameters, const Body &body) { body(Term(parameters)); }
};

} // namespace KD_NAMESPACE
