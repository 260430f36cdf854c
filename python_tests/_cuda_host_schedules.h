// The schedules of csrc/cuda for teams of host threads. Each function returns how many rows of how many blocks wrote
// beyond their shared memory.
#pragma once

#include "_cuda_host_team.h"
#include "cuda/plan.h"
#include "cuda/scale.h"
#include "cuda/works.h"

#include <algorithm>

namespace KD_NAMESPACE {

// What nvcc chooses (Choose in csrc/terms/perturbed.h), where g++ would choose a CPU's form of the term.
template <class Loss> struct OnDevice : Choose<Loss> {};
template <> struct OnDevice<Perturbed<float>> {
  template <class Body> static void with(const Parameters &parameters, const Body &body) {
    body(PerturbedOf<float, 0, Layout::either>(parameters));
  }
};

struct Shape {
  int blocks, threads;
  bool staged;
};

template <class Work> int run(const Work &work, const typename Work::Call &call, const Shape &shape) {
  const int64_t columns = slice_of(call.vocab, shape.blocks, 0).columns;
  const int64_t bytes = Work::tensors * staged_bytes(columns, sizeof(typename Work::Element::Stored));
  Team team(shape.blocks, shape.threads, shape.staged ? bytes : 0);
  return over_rows(team, call.rows, [&](const Member &member, int64_t row) {
    if (shape.staged)
      work.template run<true>(call, member, row, member.own().shared.data());
    else
      work.template run<false>(call, member, row, member.own().shared.data());
  });
}

template <class Element, class Loss> int divergence(const Divergence &call, const Shape &shape) {
  int overruns = -1;
  OnDevice<Loss>::with({call.scalar, call.table, call.orders, call.width}, [&](const auto &term) {
    overruns = run(DivergenceWork<std::decay_t<decltype(term)>, Element>{term}, call, shape);
  });
  return overruns;
}

// Nothing is shared here: the blocks of the team take runs of `step` columns in turn.
template <class Element> int trilateral_backward(const Trilateral &call, int64_t step, const Shape &shape) {
  Team team(shape.blocks, shape.threads, 0);
  return over_rows(team, call.rows, [&](const Member &member, int64_t row) {
    for (int64_t first = member.block() * step; first < call.vocab; first += member.blocks() * step) {
      const int64_t left = call.vocab - first;
      const Slice slice{first, static_cast<int>(left < step ? left : step)};
      trilateral_backward_columns<Element>(call, member, row, slice);
    }
  });
}

// The blocks of a grid one after the other, each a team of its own.
template <class Element> int scale(const Scale &call, int blocks, const Shape &shape) {
  const Shares shares = shares_of(call.rows, call.vocab, blocks);
  int overruns = 0;
  for (int64_t place = 0; place < int64_t(shares.down) * shares.across; ++place) {
    const int64_t first = place / shares.across * shares.rows, column = place % shares.across * shares.columns;
    const int64_t last = std::min(first + shares.rows, call.rows), left = call.vocab - column;
    Team team(1, shape.threads, 0);
    overruns += over_rows(team, 1, [&](const Member &member, int64_t) {
      scale_part<Element>(call, member, first, last, Slice{column, int(std::min<int64_t>(left, shares.columns))});
    });
  }
  return overruns;
}

} // namespace KD_NAMESPACE
