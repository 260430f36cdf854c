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
#define KD_UNROLL _Pragma("unroll")
#define KD_ROLLED _Pragma("unroll 1")
#else
#define KD_UNROLL _Pragma("GCC unroll 8")
#define KD_ROLLED _Pragma("GCC unroll 1")
#define KD_FN inline __attribute__((always_inline))
#endif

namespace KD_NAMESPACE {

template <class To, class From> KD_FN To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

// 2^x for x <= 127, relative error below 1.5e-7; 0 below the smallest normal number (x < -126), 2^-inf = 0, NaN stays
// NaN. The fraction is a polynomial fitted on [-1/2, 1/2] (its own error 4e-9), the power of two an integer add.
KD_FN float exp2(float x) {
#ifdef __CUDA_ARCH__
  float result; // one instruction, by its documentation 2 units in the last place off; 0 below 2^-126 too
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  constexpr float to_integer = 12582912.f; // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  const float shifted = x + to_integer;
  const float r = x - (shifted - to_integer);
  float fraction = 1.532112219138071e-4f;
  fraction = fraction * r + 1.3390184612944722e-3f;
  fraction = fraction * r + 9.618526324629784e-3f;
  fraction = fraction * r + 5.550362169742584e-2f;
  fraction = fraction * r + 0.24022647738456726f;
  fraction = fraction * r + 0.69314718f;
  fraction = fraction * r + 1.f;
  const float power = bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -126.f ? 0.f : fraction * power; // a product and not an integer add: a NaN's payload would leak into it
#endif
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
KD_FN double log(double x) { return __builtin_log(x); }

// y -> e^(scale y). In float the conversion to base 2 is one product with the scale: for y <= 0, as the schedules have
// it, the relative error is 1e-7 (1 + |scale y|), of the result, which is e^-|scale y| of its row's largest.
template <class Real> struct ScaledExp;
template <> struct ScaledExp<float> {
  float factor;
  KD_FN explicit ScaledExp(double scale) : factor(static_cast<float>(scale * 1.4426950408889634)) {}
  KD_FN float operator()(float y) const { return exp2(y * factor); }
};
template <> struct ScaledExp<double> {
  double factor;
  KD_FN explicit ScaledExp(double scale) : factor(scale) {}
  KD_FN double operator()(double y) const { return __builtin_exp(y * factor); }
};

// a b rounded before anything is added to it: fused with the sum, p - p would not be 0 where p is a product.
template <class Real> KD_FN Real rounded_product(Real a, Real b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#elif defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
  return __builtin_assoc_barrier(a * b);
#else
  return a * b; // clang fuses within an expression only
#endif
}

template <class Real> KD_FN Real minimum(Real a, Real b) { return a < b ? a : b; }
template <class Real> KD_FN Real maximum(Real a, Real b) { return a > b ? a : b; }

} // namespace KD_NAMESPACE
