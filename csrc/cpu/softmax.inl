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

// With u the upstream gradient and y the output: softmax y (u - sum u y) / T, log_softmax (u - e^y sum u) / T.
template <class Real, bool Log>
void softmax_backward_rows(const Softmax &call, int64_t begin, int64_t end, void *scratch) {
  Real *y_block = static_cast<Real *>(scratch), *u_block = y_block + kBlock, *result = u_block + kBlock;
  const Real scale = static_cast<Real>(call.inverse_temperature);
  const ScaledExp<Real> natural_exp(1);
  const int64_t blocks = kd_cpu::blocks(call.vocab);
  for (int64_t row = begin; row < end; ++row) {
    const Real *u = nullptr, *y = nullptr;
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = kd_cpu::block_width(call.vocab, block);
      u = load(call.upstream, row, block * kBlock, count, u_block, Real(0));
      y = load(call.input, row, block * kBlock, count, y_block, Real(0));
      Real sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t v = 0; v < kd_cpu::padded(count); ++v)
        sum += Log ? u[v] : u[v] * y[v];
      total += sum;
    }
    const Real sum = static_cast<Real>(total);
    for (int64_t block = blocks - 1; block >= 0; --block) {
      const int64_t count = kd_cpu::block_width(call.vocab, block);
      if (block + 1 < blocks) {
        u = load(call.upstream, row, block * kBlock, count, u_block, Real(0));
        y = load(call.input, row, block * kBlock, count, y_block, Real(0));
      }
#pragma omp simd
      for (int64_t v = 0; v < kd_cpu::padded(count); ++v)
        result[v] = scale * (Log ? u[v] - natural_exp(y[v]) * sum : y[v] * (u[v] - sum));
      store(call.output, row, block * kBlock, count, result, false);
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
