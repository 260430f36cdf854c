// Loops over one block of columns in the first-level cache: conversion in and out, exponentials, sums.
//
// Every count is a multiple of kPad (loads pad with -inf, whose exponential is 0), so that loops have no remainder.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../dtypes.h"
#include "kernels.h"

namespace KD_NAMESPACE {

using kd_cpu::DType;
using kd_cpu::item_bytes;
using kd_cpu::kBlock;
using kd_cpu::kPad;
using kd_cpu::Matrix;

constexpr double kInfinity = __builtin_inf();

template <class Real, class Stored, class Convert>
static void convert(const Stored *source, int64_t count, Real *target, Convert to_real) {
#pragma omp simd
  for (int64_t v = 0; v < count; ++v)
    target[v] = static_cast<Real>(to_real(source[v]));
}

template <class Real> struct Native;
template <> struct Native<float> {
  static constexpr DType dtype = DType::float32;
};
template <> struct Native<double> {
  static constexpr DType dtype = DType::float64;
};

// Columns [first, first + count) of a row in Real, padded with `fill`: in `buffer`, or where they lie if nothing has to
// be converted or padded.
template <class Real>
static const Real *load(const Matrix &matrix, int64_t row, int64_t first, int64_t count, Real *buffer,
                        Real fill = -kInfinity) {
  const int64_t offset = row * matrix.stride + first;
  if (matrix.dtype == Native<Real>::dtype && count % kPad == 0)
    return static_cast<const Real *>(matrix.data) + offset;
  // The padding lies in the last kPad columns: those first, the row over them.
  for (int64_t v = kd_cpu::padded(count) - kPad, end = v + kPad; v < end; ++v)
    buffer[v] = fill;
  switch (matrix.dtype) {
  case DType::float32:
    convert(static_cast<const float *>(matrix.data) + offset, count, buffer, [](float x) { return x; });
    break;
  case DType::float64:
    convert(static_cast<const double *>(matrix.data) + offset, count, buffer, [](double x) { return x; });
    break;
  case DType::bfloat16:
    convert(static_cast<const uint16_t *>(matrix.data) + offset, count, buffer,
            [](uint16_t x) { return from_bfloat16(x); });
    break;
  case DType::float16:
    convert(static_cast<const uint16_t *>(matrix.data) + offset, count, buffer,
            [](uint16_t x) { return from_float16(x); });
    break;
  }
  return buffer;
}

// Non-temporal stores where the target allows them: a gradient is not read again here, and an ordinary store would
// first fetch the line that it overwrites.
static void stream(const float *source, int64_t count, float *target) {
  int64_t v = 0;
#if defined(__AVX__)
  if (reinterpret_cast<uintptr_t>(target) % 32 == 0)
    for (; v + 8 <= count; v += 8)
      _mm256_stream_ps(target + v, _mm256_loadu_ps(source + v));
#elif defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(target) % 16 == 0)
    for (; v + 4 <= count; v += 4)
      _mm_stream_ps(target + v, _mm_loadu_ps(source + v));
#endif
  for (; v < count; ++v)
    target[v] = source[v];
}

// Writes `count` columns; `streaming` asks for non-temporal stores.
template <class Real>
static void store(const Matrix &matrix, int64_t row, int64_t first, int64_t count, const Real *source, bool streaming) {
  const int64_t offset = row * matrix.stride + first;
  switch (matrix.dtype) {
  case DType::float32: {
    float *target = static_cast<float *>(matrix.data) + offset;
    if (sizeof(Real) == sizeof(float) && streaming)
      return stream(reinterpret_cast<const float *>(source), count, target);
    return convert(source, count, target, [](Real x) { return x; });
  }
  case DType::float64:
    return convert(source, count, static_cast<double *>(matrix.data) + offset, [](Real x) { return x; });
  case DType::bfloat16:
    return convert(source, count, static_cast<uint16_t *>(matrix.data) + offset,
                   [](Real x) { return to_bfloat16(static_cast<float>(x)); });
  case DType::float16:
    return convert(source, count, static_cast<uint16_t *>(matrix.data) + offset,
                   [](Real x) { return to_float16(static_cast<float>(x)); });
  }
}

// What a row's term is multiplied by.
template <class Real> KD_FN Real factor(const void *weight, int64_t row, double scale) {
  return static_cast<Real>(weight ? static_cast<const Real *>(weight)[row] * scale : scale);
}

template <class Real> static Real largest(const Real *x, int64_t count) {
  Real result = -kInfinity;
#pragma omp simd reduction(max : result)
  for (int64_t v = 0; v < count; ++v)
    result = maximum(x[v], result);
  return result;
}

// exponentials[v] = e^((x[v] - shift) scale); returns their sum, and in `top` the largest x.
template <class Real>
static Real exponentiate(const Real *x, int64_t count, Real shift, Real scale, Real *__restrict exponentials,
                         Real &top) {
  const ScaledExp<Real> scaled_exp(scale);
  Real sum = 0, most = -kInfinity;
#pragma omp simd reduction(+ : sum) reduction(max : most)
  for (int64_t v = 0; v < count; ++v) {
    const Real e = scaled_exp(x[v] - shift);
    most = maximum(x[v], most);
    exponentials[v] = e;
    sum += e;
  }
  top = most;
  return sum;
}

// 4 MiB and more of gradient will not be in a cache when it is read: then the stores should not be there either.
inline bool large(int64_t rows, int64_t vocab) { return rows * vocab * int64_t(sizeof(float)) >= int64_t(4) << 20; }

// Rows from this length on are fetched for the next turn while this one computes; shorter ones the hardware foresees.
constexpr int64_t kPrefetchedVocab = 4096;
// Columns between two bursts of prefetches: a burst must fit the core's few dozen outstanding misses.
constexpr int64_t kBurst = 256;

// Asks for a row's columns [first, first + kBurst), into the second-level cache.
static void prefetch(const Matrix &matrix, int64_t row, int64_t first, int64_t vocab) {
  const int64_t item = item_bytes(matrix.dtype), left = vocab - first;
  const char *from = static_cast<const char *>(matrix.data) + (row * matrix.stride + first) * item;
  for (int64_t byte = 0; byte < (left < kBurst ? left : kBurst) * item; byte += 64)
    __builtin_prefetch(from + byte, 0, 2);
}

} // namespace KD_NAMESPACE
