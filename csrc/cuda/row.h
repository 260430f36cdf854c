// One row of logits as a group of threads holds it: staged in shared memory on its way past, or left where it lies.
//
// A group has thread() and threads(), slice(vocab) - the columns that fall to its block -, leader(), and
// all(value, merge): the merged value in every thread, after which what any thread of the block wrote before is seen.
#pragma once

#include "element.h"
#include "partition.h"
#include "softmax_sum.h"

namespace KD_NAMESPACE {

// Bytes of shared memory that a staged row of `columns` takes.
KD_FN int64_t staged_bytes(int64_t columns, int64_t item) { return (columns * item + 2 * 15) / 16 * 16 + 16; }

template <class Element, bool Staged> struct Row {
  using Stored = typename Element::Stored;
  const Stored *source; // the slice, in global memory
  Stored *stage;        // column 0 of the slice, in shared memory; not set unless Staged
  Vectors<kWidth<Element>> vectors;

  KD_FN Row(const void *data, int64_t offset, int columns, void *shared)
      : source(static_cast<const Stored *>(data) + offset), stage(nullptr),
        vectors(reinterpret_cast<uint64_t>(source), columns) {
    if (Staged)
      stage = static_cast<Stored *>(shared) + vectors.offset();
  }

  KD_FN float operator[](int column) const { return Element::to_float((Staged ? stage : source)[column]); }

  // Reads the slice once, stages it, and hands it to `take` in arrays of kWidth or of 1.
  template <class Group, class Take> KD_FN void walk(const Group &group, const Take &take) const {
    for (int i = group.thread(); i < vectors.vectors; i += group.threads()) {
      const Vector16 vector = load_vector(source + vectors.vector(i));
      if (Staged)
        store_vector(stage + vectors.vector(i), vector);
      float columns[kWidth<Element>];
      unpack<Element>(vector, columns);
      take(columns);
    }
    for (int i = group.thread(); i < vectors.singles(); i += group.threads()) {
      const int column = vectors.single(i);
      const Stored stored = source[column];
      if (Staged)
        stage[column] = stored;
      const float columns[1] = {Element::to_float(stored)};
      take(columns);
    }
  }

  template <class Group>
  KD_FN SoftmaxSum sum(const Group &group, const ScaledExp<float> tempered, bool with_hard) const {
    SoftmaxSum total;
    walk(group, [&](const auto &columns) { join(total, columns, tempered, with_hard); });
    return total;
  }
};

} // namespace KD_NAMESPACE
