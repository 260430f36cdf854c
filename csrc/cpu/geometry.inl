// The geometry schedule: row sums over both softmaxed rows, the label and the label's row of a class-mean table.
//
// Forward: walk 1 reads the logits and leaves exponentials, walk 2 sums. Backward is one walk for any upstream
// gradient: what it needs beside the logits are the row's statistics.
#pragma once

#include "../geometry.h"
#include "geometry_short_pull.inl"
#include "side.inl"

namespace KD_NAMESPACE {

template <class Real> struct Geometry {
  const Trilateral &call;
  int64_t row, label;
  Side<Real> student, teacher;
  Real *student_block, *teacher_block, *mean_block, *gradient_block;
  bool prefetching, with_mean;

  Geometry(const Trilateral &call_, void *scratch) : call(call_) {
    const int64_t width = kd_cpu::padded(call.vocab), blocks = kd_cpu::blocks(call.vocab) + kPad / 2;
    student_block = static_cast<Real *>(scratch);
    teacher_block = student_block + kBlock;
    mean_block = teacher_block + kBlock;
    gradient_block = mean_block + kBlock;
    Real *next = gradient_block + kBlock, *bases = next + 2 * width;
    student = {&call.student, 1, next, bases, 0, 0, 0, 0};
    teacher = {&call.teacher, 1, next + width, bases + blocks, 0, 0, 0, 0};
    with_mean = call.class_mean.data != nullptr;
  }

  void start(int64_t row_, bool prefetch) {
    row = row_;
    label = call.labels[row];
    prefetching = prefetch && call.vocab >= kPrefetchedVocab;
  }

  bool counted() const { return label != call.ignore_index; }
  bool known() const { return label >= 0 && label < call.vocab; }
  int columns() const { return with_mean ? 5 : 3; }
  Real *distances() const { return static_cast<Real *>(call.distances) + row * columns(); }
  Real *statistics() const {
    return call.statistics ? static_cast<Real *>(call.statistics) + row * kStatistics : nullptr;
  }
  int64_t count(int64_t block) const { return kd_cpu::block_width(call.vocab, block); }

  // The label's class mean over a block, its padding 0.
  const Real *class_mean(int64_t block) const {
    return load(call.class_mean, label, block * kBlock, count(block), mean_block, Real(0));
  }
  void fill(Real value) {
    for (int k = 0; k < columns(); ++k)
      distances()[k] = value;
    for (int k = 0; statistics() && k < kStatistics; ++k)
      statistics()[k] = value;
  }

  void exponentials() {
    student.start(), teacher.start();
    for (int64_t block = 0; block < kd_cpu::blocks(call.vocab); ++block) {
      const int64_t first = block * kBlock, width = kd_cpu::padded(count(block));
      student.take(block, load(call.student, row, first, count(block), student_block), width);
      teacher.take(block, load(call.teacher, row, first, count(block), teacher_block), width);
    }
  }

  // What the label's column holds, which is left out of every sum that follows.
  TrilateralSums<double> label_column() {
    TrilateralSums<double> found = {};
    Real buffer[kPad];
    found.label_q = rounded_product(student.exponentials[label], student.probability(label / kBlock));
    found.label_p = rounded_product(teacher.exponentials[label], teacher.probability(label / kBlock));
    if (with_mean)
      found.label_m = load(call.class_mean, label, label, 1, buffer, Real(0))[0];
    student.exponentials[label] = teacher.exponentials[label] = 0;
    return found;
  }

  void add(const Real *e_q, const Real *e_p, Real to_q, Real to_p, int64_t width, TrilateralSums<double> &sums) const {
    Real sum_q = 0, sum_p = 0, qq = 0, pp = 0, q_less_p = 0, squared = 0;
#pragma omp simd reduction(+ : sum_q, sum_p, qq, pp, q_less_p, squared)
    for (int64_t v = 0; v < width; ++v) {
      const Real q = rounded_product(e_q[v], to_q), p = rounded_product(e_p[v], to_p), difference = q - p;
      sum_q += q, sum_p += p;
      qq += q * q, pp += p * p, q_less_p += q * difference;
      squared += difference * difference;
    }
    sums.q += sum_q, sums.p += sum_p, sums.qq += qq, sums.pp += pp;
    sums.q_less_p += q_less_p, sums.squared_q_less_p += squared;
  }

  void add_mean(const Real *e_q, Real to_q, const Real *mean, int64_t width, TrilateralSums<double> &sums) const {
    Real mm = 0, q_less_m = 0, squared = 0;
#pragma omp simd reduction(+ : mm, q_less_m, squared)
    for (int64_t v = 0; v < width; ++v) {
      const Real q = rounded_product(e_q[v], to_q), m = mean[v], difference = q - m;
      mm += m * m, q_less_m += q * difference;
      squared += difference * difference;
    }
    sums.mm += mm, sums.q_less_m += q_less_m, sums.squared_q_less_m += squared;
  }

  // The class mean over a block with the label's column at 0.
  const Real *mean_without_label(int64_t block) {
    const Real *mean = class_mean(block);
    const int64_t first = block * kBlock, at = label - first;
    if (at < 0 || at >= count(block))
      return mean;
    for (int64_t v = 0; mean != mean_block && v < count(block); ++v)
      mean_block[v] = mean[v];
    mean_block[at] = 0;
    return mean_block;
  }

  TrilateralSums<double> sums() {
    TrilateralSums<double> total = label_column();
    for (int64_t block = kd_cpu::blocks(call.vocab) - 1; block >= 0; --block) {
      const int64_t first = block * kBlock, width = kd_cpu::padded(count(block));
      const Real *e_q = student.exponentials + first, *e_p = teacher.exponentials + first;
      const Real to_q = student.probability(block), to_p = teacher.probability(block);
      for (int64_t begin = 0; begin < width; begin += kBurst) {
        if (prefetching) {
          prefetch(call.student, row + 1, first + begin, call.vocab);
          prefetch(call.teacher, row + 1, first + begin, call.vocab);
        }
        add(e_q + begin, e_p + begin, to_q, to_p, width - begin < kBurst ? width - begin : kBurst, total);
      }
      if (with_mean)
        add_mean(e_q, to_q, mean_without_label(block), width, total);
    }
    return total;
  }

  void forward() {
    if (!counted() || !known())
      return fill(counted() ? Real(__builtin_nan("")) : Real(0));
    exponentials();
    const auto total = sums();
    double found[5];
    trilateral_distances(total, with_mean, call.squared, found);
    for (int k = 0; k < columns(); ++k)
      distances()[k] = static_cast<Real>(found[k]);
    if (Real *kept = statistics()) {
      const double values[kStatistics] = {
          student.largest,        student.share(),        teacher.largest, teacher.share(), total.q,
          total.label_q_less_p(), total.label_q_less_m(), total.qq,        total.q_less_p,  total.q_less_m};
      for (int k = 0; k < kStatistics; ++k)
        kept[k] = static_cast<Real>(values[k]);
    }
  }

  // A gradient row of one value.
  void write(Real value) {
    for (int64_t v = 0; v < kBlock; ++v)
      gradient_block[v] = value;
    for (int64_t block = 0; block < kd_cpu::blocks(call.vocab); ++block)
      store(call.gradient, row, block * kBlock, count(block), gradient_block, false);
  }

  // S_y, as the walk finds it.
  Real label_q(const Real *kept) const {
    Real buffer[kPad];
    return ScaledExp<Real>(1)(load(call.student, row, label, 1, buffer)[0] - kept[0]) * kept[1];
  }

  void backward() {
    if (!counted() || !known())
      return write(counted() ? Real(__builtin_nan("")) : Real(0));
    const Real *upstream = static_cast<const Real *>(call.upstream) + row * columns(), *kept = statistics();
    const auto pull = trilateral_pull(kept, distances(), upstream, label_q(kept), with_mean, call.squared);
    for (int64_t block = 0; block < kd_cpu::blocks(call.vocab); ++block)
      pull_block(pull, kept, block);
  }

  void pull_block(const TrilateralPull<Real> pull, const Real *kept, int64_t block) {
    const int64_t first = block * kBlock, width = kd_cpu::padded(count(block)), at = label - first;
    const Real *x = load(call.student, row, first, count(block), student_block);
    const Real *y = load(call.teacher, row, first, count(block), teacher_block);
    const Real peak_q = kept[0], share_q = kept[1], peak_p = kept[2], share_p = kept[3];
    const ScaledExp<Real> natural_exp(1);
    if (prefetching)
      for (int64_t begin = 0; begin < width; begin += kBurst) {
        prefetch(call.student, row + 1, first + begin, call.vocab);
        prefetch(call.teacher, row + 1, first + begin, call.vocab);
      }
    const auto walk = [&](auto mean_at) {
#pragma omp simd
      for (int64_t v = 0; v < width; ++v)
        gradient_block[v] = pull(rounded_product(natural_exp(x[v] - peak_q), share_q),
                                 rounded_product(natural_exp(y[v] - peak_p), share_p), mean_at(v));
    };
    if (with_mean) {
      const Real *mean = class_mean(block);
      walk([mean](int64_t v) { return mean[v]; });
    } else {
      walk([](int64_t) { return Real(0); });
    }
    if (at >= 0 && at < count(block))
      gradient_block[at] = pull.of_label(label_q(kept));
    store(call.gradient, row, first, count(block), gradient_block, large(call.rows, call.vocab));
  }
};

template <class Real> void trilateral(const Trilateral &call, int64_t begin, int64_t end, void *scratch) {
  if (call.vocab <= kShortVocab)
    return short_trilateral<Real>(call, begin, end, scratch);
  Geometry<Real> geometry(call, scratch);
  for (int64_t row = begin; row < end; ++row) {
    geometry.start(row, row + 1 < end);
    geometry.forward();
  }
}

template <class Real> void trilateral_backward(const Trilateral &call, int64_t begin, int64_t end, void *scratch) {
  if (call.vocab <= kShortPullVocab)
    return short_trilateral_backward<Real>(call, begin, end, scratch);
  Geometry<Real> geometry(call, scratch);
  for (int64_t row = begin; row < end; ++row) {
    geometry.start(row, row + 1 < end);
    geometry.backward();
  }
}

} // namespace KD_NAMESPACE
