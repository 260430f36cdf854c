// The geometry schedule's forward for short rows: kLanes rows at once, one per vector lane, as in short.inl.
#pragma once

#include "../geometry.h"
#include "short.inl"

namespace KD_NAMESPACE {

using kd_cpu::Trilateral;

template <class Real> struct TrilateralGroup {
  typename Group<Real>::Side student, teacher;
  Real mean[kShortVocab][kLanes];
  Real known[kLanes]; // 1 where the lane's row has a label that is a class, else 0
  TrilateralSums<Real> label[kLanes];
  Real q[kLanes], p[kLanes], qq[kLanes], pp[kLanes], q_less_p[kLanes], squared_q_less_p[kLanes];
  Real mm[kLanes], q_less_m[kLanes], squared_q_less_m[kLanes];
};

// Leaves the label's column out of every sum, and keeps what it holds.
template <class Real>
static void take_labels(const Trilateral &call, int64_t first, int64_t rows, TrilateralGroup<Real> &group) {
  Real buffer[kShortVocab];
  for (int64_t row = 0; row < kLanes; ++row) {
    const bool known = group.known[row] != 0;
    const int64_t label = known ? call.labels[first + row] : 0;
    auto &held = group.label[row] = {};
    auto &q = group.student.exponentials[label][row], &p = group.teacher.exponentials[label][row];
    held.label_q = rounded_product(q, group.student.share[row]);
    held.label_p = rounded_product(p, group.teacher.share[row]);
    q = p = 0;
    if (!call.class_mean.data)
      continue;
    const Real *mean = known ? load(call.class_mean, label, 0, call.vocab, buffer, Real(0)) : nullptr;
    for (int64_t v = 0; v < call.vocab; ++v)
      group.mean[v][row] = known ? mean[v] : Real(0);
    held.label_m = group.mean[label][row];
    group.mean[label][row] = 0;
  }
}

constexpr int64_t kRun = 16; // columns summed by themselves: the rounding of like terms grows with their number

template <class Real> static void add_run(int64_t begin, int64_t end, TrilateralGroup<Real> &group) {
  Real sum_q[kLanes] = {}, sum_p[kLanes] = {}, qq[kLanes] = {}, pp[kLanes] = {}, less[kLanes] = {},
       squared[kLanes] = {};
  for (int64_t v = begin; v < end; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      const Real q = rounded_product(group.student.exponentials[v][row], group.student.share[row]);
      const Real p = rounded_product(group.teacher.exponentials[v][row], group.teacher.share[row]);
      const Real difference = q - p;
      sum_q[row] += q, sum_p[row] += p, qq[row] += q * q, pp[row] += p * p;
      less[row] += q * difference, squared[row] += difference * difference;
    }
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row) {
    group.q[row] += sum_q[row], group.p[row] += sum_p[row], group.qq[row] += qq[row], group.pp[row] += pp[row];
    group.q_less_p[row] += less[row], group.squared_q_less_p[row] += squared[row];
  }
}

template <class Real> static void add_mean_run(int64_t begin, int64_t end, TrilateralGroup<Real> &group) {
  Real mm[kLanes] = {}, less[kLanes] = {}, squared[kLanes] = {};
  for (int64_t v = begin; v < end; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      const Real q = rounded_product(group.student.exponentials[v][row], group.student.share[row]);
      const Real m = group.mean[v][row], difference = q - m;
      mm[row] += m * m, less[row] += q * difference, squared[row] += difference * difference;
    }
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row)
    group.mm[row] += mm[row], group.q_less_m[row] += less[row], group.squared_q_less_m[row] += squared[row];
}

template <class Real> static void sum_lanes(int64_t vocab, bool with_mean, TrilateralGroup<Real> &group) {
  for (int64_t row = 0; row < kLanes; ++row) {
    group.q[row] = group.p[row] = group.qq[row] = group.pp[row] = 0;
    group.q_less_p[row] = group.squared_q_less_p[row] = 0;
    group.mm[row] = group.q_less_m[row] = group.squared_q_less_m[row] = 0;
  }
  for (int64_t begin = 0; begin < vocab; begin += kRun) {
    const int64_t end = begin + kRun < vocab ? begin + kRun : vocab;
    add_run(begin, end, group);
    if (with_mean)
      add_mean_run(begin, end, group);
  }
}

// The distances and statistics of one lane's row.
template <class Real>
static void write_lane(const Trilateral &call, int64_t first, int64_t row, const TrilateralGroup<Real> &group) {
  const bool with_mean = call.class_mean.data != nullptr;
  const int columns = with_mean ? 5 : 3;
  Real *distances = static_cast<Real *>(call.distances) + (first + row) * columns;
  Real *kept = call.statistics ? static_cast<Real *>(call.statistics) + (first + row) * kStatistics : nullptr;
  if (group.known[row] == 0) {
    const Real missing = call.labels[first + row] == call.ignore_index ? Real(0) : Real(__builtin_nan(""));
    for (int k = 0; k < columns; ++k)
      distances[k] = missing;
    for (int k = 0; kept && k < kStatistics; ++k)
      kept[k] = missing;
    return;
  }
  TrilateralSums<Real> sums = group.label[row];
  sums.q = group.q[row], sums.p = group.p[row], sums.qq = group.qq[row], sums.pp = group.pp[row];
  sums.q_less_p = group.q_less_p[row], sums.squared_q_less_p = group.squared_q_less_p[row];
  sums.mm = group.mm[row], sums.q_less_m = group.q_less_m[row], sums.squared_q_less_m = group.squared_q_less_m[row];
  trilateral_distances(sums, with_mean, call.squared, distances);
  if (kept) {
    kept[0] = group.student.largest[row], kept[1] = group.student.share[row];
    kept[2] = group.teacher.largest[row], kept[3] = group.teacher.share[row];
    kept[4] = sums.q, kept[5] = sums.label_q_less_p(), kept[6] = sums.label_q_less_m();
    kept[7] = sums.qq, kept[8] = sums.q_less_p, kept[9] = sums.q_less_m;
  }
}

template <class Real> static void short_trilateral(const Trilateral &call, int64_t begin, int64_t end) {
  TrilateralGroup<Real> group;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    for (int64_t row = 0; row < kLanes; ++row) {
      const int64_t label = row < rows ? call.labels[first + row] : -1;
      group.known[row] = row < rows && label != call.ignore_index && label >= 0 && label < call.vocab;
    }
    transpose_in(call.student, first, rows, call.vocab, group.known, group.known, group.student);
    transpose_in(call.teacher, first, rows, call.vocab, group.known, group.known, group.teacher);
    exponentiate_lanes(group.student.logits, call.vocab, Real(1), group.student);
    exponentiate_lanes(group.teacher.logits, call.vocab, Real(1), group.teacher);
    take_labels(call, first, rows, group);
    sum_lanes(call.vocab, call.class_mean.data != nullptr, group);
    for (int64_t row = 0; row < rows; ++row)
      write_lane(call, first, row, group);
  }
}

} // namespace KD_NAMESPACE
