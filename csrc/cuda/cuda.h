// What the CUDA sources offer the binding: one table of functions per dtype, and what is known of the devices.
#pragma once

#include <string>

#include "../calls.h"

namespace kd_cuda {

// Where a call runs, and what of the device decides its form.
struct Where {
  int device;
  void *stream;
  int64_t shared;      // bytes of shared memory that a block may ask for
  int largest_cluster; // 1 where there are none
  int processors;
};

// All tensors of a call have the table's dtype (class_mean: any); everything per row is float.
struct Kernels {
  const char *dtype;
  int losses;
  void (*const *divergence)(const kd_calls::Divergence &, const Where &);
  void (*softmax)(const kd_calls::Softmax &, const Where &);
  void (*softmax_backward)(const kd_calls::Softmax &, const Where &);
  void (*scale)(const kd_calls::Scale &, const Where &);
  void (*trilateral)(const kd_calls::Trilateral &, const Where &);
  void (*trilateral_backward)(const kd_calls::Trilateral &, const Where &);
};

extern const Kernels kFloat32, kFloat16, kBFloat16;

// Why no kernel can run here ("" where some can): no driver, no device, none new enough.
std::string unavailable();

// Throws std::runtime_error where the device cannot be asked or is older than sm_80.
Where where(int device, void *stream);

} // namespace kd_cuda
