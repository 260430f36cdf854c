// The softmax schedule: (log-)softmax at a temperature, its backward, and the scaling of a gradient's rows.
#pragma once

#include "side.inl"
#include "softmax_short.inl"

namespace KD_NAMESPACE {

using kd_cpu::Scale;

template <class Real, bool Log> void softmax_rows(const Softmax &call, int64_t begin, int64_t end, void *scratch) {
  if (call.vocab <= kShortVocab)
    return short_softmax<Real, Log>(call, begin, end, scratch);
  const int64_t blocks = kd_cpu::blocks(call.vocab);
  Real *buffer = static_cast<Real *>(scratch), *result = buffer + kBlock, *bases = result + kBlock;
  Side<Real> side{&call.input, static_cast<Real>(call.inverse_temperature), bases + blocks + kPad, bases, 0, 0, 0, 0};
  for (int64_t row = begin; row < end; ++row) {
    const Real *x = nullptr;
    side.start();
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = kd_cpu::block_width(call.vocab, block);
      x = load(call.input, row, block * kBlock, count, buffer);
      side.take(block, x, kd_cpu::padded(count));
    }
    side.finish();
    for (int64_t block = blocks - 1; block >= 0; --block) {
      const int64_t first = block * kBlock, count = kd_cpu::block_width(call.vocab, block);
      if (Log && block + 1 < blocks) // the last block's logits are at hand
        x = load(call.input, row, first, count, buffer);
      const Real *e = side.exponentials + first;
      const Real share = side.probability(block);
      // log sum in two parts: its rounding would be the same error in every column.
      const Real shift = static_cast<Real>(side.largest), high = static_cast<Real>(side.log_sum);
      const Real low = static_cast<Real>(side.log_sum - high), scale = side.scale;
#pragma omp simd
      for (int64_t v = 0; v < kd_cpu::padded(count); ++v)
        result[v] = Log ? ((x[v] - shift) * scale - low) - high : e[v] * share;
      store(call.output, row, first, count, result, false);
    }
  }
}

// Columns [first, first + count) of a row in Real: where they lie, or converted into `buffer`.
template <class Real>
static const Real *columns(const Matrix &matrix, int64_t row, int64_t first, int64_t count, Real *buffer) {
  if (matrix.dtype == Native<Real>::dtype)
    return static_cast<const Real *>(matrix.data) + row * matrix.stride + first;
  return load(matrix, row, first, count, buffer, Real(0));
}

// The sum of at(v), v < count. Of long rows in several sums: a single one would wait for itself at every addition.
template <class Real, class At> KD_FN Real total(int64_t count, const At &at) {
  constexpr int64_t kSums = 4 * kPad;
  Real sums[kSums] = {}, sum = 0;
  const int64_t whole = count < 4 * kSums ? 0 : count / kSums * kSums;
  for (int64_t v = 0; v < whole; v += kSums)
#pragma omp simd
    for (int64_t i = 0; i < kSums; ++i)
      sums[i] += at(v + i);
#pragma omp simd reduction(+ : sum)
  for (int64_t v = whole; v < count; ++v)
    sum += at(v);
  if (whole)
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < kSums; ++i)
      sum += sums[i];
  return sum;
}

// With u the upstream gradient and y the output: softmax y (u - sum u y) / T, log_softmax (u - e^y sum u) / T.
template <class Real, bool Log>
void softmax_backward_rows(const Softmax &call, int64_t begin, int64_t end, void *scratch) {
  Real *y_block = static_cast<Real *>(scratch), *u_block = y_block + kBlock, *result_block = u_block + kBlock;
  const Real scale = static_cast<Real>(call.inverse_temperature);
  const ScaledExp<Real> natural_exp(1);
  const auto native = [](const Matrix &matrix) { return matrix.dtype == Native<Real>::dtype; };
  const bool direct = native(call.output), converted = !direct && !native(call.upstream) && !native(call.input);
  const auto width = [=](int64_t count) { return converted ? kd_cpu::padded(count) : count; }; // zeros in the buffers
  for (int64_t row = begin; row < end; ++row) {
    const Real *u = nullptr, *y = nullptr;
    const auto read = [&](int64_t first, int64_t count) {
      u = columns(call.upstream, row, first, count, u_block);
      y = columns(call.input, row, first, count, y_block);
    };
    double sums = 0;
    for (int64_t first = 0; first < call.vocab; first += kBlock) {
      const int64_t count = kd_cpu::block_width(call.vocab, first / kBlock);
      read(first, count);
      sums += total<Real>(width(count), [=](int64_t v) { return Log ? u[v] : u[v] * y[v]; });
    }
    const Real sum = static_cast<Real>(sums);
    for (int64_t block = kd_cpu::blocks(call.vocab) - 1, last = block; block >= 0; --block) {
      const int64_t first = block * kBlock, count = kd_cpu::block_width(call.vocab, block);
      if (block < last) // the last block is at hand
        read(first, count);
      Real *result = direct ? static_cast<Real *>(call.output.data) + row * call.output.stride + first : result_block;
#pragma omp simd
      for (int64_t v = 0; v < width(count); ++v)
        result[v] = scale * (Log ? u[v] - natural_exp(y[v]) * sum : y[v] * (u[v] - sum));
      if (!direct)
        store(call.output, row, first, count, result, false);
    }
  }
}

template <class Real> void softmax(const Softmax &call, int64_t begin, int64_t end, void *scratch) {
  (call.log ? softmax_rows<Real, true> : softmax_rows<Real, false>)(call, begin, end, scratch);
}

template <class Real> void softmax_backward(const Softmax &call, int64_t begin, int64_t end, void *scratch) {
  (call.log ? softmax_backward_rows<Real, true> : softmax_backward_rows<Real, false>)(call, begin, end, scratch);
}

template <class Real> void scale_rows(const Scale &call, int64_t begin, int64_t end, void *scratch) {
  Real *buffer = static_cast<Real *>(scratch), *result = buffer + kBlock;
  for (int64_t row = begin; row < end; ++row) {
    const Real factor = static_cast<const Real *>(call.factor)[call.per_row ? row : 0];
    if (factor == 1)
      continue;
    for (int64_t first = 0; first < call.vocab; first += kBlock) {
      const int64_t count = kd_cpu::block_width(call.vocab, first / kBlock);
      const Real *x = load(call.gradient, row, first, count, buffer, Real(0));
#pragma omp simd
      for (int64_t v = 0; v < kd_cpu::padded(count); ++v)
        result[v] = x[v] * factor;
      store(call.gradient, row, first, count, result, false);
    }
  }
}

} // namespace KD_NAMESPACE
