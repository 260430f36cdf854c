// How a dtype is loaded, stored and turned into float, on a device and on a host.
#pragma once

#include "../dtypes.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace KD_NAMESPACE {

struct alignas(16) Vector16 {
  uint32_t words[4];
};

struct Float32 {
  using Stored = float;
  static constexpr const char *name = "float32";
  static KD_FN float to_float(float x) { return x; }
  static KD_FN float from_float(float x) { return x; }
};

struct Float16 {
  using Stored = uint16_t;
  static constexpr const char *name = "float16";
#ifdef __CUDA_ARCH__
  static KD_FN float to_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }
  static KD_FN uint16_t from_float(float x) { return __half_as_ushort(__float2half_rn(x)); }
#else
  static KD_FN float to_float(uint16_t x) { return from_float16(x); }
  static KD_FN uint16_t from_float(float x) { return to_float16(x); }
#endif
};

struct BFloat16 {
  using Stored = uint16_t;
  static constexpr const char *name = "bfloat16";
  static KD_FN float to_float(uint16_t x) { return from_bfloat16(x); }
#ifdef __CUDA_ARCH__
  static KD_FN uint16_t from_float(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
#else
  static KD_FN uint16_t from_float(float x) { return to_bfloat16(x); }
#endif
};

template <class Element> constexpr int kWidth = 16 / sizeof(typename Element::Stored); // columns of a vector

// 16 aligned bytes, and the columns in them.
template <class Stored> KD_FN Vector16 load_vector(const Stored *from) {
  return *reinterpret_cast<const Vector16 *>(from);
}
template <class Stored> KD_FN void store_vector(Stored *to, Vector16 vector) {
  *reinterpret_cast<Vector16 *>(to) = vector;
}
template <class Element> KD_FN void unpack(Vector16 vector, float (&columns)[kWidth<Element>]) {
  typename Element::Stored stored[kWidth<Element>];
  __builtin_memcpy(stored, &vector, sizeof vector);
  for (int i = 0; i < kWidth<Element>; ++i)
    columns[i] = Element::to_float(stored[i]);
}

// A store that should not push logits out of the caches.
template <class Element> KD_FN void store_streamed(typename Element::Stored *to, float value) {
#ifdef __CUDA_ARCH__
  __stcs(to, Element::from_float(value));
#else
  *to = Element::from_float(value);
#endif
}

} // namespace KD_NAMESPACE
