// The running statistics of a softmaxed row, and how those of its parts are merged: the same code on a device and, in
// the tests, on a host.
#pragma once

#include "../math.h"

namespace KD_NAMESPACE {

// Where a running maximum starts: finite, so that (-inf) - peak is -inf and not NaN in a part that is -inf throughout.
constexpr float kLowest = -3.4028234663852886e38f;

// The largest logit and sum e^((z - peak) / T); `hard` is the sum at temperature 1, for the cross-entropy.
struct SoftmaxSum {
  float peak = kLowest, sum = 0, hard = 0;
};

// e^((to - from) scale) where neither side may be missing: a part without logits has sum 0 and counts for nothing.
KD_FN SoftmaxSum merged(SoftmaxSum a, SoftmaxSum b, const ScaledExp<float> tempered, bool with_hard) {
  const ScaledExp<float> natural(1);
  SoftmaxSum both;
  both.peak = maximum(a.peak, b.peak); // may drop a NaN: the sums keep it
  both.sum = a.sum * tempered(a.peak - both.peak) + b.sum * tempered(b.peak - both.peak);
  if (with_hard)
    both.hard = a.hard * natural(a.peak - both.peak) + b.hard * natural(b.peak - both.peak);
  return both;
}

struct BothSums {
  SoftmaxSum student, teacher;
};

// The student's alone know a sum at temperature 1.
KD_FN BothSums merged(const BothSums &a, const BothSums &b, const ScaledExp<float> tempered, bool with_hard) {
  return {merged(a.student, b.student, tempered, with_hard), merged(a.teacher, b.teacher, tempered, false)};
}

// `Count` logits join: the peak moves once for all of them.
template <int Count>
KD_FN void join(SoftmaxSum &total, const float (&z)[Count], const ScaledExp<float> tempered, bool with_hard) {
  const ScaledExp<float> natural(1);
  float peak = total.peak;
  for (int i = 0; i < Count; ++i)
    peak = maximum(z[i], peak);
  float sum = total.sum * tempered(total.peak - peak), hard = 0;
  for (int i = 0; i < Count; ++i)
    sum += tempered(z[i] - peak);
  if (with_hard) {
    hard = total.hard * natural(total.peak - peak);
    for (int i = 0; i < Count; ++i)
      hard += natural(z[i] - peak);
  }
  total = {peak, sum, hard};
}

// log x in two parts, high + low to 6e-8, where one float near log(1e5) would round by 5e-7, the same for all columns.
// x = 2^k m: high = k times the first 15 bits of log 2, exact; low = the rest. 0 and NaN take their own logarithm.
struct TwoPartLog {
  float high, low;

  KD_FN explicit TwoPartLog(float x) {
    const bool regular = x >= 1 && x < 3.4028235e38f; // the largest logit alone adds 1
    const uint32_t bits = bit_cast<uint32_t>(x);
    const float exponent = regular ? static_cast<float>(static_cast<int32_t>(bits >> 23) - 127) : 0.f;
    const float mantissa = regular ? bit_cast<float>((bits & 0x007fffffu) | 0x3f800000u) : x;
    high = exponent * 0.693145751953125f;
    low = exponent * 1.4286068203094173e-06f + (x == 0 ? -bit_cast<float>(0x7f800000u) : log(mantissa));
  }
};

} // namespace KD_NAMESPACE
