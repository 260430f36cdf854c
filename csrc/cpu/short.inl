// The divergence schedule for short rows: kLanes rows at once, one per vector lane.
//
// A short row costs more in sums across lanes, logarithms and loop ends than in its columns. Here all of these are
// shared by the rows of a group; the price is a transposition in and out.
#pragma once

#include "../terms/all.h"
#include "blocks.inl"

namespace KD_NAMESPACE {

using kd_cpu::Divergence;

constexpr int64_t kLanes = 16;
// Measured crossover: at 100 columns a group takes 0.78 of the time of rows on their own (0.72 for Jensen-Shannon), at
// 128 columns, which need no padding, as long.
constexpr int64_t kShortVocab = 112;

template <class Real> struct Group {
  // Per row: what multiplies its terms, the largest logit, the sum, its reciprocal and its logarithm on either side.
  Real soft[kLanes], hard[kLanes], f[kLanes], h[kLanes], log_sums[kLanes];
  struct Side {
    Real largest[kLanes], sum[kLanes], share[kLanes], log_sum[kLanes];
    Real logits[kShortVocab][kLanes], exponentials[kShortVocab][kLanes];
  } student, teacher, tempered;
  Real gradient[kShortVocab][kLanes];
};

// Rows whose factor is 0 are not read: zeros stand in for them.
template <class Real>
static void transpose_in(const Matrix &matrix, int64_t first, int64_t rows, int64_t vocab, const Real *factor,
                         const Real *other, typename Group<Real>::Side &side) {
  Real buffer[kShortVocab];
  for (int64_t row = 0; row < kLanes; ++row) {
    const bool read = row < rows && (factor[row] != 0 || other[row] != 0);
    const Real *x = read ? load(matrix, first + row, 0, vocab, buffer) : nullptr;
    for (int64_t v = 0; v < vocab; ++v)
      side.logits[v][row] = read ? x[v] : Real(0);
  }
}

template <class Real>
static void exponentiate_lanes(const Real (*logits)[kLanes], int64_t vocab, Real scale,
                               typename Group<Real>::Side &side) {
  const ScaledExp<Real> scaled_exp(scale);
  for (int64_t row = 0; row < kLanes; ++row) {
    side.largest[row] = -kInfinity;
    side.sum[row] = 0;
  }
  for (int64_t v = 0; v < vocab; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row)
      side.largest[row] = maximum(logits[v][row], side.largest[row]);
  for (int64_t v = 0; v < vocab; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      const Real e = scaled_exp(logits[v][row] - side.largest[row]);
      side.exponentials[v][row] = e;
      side.sum[row] += e;
    }
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row) {
    side.share[row] = 1 / side.sum[row];
    side.log_sum[row] = log(side.sum[row]);
  }
}

template <class Real, class Term>
static void terms_of_lanes(const Term term, int64_t vocab, Real scale, Group<Real> &group) {
  const auto &q = group.student, &p = group.teacher;
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row) {
    group.f[row] = group.h[row] = 0;
    group.log_sums[row] = log(q.sum[row] / p.sum[row]); // not a difference of logarithms: it would round more coarsely
  }
  for (int64_t v = 0; v < vocab; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      const Real x = q.logits[v][row] - q.largest[row], y = p.logits[v][row] - p.largest[row];
      const Real log_ratio = (y - x) * scale + group.log_sums[row];
      const auto at = term(log_ratio, q.exponentials[v][row] * q.share[row], p.exponentials[v][row] * p.share[row], v);
      group.f[row] += at.f;
      group.h[row] += at.h;
      group.gradient[v][row] = at.h;
    }
}

// A row without a soft term gets none of it, whatever f and h came to (0 times infinity is not 0).
template <class Real>
static void gradient_of_lanes(int64_t vocab, Real scale, const typename Group<Real>::Side &hard, Group<Real> &group) {
  const auto &q = group.student;
  for (int64_t v = 0; v < vocab; ++v)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      const Real soft = (group.gradient[v][row] - q.exponentials[v][row] * q.share[row] * group.h[row]) * scale;
      const Real weighted = group.soft[row] != 0 ? group.soft[row] * soft : 0;
      const Real share = group.hard[row] != 0 ? group.hard[row] * hard.share[row] : 0;
      group.gradient[v][row] = weighted + share * hard.exponentials[v][row];
    }
}

template <class Real>
static void transpose_out(const Divergence &call, int64_t first, int64_t rows, const Group<Real> &group) {
  Real buffer[kShortVocab];
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t v = 0; v < call.vocab; ++v)
      buffer[v] = group.gradient[v][row];
    const int64_t label = call.labels ? call.labels[first + row] : -1;
    if (group.hard[row] != 0 && label >= 0 && label < call.vocab)
      buffer[label] -= group.hard[row];
    store(call.gradient, first + row, 0, call.vocab, buffer, false);
  }
}

template <class Real>
static void values_of_lanes(const Divergence &call, int64_t first, int64_t rows, const typename Group<Real>::Side &hard,
                            const Group<Real> &group) {
  for (int64_t row = 0; row < rows; ++row) {
    double value = group.soft[row] != 0 ? static_cast<double>(group.soft[row]) * group.f[row] : 0;
    if (group.hard[row] != 0) {
      const int64_t label = call.labels[first + row];
      const bool inside = label >= 0 && label < call.vocab;
      const double x = inside ? group.student.logits[label][row] : __builtin_nan("");
      value += group.hard[row] * (hard.log_sum[row] - (x - group.student.largest[row]));
    }
    static_cast<Real *>(call.values)[first + row] = static_cast<Real>(value);
  }
}

template <class Real, class Term>
static void short_rows(const Term &term, const Divergence &call, int64_t begin, int64_t end) {
  Group<Real> group;
  const Real scale = static_cast<Real>(call.inverse_temperature);
  const bool tempered = call.labels && call.inverse_temperature != 1;
  const auto &hard = tempered ? group.tempered : group.student;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    for (int64_t row = 0; row < kLanes; ++row) {
      group.soft[row] = row < rows ? factor<Real>(call.soft_weight, first + row, call.soft_scale) : 0;
      group.hard[row] = row < rows && call.labels ? factor<Real>(call.hard_weight, first + row, call.hard_scale) : 0;
    }
    transpose_in(call.student, first, rows, call.vocab, group.soft, group.hard, group.student);
    transpose_in(call.teacher, first, rows, call.vocab, group.soft, group.soft, group.teacher);
    exponentiate_lanes(group.student.logits, call.vocab, scale, group.student);
    exponentiate_lanes(group.teacher.logits, call.vocab, scale, group.teacher);
    if (tempered)
      exponentiate_lanes(group.student.logits, call.vocab, Real(1), group.tempered);
    terms_of_lanes(term, call.vocab, scale, group);
    values_of_lanes(call, first, rows, hard, group);
    if (call.gradient.data) {
      gradient_of_lanes(call.vocab, scale, hard, group);
      transpose_out(call, first, rows, group);
    }
  }
}

} // namespace KD_NAMESPACE
