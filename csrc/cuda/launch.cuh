// The kernels - one per form of a schedule - and their launch.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda.h"
#include "group.cuh"
#include "plan.h"
#include "scale.h"
#include "works.h"

namespace KD_NAMESPACE {

using kd_cuda::Where;

static_assert(sizeof(Places) <= kPlacesBytes, "plan.h leaves room for them");

template <class Work>
__global__ void __launch_bounds__(kLanesThreads)
    rows_by_lanes(const __grid_constant__ typename Work::Call call, const __grid_constant__ Work work, int lanes) {
  extern __shared__ __align__(16) char shared[];
  const int place = threadIdx.x / lanes;
  const int64_t row = int64_t(blockIdx.x) * (kLanesThreads / lanes) + place;
  if (row < call.rows) {
    const int64_t bytes = Work::tensors * staged_bytes(call.vocab, sizeof(typename Work::Element::Stored));
    work.template run<true>(call, Lanes(lanes), row, shared + place * bytes);
  }
}

template <class Work, bool Staged>
__global__ void __launch_bounds__(kThreads)
    rows_by_blocks(const __grid_constant__ typename Work::Call call, const __grid_constant__ Work work) {
  extern __shared__ __align__(16) char shared[];
  __shared__ Places places;
  work.template run<Staged>(call, Block(places), blockIdx.x, shared);
}

template <class Work>
__global__ void __launch_bounds__(kThreads)
    rows_by_clusters(const __grid_constant__ typename Work::Call call, const __grid_constant__ Work work) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char shared[];
  __shared__ Places places;
  const cg::cluster_group cluster = cg::this_cluster();
  work.template run<true>(call, Cluster(places), blockIdx.x / cluster.num_blocks(), shared);
  cluster.sync(); // peers may still be reading this block's places
#endif
}

// The columns of a row are independent: a block takes kThreads x `steps` of them.
constexpr int kColumnSteps = 16;

template <class Element>
__global__ void __launch_bounds__(kThreads) trilateral_gradient(const __grid_constant__ Trilateral call) {
  __shared__ Places places;
  const int64_t first = int64_t(blockIdx.y) * kThreads * kColumnSteps, left = call.vocab - first;
  const int count = static_cast<int>(left < kThreads * kColumnSteps ? left : kThreads * kColumnSteps);
  trilateral_backward_columns<Element>(call, Block(places), blockIdx.x, Slice{first, count});
}

template <class Element>
__global__ void __launch_bounds__(kThreads)
    scale_rows(const __grid_constant__ Scale call, const __grid_constant__ Shares shares) {
  __shared__ Places places;
  const int64_t first = int64_t(blockIdx.x) * shares.rows, last = first + shares.rows;
  const int64_t column = int64_t(blockIdx.y) * shares.columns, left = call.vocab - column;
  const int columns = static_cast<int>(left < shares.columns ? left : shares.columns);
  scale_part<Element>(call, Block(places), first, last < call.rows ? last : call.rows, Slice{column, columns});
}

inline void check(cudaError_t error, const char *what, const char *dtype) {
  if (error == cudaSuccess)
    return;
  cudaGetLastError(); // said here: whoever asks next should not hear of it again
  throw std::runtime_error(std::string("kdkernels: CUDA kernel ") + what + "<" + dtype +
                           ">: " + cudaGetErrorString(error));
}

// Makes a device current for as long as it lives.
class OnDevice {
public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "device", "");
    changed_ = before_ != device;
    if (changed_)
      check(cudaSetDevice(device), "device", "");
  }
  ~OnDevice() {
    if (changed_)
      cudaSetDevice(before_);
  }

private:
  int before_ = 0;
  bool changed_ = false;
};

