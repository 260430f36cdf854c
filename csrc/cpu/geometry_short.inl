// The geometry schedule for short rows: kLanes rows at once, one per vector lane, as in short.inl.
#pragma once

#include "../geometry.h"
#include "short.inl"

namespace KD_NAMESPACE {

using kd_cpu::Trilateral;

template <class Real> struct TrilateralGroup {
  using Number = Real;
  Columns<Real> student, teacher, mean; // logits, then probabilities; those of the class mean
  bool known[kLanes];                   // whether the lane's row has a label that is a class
  int64_t labels[kLanes];               // of known rows, else 0
  Staged<Real> staged;

  void read(const Trilateral &call, int64_t first, int64_t rows) {
    for (int64_t row = 0; row < kLanes; ++row) {
      const int64_t label = row < rows ? call.labels[first + row] : -1;
      known[row] = row < rows && label != call.ignore_index && label >= 0 && label < call.vocab;
      labels[row] = known[row] ? label : 0;
    }
    const auto read = [this](int64_t row) { return known[row]; };
    const auto at = [first](int64_t row) { return first + row; };
    read_lanes(call.student, call.vocab, read, at, staged, student);
    read_lanes(call.teacher, call.vocab, read, at, staged, teacher);
    if (call.class_mean.data)
      read_lanes(call.class_mean, call.vocab, read, [this](int64_t row) { return labels[row]; }, staged, mean);
  }
};

template <class Real> struct Peak {
  Real largest[kLanes], share[kLanes];
};

// Logits become probabilities.
template <class Real> static void softmax_lanes(int64_t vocab, Columns<Real> &x, Peak<Real> &peak) {
  Real sum[kLanes];
  complete_turn<Real>(vocab, -kInfinity, x);
  exponentiate_lanes(x, vocab, Real(1), x, peak.largest, sum);
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row)
    peak.share[row] = 1 / sum[row];
  // The whole last turn: where the only column is the label's, that turn alone carries the row's NaN into its sums.
  for (int64_t v = 0; v < vocab; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i)
        x[v + i][row] *= peak.share[row];
    }
}

// Sums of each lane's row over the columns other than its label's, and what the label's own holds.
template <class Real> struct TrilateralLanes {
  Real q[kLanes], p[kLanes], qq[kLanes], pp[kLanes], q_less_p[kLanes], squared_q_less_p[kLanes];
  Real mm[kLanes], q_less_m[kLanes], squared_q_less_m[kLanes];
  Real label_q[kLanes], label_p[kLanes], label_m[kLanes];

  TrilateralSums<Real> of(int64_t row) const {
    return {q[row],       p[row],        qq[row],
            pp[row],      q_less_p[row], squared_q_less_p[row],
            mm[row],      q_less_m[row], squared_q_less_m[row],
            label_q[row], label_p[row],  label_m[row]};
  }

  // Leaves the label's column out of every sum that follows, and keeps what it holds.
  void take_labels(TrilateralGroup<Real> &group, bool with_mean) {
    for (int64_t row = 0; row < kLanes; ++row) {
      Real &of_q = group.student[group.labels[row]][row], &of_p = group.teacher[group.labels[row]][row];
      label_q[row] = of_q, label_p[row] = of_p, label_m[row] = 0;
      of_q = of_p = 0;
      if (with_mean) {
        Real &of_m = group.mean[group.labels[row]][row];
        label_m[row] = of_m, of_m = 0;
      }
    }
  }
};

template <class Real>
static void add_run(int64_t begin, int64_t end, const TrilateralGroup<Real> &group, TrilateralLanes<Real> &sums) {
  Real sum_q[kLanes] = {}, sum_p[kLanes] = {}, qq[kLanes] = {}, pp[kLanes] = {}, less[kLanes] = {},
       squared[kLanes] = {};
  for (int64_t v = begin; v < end; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      Real turn[6] = {};
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i) {
        const Real q = group.student[v + i][row], p = group.teacher[v + i][row], difference = q - p;
        turn[0] += q, turn[1] += p, turn[2] += q * q, turn[3] += p * p;
        turn[4] += q * difference, turn[5] += difference * difference;
      }
      sum_q[row] += turn[0], sum_p[row] += turn[1], qq[row] += turn[2], pp[row] += turn[3];
      less[row] += turn[4], squared[row] += turn[5];
    }
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row) {
    sums.q[row] += sum_q[row], sums.p[row] += sum_p[row], sums.qq[row] += qq[row], sums.pp[row] += pp[row];
    sums.q_less_p[row] += less[row], sums.squared_q_less_p[row] += squared[row];
  }
}

