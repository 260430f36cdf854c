// What is asked of the devices.

#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda.h"

namespace kd_cuda {

namespace {

constexpr int kOldest = 80; // compute capability times ten

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("kdkernels: CUDA device ") + std::to_string(device) + ": " +
                             cudaGetErrorString(error));
  return value;
}

int capability(int device) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

} // namespace

std::string unavailable() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    cudaGetLastError(); // it would be reported again by the next launch
    return cudaGetErrorString(error);
  }
  for (int device = 0; device < devices; ++device)
    if (capability(device) >= kOldest)
      return "";
  return devices ? "every device is older than sm_80" : "no device";
}

Where where(int device, void *stream) {
  const int version = capability(device);
  if (version < kOldest)
    throw std::runtime_error("kdkernels: CUDA device " + std::to_string(device) + " is older than sm_80");
  // 16 is Hopper's and later data-centre chips' to allow; whether a launch fits is asked before it.
  const int largest = version >= 90 && version < 120 ? 16 : 1;
  return {device, stream, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device), largest,
          attribute(cudaDevAttrMultiProcessorCount, device)};
}

} // namespace kd_cuda
