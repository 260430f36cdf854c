// exp and log for loops that must vectorise: straight-line code without tables, calls or branches.
//
// KD_NAMESPACE keeps the copies apart that translation units compile for different instruction sets.
#pragma once

#include <stdint.h>

#ifndef KD_NAMESPACE
#define KD_NAMESPACE kd
#endif

#ifdef __CUDACC__
#define KD_FN __host__ __device__ __forceinline__
#else
#define KD_FN inline __attribute__((always_inline))
#endif

namespace KD_NAMESPACE {

template <class To, class From> KD_FN To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

// e^x for x <= 88, relative error below 1.5e-7; 0 below the smallest normal number (x < -87.33), e^-inf = 0, NaN stays
// NaN. The fraction is a polynomial fitted on [-log(2)/2, log(2)/2] (its own error 4e-9), the power of two is an
// integer add.
KD_FN float exp(float x) {
  constexpr float to_integer = 12582912.f; // 1.5 * 2^23: adding it leaves round(x log2 e) in the low mantissa bits
  const float shifted = x * 1.44269504f + to_integer;
  const float n = shifted - to_integer;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f; // log 2 in two parts, the first exact times n
  float tail = 1.381459878757596e-3f;
  tail = tail * r + 8.368716575205326e-3f;
  tail = tail * r + 4.166838899254799e-2f;
  tail = tail * r + 0.1666652113199234f;
  tail = tail * r + 0.4999999403953552f;
  const float fraction = (tail * r * r + r) + 1.f;
  const float power = bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -87.33f ? 0.f : fraction * power;
}

// log x for normal x > 0, absolute error below 1e-7 * max(1, |log x|); NaN stays NaN. Other arguments: unspecified.
KD_FN float log(float x) {
  constexpr uint32_t root_half = 0x3f3504f3u; // sqrt(1/2): the mantissa is taken from [sqrt(1/2), sqrt(2))
  const int32_t exponent = static_cast<int32_t>(bit_cast<uint32_t>(x) - root_half) >> 23;
  const float r = bit_cast<float>(bit_cast<uint32_t>(x) - (static_cast<uint32_t>(exponent) << 23)) - 1.f;
  float tail = -7.634496688842773e-2f;
  tail = tail * r + 0.1276157647371292f;
  tail = tail * r - 0.13160182535648346f;
  tail = tail * r + 0.14201757311820984f;
  tail = tail * r - 0.16623356938362122f;
  tail = tail * r + 0.20001226663589478f;
  tail = tail * r - 0.2500081956386566f;
  tail = tail * r + 0.3333333134651184f;
  const float fraction = (tail * r - 0.5f) * r * r + r;
  const float result = static_cast<float>(exponent) * 0.693147181f + fraction;
  return x == x ? result : x;
}

// Double serves gradient checks and oracles, not speed: the library's own functions, accurate to an ulp.
KD_FN double exp(double x) { return __builtin_exp(x); }
KD_FN double log(double x) { return __builtin_log(x); }

template <class Real> KD_FN Real minimum(Real a, Real b) { return a < b ? a : b; }
template <class Real> KD_FN Real maximum(Real a, Real b) { return a > b ? a : b; }

} // namespace KD_NAMESPACE