template <class Real>
static void add_mean_run(int64_t begin, int64_t end, const TrilateralGroup<Real> &group, TrilateralLanes<Real> &sums) {
  Real mm[kLanes] = {}, less[kLanes] = {}, squared[kLanes] = {};
  for (int64_t v = begin; v < end; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      Real turn[3] = {};
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i) {
        const Real q = group.student[v + i][row], m = group.mean[v + i][row], difference = q - m;
        turn[0] += m * m, turn[1] += q * difference, turn[2] += difference * difference;
      }
      mm[row] += turn[0], less[row] += turn[1], squared[row] += turn[2];
    }
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row)
    sums.mm[row] += mm[row], sums.q_less_m[row] += less[row], sums.squared_q_less_m[row] += squared[row];
}

template <class Real>
static void sum_lanes(int64_t vocab, bool with_mean, TrilateralGroup<Real> &group, TrilateralLanes<Real> &sums) {
  sums = {};
  sums.take_labels(group, with_mean);
  if (with_mean)
    complete_turn<Real>(vocab, 0, group.mean);
  for (int64_t begin = 0; begin < vocab; begin += kRun) {
    const int64_t end = begin + kRun < vocab ? begin + kRun : vocab;
    add_run(begin, end, group, sums);
    if (with_mean)
      add_mean_run(begin, end, group, sums);
  }
}

// What stands for a row without a class as its label: 0 where it is ignored, else NaN.
template <class Real> static Real missing(const Trilateral &call, int64_t row) {
  return call.labels[row] == call.ignore_index ? Real(0) : Real(__builtin_nan(""));
}

// The distances and statistics of one lane's row.
template <class Real>
static void write_distances(const Trilateral &call, int64_t row, bool known, const TrilateralSums<Real> &sums,
                            const Real (&peaks)[4]) {
  const bool with_mean = call.class_mean.data != nullptr;
  const int columns = with_mean ? 5 : 3;
  Real *distances = static_cast<Real *>(call.distances) + row * columns;
  Real *kept = call.statistics ? static_cast<Real *>(call.statistics) + row * kStatistics : nullptr;
  if (!known) {
    for (int k = 0; k < columns; ++k)
      distances[k] = missing<Real>(call, row);
    for (int k = 0; kept && k < kStatistics; ++k)
      kept[k] = missing<Real>(call, row);
    return;
  }
  trilateral_distances(sums, with_mean, call.squared, distances);
  if (!kept)
    return;
  for (int k = 0; k < 4; ++k)
    kept[k] = peaks[k];
  kept[4] = sums.q, kept[5] = sums.label_q_less_p(), kept[6] = sums.label_q_less_m();
  kept[7] = sums.qq, kept[8] = sums.q_less_p, kept[9] = sums.q_less_m;
}

template <class Real> static void short_trilateral(const Trilateral &call, int64_t begin, int64_t end, void *scratch) {
  auto &group = group_in<TrilateralGroup<Real>>(scratch);
  TrilateralLanes<Real> sums;
  Peak<Real> student, teacher;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    group.read(call, first, rows);
    softmax_lanes(call.vocab, group.student, student);
    softmax_lanes(call.vocab, group.teacher, teacher);
    sum_lanes(call.vocab, call.class_mean.data != nullptr, group, sums);
    for (int64_t row = 0; row < rows; ++row)
      write_distances(call, first + row, group.known[row], sums.of(row),
                      {student.largest[row], student.share[row], teacher.largest[row], teacher.share[row]});
  }
}

} // namespace KD_NAMESPACE
