// Rows times a factor, in place.
#pragma once

#include "../calls.h"
#include "softmax.h"

namespace KD_NAMESPACE {

using kd_calls::Scale;

template <class Element> KD_FN void scale_vector(typename Element::Stored *at, float factor) {
  float columns[kWidth<Element>];
  unpack<Element>(load_vector(at), columns);
  typename Element::Stored stored[kWidth<Element>];
  for (int i = 0; i < kWidth<Element>; ++i)
    stored[i] = Element::from_float(columns[i] * factor);
  Vector16 vector;
  __builtin_memcpy(&vector, stored, sizeof vector);
  store_vector(at, vector);
}

template <class Element, class Group>
KD_FN void scale_columns(typename Element::Stored *columns, int count, float factor, const Group &group) {
  const Vectors<kWidth<Element>> vectors(reinterpret_cast<uint64_t>(columns), count);
  for (int i = group.thread(); i < vectors.vectors; i += group.threads())
    scale_vector<Element>(columns + vectors.vector(i), factor);
  for (int i = group.thread(); i < vectors.singles(); i += group.threads()) {
    auto *at = columns + vectors.single(i);
    *at = Element::from_float(Element::to_float(*at) * factor);
  }
}

// gradient[r, :] *= factor[r] for rows [first, last) and the slice of their columns; where a factor is exactly 1
// nothing is read or written. All threads ask for the factors at once: that all are 1 is known after one trip to
// memory.
template <class Element, class Group>
KD_FN void scale_part(const Scale &call, const Group &group, int64_t first, int64_t last, Slice slice) {
  const float *factor = static_cast<const float *>(call.factor);
  int scaled = 0;
  for (int64_t row = first + group.thread(); row < last && call.per_row; row += group.threads())
    scaled |= factor[row] != 1;
  if (call.per_row ? !group.all(scaled, [](int a, int b) { return a | b; }) : *factor == 1)
    return;
  for (int64_t row = first; row < last; ++row)
    if (const float by = factor[call.per_row ? row : 0]; by != 1)
      scale_columns<Element>(column_of<Element>(call.gradient, row, slice.first), slice.columns, by, group);
}

} // namespace KD_NAMESPACE