// A launch's configuration, and the attribute that it points to.
struct Configuration {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};

  template <class Kernel>
  Configuration(Kernel kernel, const char *what, const char *dtype, dim3 grid, const Plan &plan, const Where &where) {
    config.gridDim = grid;
    config.blockDim = dim3(plan.threads);
    config.dynamicSmemBytes = plan.shared;
    config.stream = static_cast<cudaStream_t>(where.stream);
    if (plan.form == Form::cluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = plan.cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
      config.attrs = &attribute;
      config.numAttrs = 1;
      if (plan.cluster > kPortableCluster) // never taken back: another thread may be about to launch
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what, dtype);
    }
    // Without this a launch may ask for 48 KiB less what the kernel has of its own. Always the most there is: the value
    // is the kernel's, and a thread with shorter rows must not lower it between another's setting and its launch.
    if (plan.form != Form::lanes && plan.shared > 0)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(where.shared - kPlacesBytes)),
            what, dtype);
  }
  Configuration(const Configuration &) = delete;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const char *what, const char *dtype, dim3 grid, const Plan &plan,
            const Where &where, const Arguments &...arguments) {
  const Configuration made(kernel, what, dtype, grid, plan, where);
  check(cudaLaunchKernelEx(&made.config, kernel, arguments...), what, dtype);
}

// Whether the device can hold one such cluster: the largest take a whole neighbourhood of multiprocessors, which a
// partitioned or cut-down chip may not have.
template <class Work> bool cluster_fits(const Plan &plan, const Where &where) {
  thread_local struct {
    int device = -1;
    int64_t shared = 0;
    bool fits = false;
  } last; // the question costs a call into the driver
  if (last.device == where.device && last.shared == plan.shared)
    return last.fits;
  int clusters = 0;
  try {
    const Configuration made(rows_by_clusters<Work>, Work::name, Work::Element::name, dim3(plan.cluster), plan, where);
    check(cudaOccupancyMaxActiveClusters(&clusters, rows_by_clusters<Work>, &made.config), Work::name,
          Work::Element::name);
  } catch (const std::runtime_error &) {
    clusters = 0; // a chip that refuses the size holds none
  }
  last = {where.device, plan.shared, clusters > 0};
  return last.fits;
}

inline unsigned blocks_for(int64_t work, int64_t of_a_block) { return unsigned((work + of_a_block - 1) / of_a_block); }

// A grid's first dimension for so many rows of so many blocks each.
inline unsigned grid_rows(int64_t rows, int blocks) {
  if (rows > 0x7fffffff / blocks)
    throw std::runtime_error("kdkernels: more rows than a grid holds, " + std::to_string(rows));
  return static_cast<unsigned>(rows);
}

template <class Work> void launch_rows(const Work &work, const typename Work::Call &call, const Where &where) {
  if (call.rows == 0)
    return;
  const OnDevice guard(where.device);
  using Element = typename Work::Element;
  constexpr int64_t item = sizeof(typename Element::Stored);
  Plan plan = plan_for(call.vocab, item, Work::tensors, {where.shared, where.largest_cluster});
  if (plan.cluster > kPortableCluster && !cluster_fits<Work>(plan, where))
    plan = plan_for(call.vocab, item, Work::tensors, {where.shared, kPortableCluster});
  const unsigned rows = grid_rows(call.rows, plan.cluster);
  switch (plan.form) {
  case Form::lanes:
    return launch(rows_by_lanes<Work>, Work::name, Element::name, dim3(blocks_for(rows, kLanesThreads / plan.lanes)),
                  plan, where, call, work, plan.lanes);
  case Form::block:
    return launch(rows_by_blocks<Work, true>, Work::name, Element::name, dim3(rows), plan, where, call, work);
  case Form::cluster:
    return launch(rows_by_clusters<Work>, Work::name, Element::name, dim3(rows * plan.cluster), plan, where, call,
                  work);
  case Form::streaming:
    return launch(rows_by_blocks<Work, false>, Work::name, Element::name, dim3(rows), plan, where, call, work);
  }
}

template <class Element> void launch_trilateral_gradient(const Trilateral &call, const Where &where) {
  if (call.rows == 0)
    return;
  const OnDevice guard(where.device);
  const dim3 grid(grid_rows(call.rows, 1), blocks_for(call.vocab, kThreads * kColumnSteps));
  launch(trilateral_gradient<Element>, "trilateral_backward", Element::name, grid, {Form::block, kThreads, 0, 1, 0},
         where, call);
}

template <class Element> void launch_scale(const Scale &call, const Where &where) {
  if (call.rows == 0 || call.vocab == 0)
    return;
  const OnDevice guard(where.device);
  const Shares shares = shares_of(call.rows, call.vocab, where.processors * kScalingBlocks);
  launch(scale_rows<Element>, "scale_rows", Element::name, dim3(shares.down, shares.across),
         {Form::block, kThreads, 0, 1, 0}, where, call, shares);
}

} // namespace KD_NAMESPACE
