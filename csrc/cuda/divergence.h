// The divergence schedule of one row, for any group of threads; it knows no loss.
//
// Walk 1 stages the logits and gathers both rows' softmax sums, walk 2 sums f and h, walk 3 writes the gradient
// (h - q H) / T. A balanced term (H = 0) writes it in walk 2.
#pragma once

#include "../calls.h"
#include "../terms/all.h"
#include "row.h"

namespace KD_NAMESPACE {

using kd_calls::Divergence;

struct TermSums {
  float f, h;
};

KD_FN float weight_of(const void *weight, int64_t row, double scale) {
  return (weight ? static_cast<const float *>(weight)[row] : 1.f) * static_cast<float>(scale);
}

template <class Element, bool Staged, class Group> struct DivergenceRow {
  using Stored = typename Element::Stored;
  const Divergence &call;
  const Group &group;
  const int64_t row;
  const Slice slice;
  const Row<Element, Staged> student, teacher;
  const float scale, soft, hard;
  const int64_t label;
  const bool tempered; // the cross-entropy has a softmax of its own
  float label_logit;
  SoftmaxSum q, p;

  // `shared`: two staged rows' bytes.
  KD_FN DivergenceRow(const Divergence &call_, const Group &group_, int64_t row_, char *shared)
      : call(call_), group(group_), row(row_), slice(group_.slice(call_.vocab)),
        student(call.student.data, row * call.student.stride + slice.first, slice.columns, shared),
        teacher(call.teacher.data, row * call.teacher.stride + slice.first, slice.columns,
                shared + staged_bytes(slice.columns, sizeof(Stored))),
        scale(static_cast<float>(call.inverse_temperature)), soft(weight_of(call.soft_weight, row, call.soft_scale)),
        hard(call.labels ? weight_of(call.hard_weight, row, call.hard_scale) : 0.f),
        label(call.labels ? call.labels[row] : -1), tempered(call.labels && call.inverse_temperature != 1) {}

  KD_FN void write(int column, float value) const {
    store_streamed<Element>(
        static_cast<Stored *>(call.gradient.data) + row * call.gradient.stride + slice.first + column, value);
  }

  KD_FN bool known() const { return label >= 0 && label < call.vocab; }

  KD_FN void gather() {
    // Before any barrier: the gradient, written after the last one, may take the student's place.
    const Stored *logits = static_cast<const Stored *>(call.student.data) + row * call.student.stride;
    label_logit = known() ? Element::to_float(logits[label]) : bit_cast<float>(0x7fc00000u);
    const ScaledExp<float> scaled(scale);
    const bool with_hard = tempered;
    BothSums sums;
    sums.student = student.sum(group, scaled, with_hard);
    if (soft != 0)
      sums.teacher = teacher.sum(group, scaled, false);
    sums = group.all(sums, [=](const BothSums &a, const BothSums &b) { return merged(a, b, scaled, with_hard); });
    q = sums.student, p = sums.teacher;
  }

  KD_FN float cross_entropy() const {
    const TwoPartLog total(tempered ? q.hard : q.sum);
    return (q.peak - label_logit) + total.high + total.low;
  }

  // The gradient of one column. q_v is the student's probability, z its logit less the peak.
  KD_FN void write_gradient(int column, float h, float q_v, float z, float H) const {
    float result = soft != 0 ? soft * scale * (h - q_v * H) : 0.f;
    if (hard != 0) {
      const float share = tempered ? ScaledExp<float>(1)(z) / q.hard : q_v;
      result += hard * (share - (slice.first + column == label ? 1.f : 0.f));
    }
    write(column, result);
  }

  // What every column's term needs, and its place.
  template <class Term, class Take> KD_FN void terms(const Term &term, const Take &take) const {
    const ScaledExp<float> scaled(scale);
    const TwoPartLog log_q(q.sum), log_p(p.sum);
    const float log_sums = (log_q.high - log_p.high) + (log_q.low - log_p.low);
    const float share_q = 1 / q.sum, share_p = 1 / p.sum;
    for (int column = group.thread(); column < slice.columns; column += group.threads()) {
      const float z = student[column] - q.peak, t = teacher[column] - p.peak, q_v = scaled(z) * share_q;
      take(column, term((t - z) * scale + log_sums, q_v, scaled(t) * share_p, slice.first + column), q_v, z);
    }
  }

  template <class Term> KD_FN float soft_term(const Term &term) const {
    const bool wanted = call.gradient.data != nullptr;
    TermSums sums = {0, 0};
    terms(term, [&](int column, ::KD_NAMESPACE::Term<float> at, float q_v, float z) {
      sums.f += at.f, sums.h += at.h;
      if (Term::balanced && wanted)
        write_gradient(column, at.h, q_v, z, 0);
    });
    sums = group.all(sums, [](TermSums a, TermSums b) { return TermSums{a.f + b.f, a.h + b.h}; });
    if (!Term::balanced && wanted)
      terms(term, [&](int column, ::KD_NAMESPACE::Term<float> at, float q_v, float z) {
        write_gradient(column, at.h, q_v, z, sums.h);
      });
    return sums.f;
  }

  KD_FN void hard_gradient() const {
    for (int column = group.thread(); column < slice.columns; column += group.threads()) {
      const float z = hard != 0 ? student[column] - q.peak : 0.f;
      write_gradient(column, 0, hard != 0 ? ScaledExp<float>(scale)(z) / q.sum : 0.f, z, 0);
    }
  }

  template <class Term> KD_FN void run(const Term &term) {
    float value = 0;
    if (soft != 0 || hard != 0)
      gather();
    if (hard != 0)
      value += hard * cross_entropy();
    if (soft != 0)
      value += soft * soft_term(term);
    else if (call.gradient.data)
      hard_gradient();
    if (group.leader())
      static_cast<float *>(call.values)[row] = value;
  }
};

} // namespace KD_NAMESPACE
