#pragma once

#include "term.h"

namespace KD_NAMESPACE {

constexpr int kLargestOrder = 8;

// Where the coefficients lie: copied into the term, in a column each, or in the table in either form.
enum class Layout { held, by_class, either };

// KL(p || q) + sum_v p_v A_v(1 - q_v), A(x) = sum_m eps_m x^m = x B(x): h = -p (1 + q A'(1 - q)) + q.
//
// Orders is M, or 0 where it is only known at run time. The table has a row per order and a column per class, or one.
template <class Real, int Orders, Layout layout> struct PerturbedOf {
  static constexpr bool balanced = false;
  static constexpr int kHeld = layout == Layout::held ? Orders : 1;
  const Real *table;
  int64_t width;
  int orders;
  Real held[kHeld];

  explicit PerturbedOf(const Parameters &parameters)
      : table(static_cast<const Real *>(parameters.table)), width(parameters.width),
        orders(static_cast<int>(parameters.orders)), held() {
    for (int m = 0; layout == Layout::held && m < Orders; ++m)
      held[m] = table[m];
  }

  KD_FN Real coefficient(int m, int64_t column) const {
    return layout == Layout::held ? held[layout == Layout::held ? m : 0] : table[m * width + column];
  }

  // Horner: B(x), B'(x).
  KD_FN void series(Real x, int64_t column, Real &b, Real &slope) const {
    slope = 0;
    if (layout == Layout::either) { // down the table by one address and in a loop: a GPU's registers do not spill
      const Real *at = table + (orders - 1) * width + (width > 1 ? column : 0);
      b = *at;
      KD_ROLLED
      for (int m = orders - 1; m > 0; --m) {
        at -= width;
        slope = slope * x + b;
        b = b * x + *at;
      }
      return;
    }
    b = coefficient(Orders - 1, column);
    KD_UNROLL
    for (int m = Orders - 2; m >= 0; --m) {
      slope = slope * x + b;
      b = b * x + coefficient(m, column);
    }
  }

  KD_FN Term<Real> operator()(Real log_ratio, Real q, Real p, int64_t column) const {
    const Real x = 1 - q;
    Real b, slope;
    series(x, column, b, slope);
    return {p == 0 ? 0 : p * (log_ratio + x * b), (q - p) - p * q * (b + x * slope)};
  }
};

template <class Real> struct Perturbed; // stands for all of them in the list of losses

// On CPUs, in float, a term per number of orders, so that its loop disappears into a vectorised one. Double is not
// about speed, and a GPU's threads have the time to load a coefficient that all of them share.
template <class Real> struct Choose<Perturbed<Real>> {
#ifdef __CUDACC__
  static constexpr bool kVectorised = false;
#else
  static constexpr bool kVectorised = sizeof(Real) == sizeof(float);
#endif

  template <int Orders, class Body> static void with_orders(const Parameters &parameters, const Body &body) {
    if constexpr (!kVectorised)
      body(PerturbedOf<Real, 0, Layout::either>(parameters));
    else if (parameters.orders != Orders)
      with_orders<Orders % kLargestOrder + 1>(parameters, body);
    else if (parameters.width > 1)
      body(PerturbedOf<Real, Orders, Layout::by_class>(parameters));
    else
      body(PerturbedOf<Real, Orders, Layout::held>(parameters));
  }

  template <class Body> static void with(const Parameters &parameters, const Body &body) {
    with_orders<1>(parameters, body);
  }
};

} // namespace KD_NAMESPACE
