// The softmax schedule of one row: (log-)softmax at a temperature, and its backward.
#pragma once

#include "../calls.h"
#include "row.h"

namespace KD_NAMESPACE {

using kd_calls::Matrix;
using kd_calls::Softmax;

template <class Element> KD_FN typename Element::Stored *column_of(const Matrix &matrix, int64_t row, int64_t column) {
  return static_cast<typename Element::Stored *>(matrix.data) + row * matrix.stride + column;
}

template <class Element, bool Staged, class Group>
KD_FN void softmax_row(const Softmax &call, const Group &group, int64_t row, char *shared) {
  const Slice slice = group.slice(call.vocab);
  const Row<Element, Staged> logits(call.input.data, row * call.input.stride + slice.first, slice.columns, shared);
  const ScaledExp<float> scaled(call.inverse_temperature);
  const SoftmaxSum total = group.all(logits.sum(group, scaled, false), [=](const SoftmaxSum &a, const SoftmaxSum &b) {
    return merged(a, b, scaled, false);
  });
  const TwoPartLog log_sum(total.sum);
  const float scale = static_cast<float>(call.inverse_temperature), share = 1 / total.sum;
  for (int column = group.thread(); column < slice.columns; column += group.threads()) {
    const float z = logits[column] - total.peak;
    const float result = call.log ? (z * scale - log_sum.high) - log_sum.low : scaled(z) * share;
    store_streamed<Element>(column_of<Element>(call.output, row, slice.first + column), result);
  }
}

// With u the upstream gradient and y the output: softmax y (u - sum u y) / T, log_softmax (u - e^y sum u) / T.
template <class Element, bool Staged, class Group>
KD_FN void softmax_backward_row(const Softmax &call, const Group &group, int64_t row, char *shared) {
  using Stored = typename Element::Stored;
  const Slice slice = group.slice(call.vocab);
  const Row<Element, Staged> output(call.input.data, row * call.input.stride + slice.first, slice.columns, shared);
  const Row<Element, Staged> upstream(call.upstream.data, row * call.upstream.stride + slice.first, slice.columns,
                                      shared + staged_bytes(slice.columns, sizeof(Stored)));
  const ScaledExp<float> natural(1);
  const float scale = static_cast<float>(call.inverse_temperature);
  float sum = 0;
  // A thread's vectors of the two rows need not hold the same columns: both are staged before any are multiplied.
  if (Staged) {
    output.walk(group, [](const auto &) {});
    upstream.walk(group, [](const auto &) {});
    group.barrier();
  }
  for (int column = group.thread(); column < slice.columns; column += group.threads())
    sum += call.log ? upstream[column] : upstream[column] * output[column];
  sum = group.all(sum, [](float a, float b) { return a + b; });
  for (int column = group.thread(); column < slice.columns; column += group.threads()) {
    const float y = output[column], u = upstream[column];
    const float result = scale * (call.log ? u - natural(y) * sum : y * (u - sum));
    store_streamed<Element>(column_of<Element>(call.output, row, slice.first + column), result);
  }
}

} // namespace KD_NAMESPACE
