// The divergence schedule for short rows: kLanes rows at once, one per vector lane.
//
// A short row costs more in sums across lanes, logarithms and loop ends than in its columns. Here all of these are
// shared by the rows of a group; the price is a transposition in and out.
#pragma once

#include <new>

#include "../terms/all.h"
#include "transpose.inl"

namespace KD_NAMESPACE {

using kd_cpu::Divergence;

// Columns to a turn: what is summed over columns goes through memory once a turn and not once a column, whose store and
// load would be waited for. Columns beyond the vocabulary complete the last turn: no mass on either side.
constexpr int64_t kTurn = 4;
static_assert(kPad % kTurn == 0, "the last turn fits the padded columns");

// Columns summed by themselves: the rounding of like terms grows with their number.
constexpr int64_t kRun = 16;

template <class Real> static void complete_turn(int64_t vocab, Real fill, Columns<Real> &x) {
  for (int64_t v = vocab; v % kTurn; ++v)
    for (int64_t row = 0; row < kLanes; ++row)
      x[v][row] = fill;
}

// A group in a thread's scratch, not on its stack: threads may have 64 KiB of that.
template <class Group> static Group &group_in(void *scratch) {
  static_assert(sizeof(Group) <= kd_cpu::kShortScratch * sizeof(typename Group::Number));
  return *new (scratch) Group;
}

template <class Real> struct Group {
  using Number = Real;
  // Per row: what multiplies its two terms; the sums over columns of the term's f and h; log(student's sum /
  // teacher's).
  Real soft[kLanes], hard[kLanes], f[kLanes], h[kLanes], log_sums[kLanes];
  struct Side {
    Real largest[kLanes], sum[kLanes], share[kLanes];
    Columns<Real> exponentials;
  } student, teacher, hard_student; // the last at temperature 1, where that is another
  Columns<Real> x, y;               // logits of the student and the teacher
  Columns<Real> gradient;
  Staged<Real> staged;
};

// Rows whose factors are 0 are not read: zeros stand in for them.
template <class Real> static void read_rows(const Divergence &call, int64_t first, Group<Real> &group) {
  const Real *soft = group.soft, *hard = group.hard;
  const auto at = [=](int64_t row) { return first + row; };
  const auto either = [=](int64_t row) { return soft[row] != 0 || hard[row] != 0; };
  read_lanes(call.student, call.vocab, either, at, group.staged, group.x);
  read_lanes(call.teacher, call.vocab, [=](int64_t row) { return soft[row] != 0; }, at, group.staged, group.y);
  complete_turn<Real>(call.vocab, -kInfinity, group.x);
  complete_turn<Real>(call.vocab, -kInfinity, group.y);
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
  for (int64_t begin = 0; begin < vocab; begin += kRun) {
    Real of_run[kLanes] = {};
    for (int64_t v = begin, end = begin + kRun < vocab ? begin + kRun : vocab; v < end; v += kTurn)
#pragma omp simd
      for (int64_t row = 0; row < kLanes; ++row) {
        Real of_turn = 0;
        KD_UNROLL
        for (int64_t i = 0; i < kTurn; ++i) {
          const Real e = scaled_exp(logits[v + i][row] - largest[row]);
          exponentials[v + i][row] = e;
          of_turn += e;
        }
        of_run[row] += of_turn;
      }
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row)
      sum[row] += of_run[row];
  }
}

template <class Real>
static void exponentiate_side(const Columns<Real> &logits, int64_t vocab, Real scale,
                              typename Group<Real>::Side &side) {
  exponentiate_lanes(logits, vocab, scale, side.exponentials, side.largest, side.sum);
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row)
    side.share[row] = 1 / side.sum[row];
}

