// The geometry schedule's backward for short rows: as the forward in geometry_short.inl, kLanes rows at once.
#pragma once

#include "geometry_short.inl"

namespace KD_NAMESPACE {

// Measured crossover of backward, which sums nothing: 0.65 of the time of rows on their own at 10 columns, 0.93 at 100,
// 1.11 at 112 (which need no padding).
constexpr int64_t kShortPullVocab = 104;

// Each lane's pull (csrc/geometry.h), and the statistics that its walk needs.
template <class Real> struct PullLanes {
  Real largest_q[kLanes], share_q[kLanes], largest_p[kLanes], share_p[kLanes];
  Real label[kLanes], teacher[kLanes], mean[kLanes], at_label[kLanes], reference[kLanes], average[kLanes];
  Real label_gradient[kLanes];

  // A row without a class as its label gets a share of 0 and so a gradient of 0.
  void read(const Trilateral &call, int64_t first, const TrilateralGroup<Real> &group) {
    const bool with_mean = call.class_mean.data != nullptr;
    const int columns = with_mean ? 5 : 3;
    const ScaledExp<Real> natural_exp(1);
    for (int64_t row = 0; row < kLanes; ++row) {
      static constexpr Real none[kStatistics] = {};
      const int64_t at = first + row;
      const Real *kept = group.known[row] ? static_cast<Real *>(call.statistics) + at * kStatistics : none;
      largest_q[row] = kept[0], share_q[row] = kept[1], largest_p[row] = kept[2], share_p[row] = kept[3];
      const Real of_label = natural_exp(group.student[group.labels[row]][row] - kept[0]) * kept[1];
      TrilateralPull<Real> pull = {};
      if (group.known[row])
        pull =
            trilateral_pull(kept, static_cast<const Real *>(call.distances) + at * columns,
                            static_cast<const Real *>(call.upstream) + at * columns, of_label, with_mean, call.squared);
      label_gradient[row] = pull.of_label(of_label);
      label[row] = pull.label, teacher[row] = pull.teacher, mean[row] = pull.mean;
      at_label[row] = pull.at_label, reference[row] = pull.reference, average[row] = pull.average;
    }
  }

  TrilateralPull<Real> of(int64_t row) const {
    return {label[row], teacher[row], mean[row], at_label[row], reference[row], average[row]};
  }
};

// The student's logits become their gradient.
template <class Real, class Mean>
static void pull_lanes(int64_t vocab, const PullLanes<Real> &pull, const Mean &mean, TrilateralGroup<Real> &group) {
  const ScaledExp<Real> natural_exp(1);
  for (int64_t v = 0; v < vocab; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      const Real q = rounded_product(natural_exp(group.student[v][row] - pull.largest_q[row]), pull.share_q[row]);
      const Real p = rounded_product(natural_exp(group.teacher[v][row] - pull.largest_p[row]), pull.share_p[row]);
      group.student[v][row] = pull.of(row)(q, p, mean(v, row));
    }
}

template <class Real>
static void short_trilateral_backward(const Trilateral &call, int64_t begin, int64_t end, void *scratch) {
  auto &group = group_in<TrilateralGroup<Real>>(scratch);
  PullLanes<Real> pull;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    group.read(call, first, rows);
    pull.read(call, first, group);
    if (call.class_mean.data)
      pull_lanes(call.vocab, pull, [&](int64_t v, int64_t row) { return group.mean[v][row]; }, group);
    else
      pull_lanes(call.vocab, pull, [](int64_t, int64_t) { return Real(0); }, group);
    for (int64_t row = 0; row < rows; ++row)
      if (group.known[row])
        group.student[group.labels[row]][row] = pull.label_gradient[row];
      else
        for (int64_t v = 0; v < call.vocab; ++v)
          group.student[v][row] = missing<Real>(call, first + row);
    write_lanes(group.student, call.gradient, first, rows, call.vocab, group.staged);
  }
}

} // namespace KD_NAMESPACE
