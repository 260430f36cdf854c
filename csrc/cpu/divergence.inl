// The divergence schedule: a student and a teacher row in, the row's value and gradient out. It knows no loss.
//
// Walk 1 reads the logits and leaves exponentials; walk 2 turns them into f and h; walk 3 writes the gradient
// (h - q H) / T. A balanced term (H = 0) writes it in walk 2. Rows stay in the second-level cache between the walks.
#pragma once

#include "../terms/all.h"
#include "short.inl"
#include "side.inl"

namespace KD_NAMESPACE {

template <class Real> struct Walk {
  struct Loaded {
    int64_t block;
    const Real *at;
  };

  const Divergence &call;
  int64_t row;
  Side<Real> student, teacher, hard; // hard: the student at temperature 1; not walked where the temperature is 1
  Loaded student_loaded, teacher_loaded;
  Real *student_block, *teacher_block, *gradient_block, *zeros;
  Real soft_factor, hard_factor;
  int64_t label;
  bool streaming, prefetching;
  bool tempered; // the hard side is not the student's

  Walk(const Divergence &call_, void *scratch) : call(call_) {
    const int64_t width = kd_cpu::padded(call.vocab), blocks = kd_cpu::blocks(call.vocab) + kPad / 2;
    Real *next = static_cast<Real *>(scratch);
    const Real scale = static_cast<Real>(call.inverse_temperature);
    student = {&call.student, scale, next, next + 3 * width + 4 * kBlock, 0, 0, 0, 0};
    teacher = {&call.teacher, scale, next + width, student.bases + blocks, 0, 0, 0, 0};
    hard = {&call.student, 1, next + 2 * width, teacher.bases + blocks, 0, 0, 0, 0};
    student_block = next + 3 * width;
    teacher_block = student_block + kBlock;
    gradient_block = teacher_block + kBlock;
    zeros = gradient_block + kBlock;
    tempered = call.labels && call.inverse_temperature != 1;
    streaming = large(call.rows, call.vocab);
  }

  void start(int64_t row_, bool prefetch) {
    row = row_;
    student_loaded.block = teacher_loaded.block = -1;
    prefetching = prefetch && call.vocab >= kPrefetchedVocab;
    soft_factor = factor<Real>(call.soft_weight, row, call.soft_scale);
    hard_factor = call.labels ? factor<Real>(call.hard_weight, row, call.hard_scale) : Real(0);
    label = call.labels ? call.labels[row] : -1;
  }

  int64_t count(int64_t block) const { return kd_cpu::block_width(call.vocab, block); }
  // A block's logits; the one that was asked for last is at hand (in a row of one block, all of them).
  const Real *logits(const Matrix &matrix, Loaded &last, int64_t block, Real *buffer) const {
    if (last.block != block)
      last = {block, load(matrix, row, block * kBlock, count(block), buffer)};
    return last.at;
  }
  const Real *student_logits(int64_t block) { return logits(call.student, student_loaded, block, student_block); }
  const Real *teacher_logits(int64_t block) { return logits(call.teacher, teacher_loaded, block, teacher_block); }

  Side<Real> &hard_side() { return tempered ? hard : student; }

  void exponentials() {
    student.start(), teacher.start(), hard.start();
    for (int64_t block = 0; block < kd_cpu::blocks(call.vocab); ++block) {
      const int64_t width = kd_cpu::padded(count(block));
      const Real *x = student_logits(block);
      student.take(block, x, width);
      if (tempered)
        hard.take(block, x, width);
      if (soft_factor != 0)
        teacher.take(block, teacher_logits(block), width);
    }
    student.finish();
    if (tempered)
      hard.finish();
    if (soft_factor != 0)
      teacher.finish();
  }

  // -log softmax(student)[label] at temperature 1.
  double cross_entropy() {
    if (label < 0 || label >= call.vocab)
      return __builtin_nan("");
    Real buffer[kPad];
    const Side<Real> &side = hard_side();
    const double x = load(call.student, row, label, 1, buffer)[0];
    return side.log_sum - (x - side.largest);
  }

  // The term by value: through a reference its pointer would be loaded anew for each column, which does not vectorise.
  // f summed; gradient factor times h left in `weighted`, h summed into sum_h.
  template <class Term>
  double terms(const Term term, int64_t block, Real gradient_factor, Real *__restrict weighted, double &sum_h) {
    const int64_t first = block * kBlock, width = kd_cpu::padded(count(block));
    const Real *x = student_logits(block), *y = teacher_logits(block);
    const Real *e_q = student.exponentials + first, *e_p = teacher.exponentials + first;
    const Real to_q = student.probability(block), to_p = teacher.probability(block);
    const Real shift_q = static_cast<Real>(student.largest), shift_p = static_cast<Real>(teacher.largest);
    const Real scale = student.scale;
    // log sum over the student less log sum over the teacher, in double before it is rounded.
    const Real log_sums = static_cast<Real>(student.log_sum - teacher.log_sum);
    double f = 0;
    for (int64_t begin = 0; begin < width; begin += kBurst) {
      const int64_t end = width - begin < kBurst ? width : begin + kBurst;
      if (prefetching)
        prefetch(call.student, row + 1, first + begin, call.vocab),
            prefetch(call.teacher, row + 1, first + begin, call.vocab);
      Real part_f = 0, part_h = 0;
#pragma omp simd reduction(+ : part_f, part_h)
      for (int64_t v = begin; v < end; ++v) {
        const Real log_ratio = ((y[v] - shift_p) - (x[v] - shift_q)) * scale + log_sums;
        const auto at = term(log_ratio, e_q[v] * to_q, e_p[v] * to_p, first + v);
        part_f += at.f;
        part_h += at.h;
        weighted[v] = at.h * gradient_factor;
      }
      f += part_f;
      sum_h += part_h;
    }
    return f;
  }

  // Adds the hard term's gradient, hard_factor (S - onehot), to the block's, and writes the block.
  void write(int64_t block, const Real *soft_gradient) {
    const int64_t first = block * kBlock, width = kd_cpu::padded(count(block));
    const Real *result = soft_gradient;
    if (hard_factor != 0) {
      const Real *e = hard_side().exponentials + first;
      const Real share = hard_factor * hard_side().probability(block);
#pragma omp simd
      for (int64_t v = 0; v < width; ++v)
        gradient_block[v] = soft_gradient[v] + share * e[v];
      if (label >= first && label < first + count(block))
        gradient_block[label - first] -= hard_factor;
      result = gradient_block;
    }
    store(call.gradient, row, first, count(block), result, streaming);
  }

  // The gradient of a row without a soft term.
  void write_hard() {
    for (int64_t block = 0; block < kd_cpu::blocks(call.vocab); ++block)
      write(block, zeros);
  }

  template <class Term> KD_FN double soft(const Term &term) {
    const bool wanted = call.gradient.data != nullptr;
    const Real gradient_factor = soft_factor * student.scale;
    double f = 0, sum_h = 0;
    // Backwards: the blocks that walk 1 left last are the ones still in the cache.
    for (int64_t block = kd_cpu::blocks(call.vocab) - 1; block >= 0; --block) {
      Real *weighted = Term::balanced ? gradient_block : teacher.exponentials + block * kBlock;
      f += terms(term, block, gradient_factor, weighted, sum_h);
      if (Term::balanced && wanted)
        write(block, weighted);
    }
    if (!Term::balanced && wanted)
      for (int64_t block = 0; block < kd_cpu::blocks(call.vocab); ++block)
        subtract_mean(block, static_cast<Real>(gradient_factor * sum_h));
    return f;
  }

  void subtract_mean(int64_t block, Real weighted_sum) {
    const int64_t first = block * kBlock, width = kd_cpu::padded(count(block));
    Real *h = teacher.exponentials + first;
    const Real *e = student.exponentials + first;
    const Real share = weighted_sum * student.probability(block);
#pragma omp simd
    for (int64_t v = 0; v < width; ++v)
      gradient_block[v] = h[v] - share * e[v];
    write(block, gradient_block);
  }
};

template <class Real, class Term>
static void rows_of(const Term &term, const Divergence &call, int64_t begin, int64_t end, void *scratch) {
  if (call.vocab <= kShortVocab)
    return short_rows<Real>(term, call, begin, end, scratch);
  Walk<Real> walk(call, scratch);
  for (int64_t v = 0; v < kBlock; ++v)
    walk.zeros[v] = 0;
  for (int64_t row = begin; row < end; ++row) {
    walk.start(row, row + 1 < end);
    double value = 0;
    if (walk.soft_factor != 0 || walk.hard_factor != 0)
      walk.exponentials();
    if (walk.hard_factor != 0) // before the gradient is written: it may take the student's place
      value += walk.hard_factor * walk.cross_entropy();
    if (walk.soft_factor != 0)
      value += walk.soft_factor * walk.soft(term);
    else if (call.gradient.data)
      walk.write_hard();
    static_cast<Real *>(call.values)[row] = static_cast<Real>(value);
  }
}

template <class Real, class Loss> void divergence(const Divergence &call, int64_t begin, int64_t end, void *scratch) {
  const Parameters parameters{call.scalar, call.table, call.orders, call.width};
  Choose<Loss>::with(parameters, [&](const auto &term) { rows_of<Real>(term, call, begin, end, scratch); });
}

} // namespace KD_NAMESPACE
