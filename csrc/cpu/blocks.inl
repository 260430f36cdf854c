// Loops over one block of columns in the first-level cache: conversion in and out, exponentials, sums.
//
// Every count is a multiple of kPad (loads pad with -inf, whose exponential is 0), so that loops have no remainder.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace KD_NAMESPACE {

using kd_cpu::DType;
using kd_cpu::item_bytes;
using kd_cpu::kBlock;
using kd_cpu::kPad;
using kd_cpu::Matrix;

constexpr double kInfinity = __builtin_inf();

KD_FN float from_bfloat16(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

KD_FN uint16_t to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value == value ? nearest_even : 0x7fc0u);
}

// The exponent is moved by a multiplication, which also normalises subnormal halves.
KD_FN float from_float16(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const float moved = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = bit_cast<uint32_t>(moved) | (magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u);
  return bit_cast<float>(special | static_cast<uint32_t>(half & 0x8000u) << 16);
}

KD_FN uint16_t to_float16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the half is subnormal: adding 1/2 rounds at 2^-24, the subnormal unit, to nearest even.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t rounded = magnitude >= 0x47800000u ? 0x7c00u : finite; // 2^16 and above: infinity
  const uint32_t half = magnitude > 0x7f800000u ? 0x7e00u : rounded;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

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

} // namespace KD_NAMESPACE
