// The half precisions as bits, for CPUs: straight-line code that vectorises.
#pragma once

#include "math.h"

namespace KD_NAMESPACE {

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

} // namespace KD_NAMESPACE
