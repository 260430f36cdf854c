// The geometry schedule of one row: the trilateral distances and their backward (csrc/geometry.h has the mathematics).
#pragma once

#include "../calls.h"
#include "../geometry.h"
#include "softmax.h"

namespace KD_NAMESPACE {

using kd_calls::DType;
using kd_calls::Trilateral;

// One element of a matrix of any dtype; the branch is the same for all threads.
KD_FN float any_element(const Matrix &matrix, int64_t offset) {
  switch (matrix.dtype) {
  case DType::float32:
    return static_cast<const float *>(matrix.data)[offset];
  case DType::float64:
    return static_cast<float>(static_cast<const double *>(matrix.data)[offset]);
  case DType::float16:
    return Float16::to_float(static_cast<const uint16_t *>(matrix.data)[offset]);
  default:
    return BFloat16::to_float(static_cast<const uint16_t *>(matrix.data)[offset]);
  }
}

// The label of a row, and what becomes of it.
struct Label {
  int64_t at;
  bool counted, known;

  KD_FN Label(const Trilateral &call, int64_t row)
      : at(call.labels[row]), counted(at != call.ignore_index), known(counted && at >= 0 && at < call.vocab) {}
  // Of a row without distances: 0 where it is ignored, NaN where its label is no class.
  KD_FN float missing() const { return counted ? bit_cast<float>(0x7fc00000u) : 0.f; }
};

KD_FN TrilateralSums<float> added(TrilateralSums<float> a, const TrilateralSums<float> &b) {
  a.q += b.q, a.p += b.p, a.qq += b.qq, a.pp += b.pp;
  a.q_less_p += b.q_less_p, a.squared_q_less_p += b.squared_q_less_p;
  a.mm += b.mm, a.q_less_m += b.q_less_m, a.squared_q_less_m += b.squared_q_less_m;
  a.label_q += b.label_q, a.label_p += b.label_p, a.label_m += b.label_m; // one thread has them, the others 0
  return a;
}

template <class Element, bool Staged, class Group>
KD_FN void trilateral_row(const Trilateral &call, const Group &group, int64_t row, char *shared) {
  using Stored = typename Element::Stored;
  const bool with_mean = call.class_mean.data != nullptr;
  const int columns = with_mean ? 5 : 3;
  float *distances = static_cast<float *>(call.distances) + row * columns;
  float *statistics = call.statistics ? static_cast<float *>(call.statistics) + row * kStatistics : nullptr;
  const Label label(call, row);
  if (!label.known) {
    for (int k = 0; group.leader() && k < columns; ++k)
      distances[k] = label.missing();
    for (int k = 0; group.leader() && statistics && k < kStatistics; ++k)
      statistics[k] = label.missing();
    return;
  }
  const Slice slice = group.slice(call.vocab);
  const Row<Element, Staged> student(call.student.data, row * call.student.stride + slice.first, slice.columns, shared);
  const Row<Element, Staged> teacher(call.teacher.data, row * call.teacher.stride + slice.first, slice.columns,
                                     shared + staged_bytes(slice.columns, sizeof(Stored)));
  const ScaledExp<float> natural(1);
  BothSums found{student.sum(group, natural, false), teacher.sum(group, natural, false)};
  found = group.all(found, [=](const BothSums &a, const BothSums &b) { return merged(a, b, natural, false); });
  const float share_q = 1 / found.student.sum, share_p = 1 / found.teacher.sum;
  TrilateralSums<float> sums = {};
  for (int column = group.thread(); column < slice.columns; column += group.threads()) {
    const float q = rounded_product(natural(student[column] - found.student.peak), share_q);
    const float p = rounded_product(natural(teacher[column] - found.teacher.peak), share_p), difference = q - p;
    const int64_t place = slice.first + column;
    const float m = with_mean ? any_element(call.class_mean, label.at * call.class_mean.stride + place) : 0.f;
    if (place == label.at) {
      sums.label_q = q, sums.label_p = p, sums.label_m = m;
      continue;
    }
    sums.q += q, sums.p += p, sums.qq += q * q, sums.pp += p * p;
    sums.q_less_p += q * difference, sums.squared_q_less_p += difference * difference;
    sums.mm += m * m, sums.q_less_m += q * (q - m), sums.squared_q_less_m += (q - m) * (q - m);
  }
  sums = group.all(sums, [](const TrilateralSums<float> &a, const TrilateralSums<float> &b) { return added(a, b); });
  if (!group.leader())
    return;
  trilateral_distances(sums, with_mean, call.squared, distances);
  if (statistics) {
    statistics[0] = found.student.peak, statistics[1] = share_q;
    statistics[2] = found.teacher.peak, statistics[3] = share_p;
    statistics[4] = sums.q, statistics[5] = sums.label_q_less_p(), statistics[6] = sums.label_q_less_m();
    statistics[7] = sums.qq, statistics[8] = sums.q_less_p, statistics[9] = sums.q_less_m;
  }
}

// Nothing is reduced: columns [first, first + count) of the row, in any order.
template <class Element, class Group>
KD_FN void trilateral_backward_columns(const Trilateral &call, const Group &group, int64_t row, Slice slice) {
  const bool with_mean = call.class_mean.data != nullptr;
  const int columns = with_mean ? 5 : 3;
  const Label label(call, row);
  const float *statistics = static_cast<const float *>(call.statistics) + row * kStatistics;
  const float *distances = static_cast<const float *>(call.distances) + row * columns;
  const float *upstream = static_cast<const float *>(call.upstream) + row * columns;
  const ScaledExp<float> natural(1);
  const auto probability = [&](float logit, const float *sums) {
    return rounded_product(natural(logit - sums[0]), sums[1]);
  };
  const float label_q =
      label.known ? probability(Element::to_float(*column_of<Element>(call.student, row, label.at)), statistics) : 0.f;
  const auto pull = trilateral_pull(statistics, distances, upstream, label_q, with_mean, call.squared);
  for (int i = group.thread(); i < slice.columns; i += group.threads()) {
    const int64_t column = slice.first + i;
    float result = label.missing();
    if (label.known) {
      const float z = Element::to_float(*column_of<Element>(call.student, row, column));
      const float t = Element::to_float(*column_of<Element>(call.teacher, row, column));
      const float q = probability(z, statistics), p = probability(t, statistics + 2);
      const float m = with_mean ? any_element(call.class_mean, label.at * call.class_mean.stride + column) : 0.f;
      result = column == label.at ? pull.of_label(q) : pull(q, p, m);
    }
    store_streamed<Element>(column_of<Element>(call.gradient, row, column), result);
  }
}

} // namespace KD_NAMESPACE
