// What a kernel does with a row, by schedule, dtype and loss: Work(call, group, row, shared).
#pragma once

#include "divergence.h"
#include "geometry.h"
#include "softmax.h"

namespace KD_NAMESPACE {

template <class Term_, class Element_> struct DivergenceWork {
  using Call = Divergence;
  using Element = Element_;
  static constexpr int tensors = 2;
  static constexpr const char *name = "divergence";
  Term_ term;

  template <bool Staged, class Group>
  KD_FN void run(const Call &call, const Group &group, int64_t row, char *shared) const {
    DivergenceRow<Element, Staged, Group>(call, group, row, shared).run(term);
  }
};

template <class Element_> struct SoftmaxWork {
  using Call = Softmax;
  using Element = Element_;
  static constexpr int tensors = 1;
  static constexpr const char *name = "softmax";

  template <bool Staged, class Group>
  KD_FN void run(const Call &call, const Group &group, int64_t row, char *shared) const {
    softmax_row<Element, Staged>(call, group, row, shared);
  }
};

template <class Element_> struct SoftmaxBackwardWork {
  using Call = Softmax;
  using Element = Element_;
  static constexpr int tensors = 2;
  static constexpr const char *name = "softmax_backward";

  template <bool Staged, class Group>
  KD_FN void run(const Call &call, const Group &group, int64_t row, char *shared) const {
    softmax_backward_row<Element, Staged>(call, group, row, shared);
  }
};

template <class Element_> struct TrilateralWork {
  using Call = Trilateral;
  using Element = Element_;
  static constexpr int tensors = 2;
  static constexpr const char *name = "trilateral";

  template <bool Staged, class Group>
  KD_FN void run(const Call &call, const Group &group, int64_t row, char *shared) const {
    trilateral_row<Element, Staged>(call, group, row, shared);
  }
};

} // namespace KD_NAMESPACE
