// The divergence schedule for short rows: kLanes rows at once, one per vector lane.
//
// A short row costs more in sums across lanes, logarithms and loop ends than in its columns. Here all of these are
// shared by the rows of a group; the price is a transposition in and out.
#pragma once

#include "../terms/all.h"
#include "transpose.inl"

namespace KD_NAMESPACE {

using kd_cpu::Divergence;

template <class Real> using Columns = Real[kShortVocab][kLanes];

// Columns to a turn: what is summed over columns goes through memory once a turn and not once a column, whose store and
// load would be waited for. Columns beyond the vocabulary complete the last turn: no mass on either side.
constexpr int64_t kTurn = 4;

template <class Real> static void complete_turn(int64_t vocab, Real fill, Columns<Real> &x) {
  for (int64_t v = vocab; v % kTurn; ++v)
    for (int64_t row = 0; row < kLanes; ++row)
      x[v][row] = fill;
}

template <class Real> struct Group {
  // Per row: what multiplies its terms, the largest logit, the sum, its reciprocal and its logarithm on either side.
  Real soft[kLanes], hard[kLanes], f[kLanes], h[kLanes], log_sums[kLanes];
  struct Side {
    Real largest[kLanes], sum[kLanes], share[kLanes], log_sum[kLanes];
    Columns<Real> logits, exponentials;
  } student, teacher, tempered;
  Columns<Real> gradient;
};

// Rows whose factor is 0 are not read: zeros stand in for them.
template <class Real>
static void read_rows(const Matrix &matrix, int64_t first, int64_t vocab, const Real *factor, const Real *other,
                      typename Group<Real>::Side &side) {
  read_lanes(
      matrix, vocab, [=](int64_t row) { return factor[row] != 0 || other[row] != 0; },
      [=](int64_t row) { return first + row; }, side.logits);
  complete_turn<Real>(vocab, -kInfinity, side.logits);
}

// exponentials[v] = e^((logits[v] - largest) scale), in place where they are the same columns; the logits' last turn is
// complete.
template <class Real>
static void exponentiate_lanes(const Columns<Real> &logits, int64_t vocab, Real scale, Columns<Real> &exponentials,
                               Real (&largest)[kLanes], Real (&sum)[kLanes]) {
  const ScaledExp<Real> scaled_exp(scale);
  for (int64_t row = 0; row < kLanes; ++row)
    largest[row] = -kInfinity, sum[row] = 0;
  for (int64_t v = 0; v < vocab; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      Real most = -kInfinity;
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i)
        most = maximum(logits[v + i][row], most);
      largest[row] = maximum(most, largest[row]);
    }
  for (int64_t v = 0; v < vocab; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      Real of_turn = 0;
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i) {
        const Real e = scaled_exp(logits[v + i][row] - largest[row]);
        exponentials[v + i][row] = e;
        of_turn += e;
      }
      sum[row] += of_turn;
    }
}

template <class Real>
static void exponentiate_side(const Columns<Real> &logits, int64_t vocab, Real scale,
                              typename Group<Real>::Side &side) {
  exponentiate_lanes(logits, vocab, scale, side.exponentials, side.largest, side.sum);
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
  for (int64_t v = 0; v < vocab; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      Real turn_f = 0, turn_h = 0;
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i) {
        const Real x = q.logits[v + i][row] - q.largest[row], y = p.logits[v + i][row] - p.largest[row];
        const Real log_ratio = (y - x) * scale + group.log_sums[row];
        const Real of_q = q.exponentials[v + i][row] * q.share[row], of_p = p.exponentials[v + i][row] * p.share[row];
        const auto at = term(log_ratio, of_q, of_p, v + i);
        turn_f += at.f;
        turn_h += at.h;
        group.gradient[v + i][row] = at.h;
      }
      group.f[row] += turn_f;
      group.h[row] += turn_h;
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
static void write_gradient(const Divergence &call, int64_t first, int64_t rows, Group<Real> &group) {
  for (int64_t row = 0; call.labels && row < rows; ++row) {
    const int64_t label = call.labels[first + row];
    if (group.hard[row] != 0 && label >= 0 && label < call.vocab)
      group.gradient[label][row] -= group.hard[row];
  }
  write_lanes(group.gradient, call.gradient, first, rows, call.vocab);
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
    read_rows(call.student, first, call.vocab, group.soft, group.hard, group.student);
    read_rows(call.teacher, first, call.vocab, group.soft, group.soft, group.teacher);
    exponentiate_side(group.student.logits, call.vocab, scale, group.student);
    exponentiate_side(group.teacher.logits, call.vocab, scale, group.teacher);
    if (tempered)
      exponentiate_side(group.student.logits, call.vocab, Real(1), group.tempered);
    terms_of_lanes(term, call.vocab, scale, group);
    values_of_lanes(call, first, rows, hard, group);
    if (call.gradient.data) {
      gradient_of_lanes(call.vocab, scale, hard, group);
      write_gradient(call, first, rows, group);
    }
  }
}

} // namespace KD_NAMESPACE