template <class Real, class Term>
static void terms_of_run(const Term term, int64_t begin, int64_t end, Real scale, Group<Real> &group) {
  Real run_f[kLanes] = {}, run_h[kLanes] = {};
  const auto &q = group.student, &p = group.teacher;
  for (int64_t v = begin; v < end; v += kTurn)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row) {
      Real turn_f = 0, turn_h = 0;
      KD_UNROLL
      for (int64_t i = 0; i < kTurn; ++i) {
        const Real x = group.x[v + i][row] - q.largest[row], y = group.y[v + i][row] - p.largest[row];
        const Real log_ratio = (y - x) * scale + group.log_sums[row];
        const Real of_q = q.exponentials[v + i][row] * q.share[row], of_p = p.exponentials[v + i][row] * p.share[row];
        const auto at = term(log_ratio, of_q, of_p, v + i);
        turn_f += at.f;
        turn_h += at.h;
        group.gradient[v + i][row] = at.h;
      }
      run_f[row] += turn_f;
      run_h[row] += turn_h;
    }
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row)
    group.f[row] += run_f[row], group.h[row] += run_h[row];
}

template <class Real, class Term>
static void terms_of_lanes(const Term &term, int64_t vocab, Real scale, Group<Real> &group) {
#pragma omp simd
  for (int64_t row = 0; row < kLanes; ++row) {
    group.f[row] = group.h[row] = 0;
    // Not a difference of logarithms: it would round more coarsely.
    group.log_sums[row] = log(group.student.sum[row] / group.teacher.sum[row]);
  }
  for (int64_t begin = 0; begin < vocab; begin += kRun)
    terms_of_run(term, begin, begin + kRun < vocab ? begin + kRun : vocab, scale, group);
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
  write_lanes(group.gradient, call.gradient, first, rows, call.vocab, group.staged);
}

template <class Real>
static void values_of_lanes(const Divergence &call, int64_t first, int64_t rows, const typename Group<Real>::Side &hard,
                            const Group<Real> &group) {
  Real log_sum[kLanes] = {};
  if (call.labels)
#pragma omp simd
    for (int64_t row = 0; row < kLanes; ++row)
      log_sum[row] = log(hard.sum[row]);
  for (int64_t row = 0; row < rows; ++row) {
    double value = group.soft[row] != 0 ? static_cast<double>(group.soft[row]) * group.f[row] : 0;
    if (group.hard[row] != 0) {
      const int64_t label = call.labels[first + row];
      const bool inside = label >= 0 && label < call.vocab;
      const double x = inside ? group.x[label][row] : __builtin_nan("");
      value += group.hard[row] * (log_sum[row] - (x - group.student.largest[row]));
    }
    static_cast<Real *>(call.values)[first + row] = static_cast<Real>(value);
  }
}

template <class Real, class Term>
static void short_rows(const Term &term, const Divergence &call, int64_t begin, int64_t end, void *scratch) {
  auto &group = group_in<Group<Real>>(scratch);
  const Real scale = static_cast<Real>(call.inverse_temperature);
  const bool tempered = call.labels && call.inverse_temperature != 1;
  const auto &hard = tempered ? group.hard_student : group.student;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    for (int64_t row = 0; row < kLanes; ++row) {
      group.soft[row] = row < rows ? factor<Real>(call.soft_weight, first + row, call.soft_scale) : 0;
      group.hard[row] = row < rows && call.labels ? factor<Real>(call.hard_weight, first + row, call.hard_scale) : 0;
    }
    read_rows(call, first, group);
    exponentiate_side(group.x, call.vocab, scale, group.student);
    exponentiate_side(group.y, call.vocab, scale, group.teacher);
    if (tempered)
      exponentiate_side(group.x, call.vocab, Real(1), group.hard_student);
    terms_of_lanes(term, call.vocab, scale, group);
    values_of_lanes(call, first, rows, hard, group);
    if (call.gradient.data) {
      gradient_of_lanes(call.vocab, scale, hard, group);
      write_gradient(call, first, rows, group);
    }
  }
}

} // namespace KD_NAMESPACE
